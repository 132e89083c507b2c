"""`predict` of a video: its frames one after the other, into a video or a table."""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from transept.cli.shared.tables import print_json
from transept.data.video import Frame, Video
from transept.errors import StoppedError, UsageError
from transept.files import write_atomically
from transept.tasks.task import TABLE_ENDINGS, Task
from transept.tasks.video_results import VideoDrawing, VideoResults, VideoTable, check_video_out

_TOGETHER = 8
"""Frames that are labelled at a time, at most: large ones take much memory."""


def predict_video(args: argparse.Namespace, task: Task, inference: Any) -> None:
    """See `predict`; `args.images` is the video."""
    if task.in_chans != 3:
        raise UsageError(f"a video has three channels, and this {task.kind} takes pictures of {task.in_chans}")
    out = args.out or Path("predictions.mp4")
    check_video_out(out)
    (source,) = args.images
    with Video(source) as video:
        if args.no_sheet:
            raise UsageError("--no-sheet is for pictures; of a video give --out TABLE.csv, to have rows and no drawing")
        labeller = _Labeller(task, inference, video, args.every or 1)
        if out.suffix.lower() in TABLE_ENDINGS:
            labeller.run(VideoTable(task, out, inference))
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out, lambda file: labeller.run(VideoDrawing(task, file, video)))
        rate = float(video.rate)
    about = {"frames": labeller.frames, "labelled": labeller.labelled, "rate": rate, "out": str(out)}
    if args.json:
        print_json({"model": args.model, "video": source} | about | {"stopped": labeller.stopped})
    else:
        print(f"{out}: {labeller.says()}")
    if labeller.stopped:
        raise StoppedError(f"stopped: {labeller.frames} frames are done, and their results kept")


class _Labeller:
    """Brings the frames of a video to a task, and its answers to what writes them, until Ctrl-C."""

    def __init__(self, task: Task, inference: Any, video: Video, every: int) -> None:
        self._task, self._inference, self._video, self._every = task, inference, video, every
        self.frames = self.labelled = 0
        self.stopped = False
        self._rows: int | None = None

    def run(self, results: VideoResults) -> None:
        """
        Raises:
            StoppedError: before the first frame was done.
        """
        try:
            if results.needs_all:
                self._run_all(results)
            else:
                self._run_some(results)
        except KeyboardInterrupt:
            self.stopped = True
            if not self.frames:
                raise StoppedError("stopped before the first frame was done") from None
        results.finish()
        self._rows = None if results.needs_all else results.count

    def says(self) -> str:
        rows = "" if self._rows is None else f"{self._rows} row{'' if self._rows == 1 else 's'} of "
        each = "" if self.labelled == self.frames else f", of which {self.labelled} were looked at"
        return f"{rows}{self.frames} frames{each}"

    def _run_all(self, results: VideoResults) -> None:
        """Frames between those that are labelled show the answer before."""
        answer = None
        for frame in self._video.frames():
            if frame.number % self._every == 0:
                (answer,) = self._task.predict([frame.picture()], self._inference)
                self.labelled += 1
            results.add(frame, answer)
            self.frames += 1

    def _run_some(self, results: VideoResults) -> None:
        wanted = self._wanted()
        together = 1 if self._video.is_live else min(self._task.pictures_at_once(self._inference), _TOGETHER)
        while frames := list(islice(wanted, together)):
            answers = self._task.predict([frame.picture() for frame in frames], self._inference)
            for frame, answer in zip(frames, answers, strict=True):
                results.add(frame, answer)
            self.labelled += len(frames)
            self.frames = frames[-1].number + 1

    def _wanted(self) -> Iterator[Frame]:
        return (frame for frame in self._video.frames() if frame.number % self._every == 0)

"""The answers of `predict` for the frames of a video: a table, or a video with them drawn."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from transept.data.video import Frame, Video
from transept.draw.video import ENDINGS, VideoWriter
from transept.errors import TranseptError, UsageError
from transept.tasks.table_results import table_writer
from transept.tasks.task import TABLE_ENDINGS, Task


class VideoResults(ABC):
    """The frames of a video with their answers, one after the other: `add` each, then `finish`."""

    needs_all: bool
    """Frames without an answer of their own, too."""
    count = 0
    """Rows, or frames, that were written."""

    @abstractmethod
    def add(self, frame: Frame, answer: Any) -> None:
        """Write a frame with its answer, or with that of an earlier one."""

    @abstractmethod
    def finish(self) -> None:
        """Make the file whole."""


class VideoTable(VideoResults):
    """Rows as of pictures, with the frame's number and its time in seconds in the place of a path."""

    needs_all = False

    def __init__(self, task: Task, out: Path, inference: Any) -> None:
        """
        Raises:
            UsageError: a package that is not installed.
        """
        self._task = task
        self._write = table_writer(out, {"frame": int, "seconds": float, **task.columns(inference)})

    def add(self, frame: Frame, answer: Any) -> None:
        rows = [(frame.number, float(frame.seconds), *values) for values in self._task.records(answer)]
        self._write.add(rows)
        self.count += len(rows)

    def finish(self) -> None:
        self._write.finish()


class VideoDrawing(VideoResults):
    """A video of the same size and rate, with what was found drawn on its frames."""

    needs_all = True

    def __init__(self, task: Task, out: Path, video: Video) -> None:
        """
        Raises:
            TranseptError: `out` cannot be written.
        """
        self._task = task
        try:
            self._writer = VideoWriter(out, video.rate)
        except OSError as error:
            raise TranseptError(f"cannot write {str(out)!r}: {error.strerror or error}") from error

    def add(self, frame: Frame, answer: Any) -> None:
        self._writer.add(self._task.draw_frame(frame.picture(), answer), frame.seconds)
        self.count += 1

    def finish(self) -> None:
        self._writer.close()


def check_video_out(out: Path) -> None:
    """Raises `UsageError` where the frames of a video cannot be written to `out`."""
    if out.suffix.lower() not in (*ENDINGS, *TABLE_ENDINGS) or out.is_dir():
        endings = f"{', '.join((*ENDINGS, TABLE_ENDINGS[0]))} or {TABLE_ENDINGS[1]}"
        raise UsageError(
            f"--out {out}: the answers about a video are a video or a table; give a name that ends in {endings}"
        )

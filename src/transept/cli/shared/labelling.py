"""`--out parquet:FOLDER` of the verbs: rows of many pictures in shards, by this machine or by Ray."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from transept.checks import check_not_negative, check_positive
from transept.cli.shared.tables import print_json
from transept.errors import StoppedError, UsageError, is_live, say
from transept.inference.processor import available_cores
from transept.labelling.job import ROWS, ROWS_OF_DENSE, Job, plan_job, write_shards, written
from transept.labelling.pictures import find_pictures
from transept.labelling.plan import check_folder, claim
from transept.tasks.task import Task
from transept.words import clock

SHARDS_OUT = "parquet:"
_ENGINES = ("local", "ray")
_OPTIONS = ("resume", "workers", "rows", "engine", "processes")
_QUIET_SECONDS = 60
"""Between the lines that are said where stderr is no terminal."""
_REFRESH_SECONDS = 0.2


def add_labelling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(f"many pictures, with --out {SHARDS_OUT}FOLDER")
    group.add_argument(
        "--resume", action="store_true", default=None, help="go on with the shards that the folder lacks"
    )
    group.add_argument(
        "--workers", type=int, metavar="N", help="processes that read pictures (default: one for each core, at most 8)"
    )
    group.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help=f"of a shard (default {ROWS}, of detectors and segmenters {ROWS_OF_DENSE})",
    )
    group.add_argument("--engine", choices=_ENGINES, help="local: this machine (default); ray: a Ray cluster")
    group.add_argument(
        "--processes", type=int, metavar="N", help="of --engine ray: how many hold the model (default 1)"
    )


def names_shards(out: object) -> bool:
    """Whether --out is a folder of Parquet shards."""
    return str(out).startswith(SHARDS_OUT)


def refuse_labelling(args: argparse.Namespace) -> None:
    """Raises `UsageError` where an option of `add_labelling` was given without a folder of shards."""
    for name in _OPTIONS:
        if getattr(args, name) is not None:
            raise UsageError(f"--{name} is for --out {SHARDS_OUT}FOLDER; give that, too, or leave it out")


def check_labelling(args: argparse.Namespace) -> None:
    """Raises `UsageError` where an option of `add_labelling` has a wrong value, or the folder is taken."""
    if str(args.out) == SHARDS_OUT:
        raise UsageError(f"--out {SHARDS_OUT} lacks the folder; give {SHARDS_OUT}FOLDER")
    try:
        check_positive(1_000_000, **_given(args, "rows", "processes"))
        check_not_negative(1024, **_given(args, "workers"))
    except UsageError as error:
        raise UsageError(f"--{error}") from error
    if args.processes is not None and args.engine != "ray":
        raise UsageError("--processes is for --engine ray; give that, too, or leave it out")
    check_folder(_folder(args), resume=bool(args.resume))


def _folder(args: argparse.Namespace) -> Path:
    return Path(str(args.out).removeprefix(SHARDS_OUT))


def _given(args: argparse.Namespace, *names: str) -> dict[str, int]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def label(args: argparse.Namespace, task: Task, inference: Any, about: Mapping[str, Any] | None = None) -> None:
    """Write the answers of a task to the pictures in `args.images`; what is left is said and printed.

    Raises:
        UsageError: as `plan_job`, `find_pictures`, `claim`, or Ray is not installed.
        TranseptError: as those.
        StoppedError: Ctrl-C; the shards that are written are kept.
    """
    folder = _folder(args)
    pictures = find_pictures(args.images)
    with claim(folder, resume=bool(args.resume)):
        job, missing = plan_job(
            task,
            pictures,
            folder,
            inference,
            form=args.form,
            dtype=args.dtype or "auto",
            rows=args.rows,
            resume=bool(args.resume),
            about=about,
            report=lambda sentence: print(f"form: {sentence}", file=sys.stderr),
        )
        _write(args, job, missing)


def _write(args: argparse.Namespace, job: Job, missing: Sequence[int]) -> None:
    plan, folder = job.plan, job.plan.folder
    if len(missing) < plan.shards:
        say(f"{plan.shards - len(missing)} of {plan.shards} shards are in {str(folder)!r} already")
    stopped = False
    with _Meter(sum(len(plan.numbers(shard)) for shard in missing)) as meter:
        try:
            if args.engine == "ray":
                from transept.labelling.cluster import write_shards_on_ray  # an extra

                write_shards_on_ray(
                    job, missing, processes=args.processes or 1, workers=args.workers or 0, done=meter.add
                )
            else:
                workers = _cores() if args.workers is None else args.workers
                write_shards(job, missing, workers=workers, done=meter.add)
        except KeyboardInterrupt:
            stopped = True
    found = written(plan)
    if args.json:
        counts = {"rows": found.rows, "bad": found.bad, "shards": found.shards, "rate": meter.rate, "stopped": stopped}
        print_json({"model": args.model, "out": str(folder), "pictures": plan.pictures, **counts})
    else:
        bad = f", {found.bad} of them of pictures that could not be read" if found.bad else ""
        print(f"{folder}: {found.rows:,} rows in {found.shards} shards{bad}")
    if stopped:
        raise StoppedError(
            f"stopped: {found.shards} of {plan.shards} shards are written; --resume goes on with the rest"
        )


def _cores() -> int:
    """Processes that wait for the model cost nothing, and those that read must not be too few."""
    return min(available_cores(), 8)


class _Meter:
    """How many pictures are done, at what rate, and the time left: a bar, or a line a minute where none can be."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._bar = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} pictures/s"),
            TextColumn("[cyan]{task.fields[left]} left[/]"),
            console=Console(stderr=True),
            expand=True,
            transient=True,
            disable=not is_live(),
        )

    def __enter__(self) -> "_Meter":
        self._said = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._row = self._bar.add_task("", total=self._total, rate="-", left=clock(None))
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def add(self, pictures: int) -> None:
        self._done += pictures
        now = time.monotonic()
        if self._first is None:  # what came before were the start of the processes and the model's first call
            self._first = now, self._done
        wait = _QUIET_SECONDS if self._bar.disable else _REFRESH_SECONDS
        if now - self._said < wait:
            return
        self._said = now
        rate = f"{self.rate:.1f}" if self.rate else "-"
        left = clock((self._total - self._done) / self.rate if self.rate else None)
        if self._bar.disable:
            print(f"{self._done:,} of {self._total:,} pictures, {rate} a second, {left} left", file=sys.stderr)
        else:
            self._bar.update(self._row, completed=self._done, rate=rate, left=left)

    @property
    def rate(self) -> float | None:
        """Pictures a second since the first batch."""
        if self._first is None or self._done == self._first[1]:
            return None
        return round((self._done - self._first[1]) / max(time.monotonic() - self._first[0], 1e-9), 3)

"""A task's answers to many pictures, shard by shard, on this machine."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from transept.files import write_atomically
from transept.inference.compile import Precision, checked_precision
from transept.inference.package import weights_digest
from transept.labelling.inputs import Batches, Chunk, Inputs
from transept.labelling.pictures import Pictures
from transept.labelling.plan import Plan, begin, kept_rows, make_folder
from transept.labelling.streams import Streams, streams_for
from transept.tasks.forms import in_form
from transept.tasks.table_results import table_writer
from transept.tasks.task import Task

ROWS, ROWS_OF_DENSE = 1000, 100
"""Of a shard. Dense tasks look at a picture for longer, and what is not yet written is lost by a kill."""
_LABELS, _ERROR = "labels", "error"
_BEFORE = {"path": str, "width": int, "height": int}


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a process needs to write shards; it can be sent to others."""

    task: Task
    """As it was loaded, whatever its form is to be."""
    inference: Any
    pictures: Pictures
    plan: Plan
    form: str
    dtype: Precision
    formed: Task | None = None
    """The task in its form, where it was made to choose the precision; it is not sent to others."""

    @property
    def is_exact(self) -> bool:
        """Whether the model computes in float32, which shows differences that bfloat16 hides."""
        return self.form not in ("fused", "compiled") or self.dtype == "float32"

    @property
    def columns(self) -> dict[str, Any]:
        """Names and types of the rows: path and size, the task's own, and what is wrong with a picture."""
        maps = {_LABELS: str} if self.task.has_label_map else {}
        return _BEFORE | self.task.picture_columns(self.inference) | maps | {_ERROR: str}


def plan_job(
    task: Task,
    pictures: Pictures,
    folder: Path,
    inference: Any,
    *,
    form: str = "auto",
    dtype: Precision = "auto",
    rows: int | None = None,
    resume: bool = False,
    about: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = lambda sentence: None,
) -> tuple[Job, list[int]]:
    """A job and the numbers of the shards that it has still to write into the folder.

    Args:
        task: loaded, not yet in another form.
        pictures: see `find_pictures`.
        folder: new, or with `resume` of the same job.
        inference: the task's `...Inference`.
        form: as `in_form`, but "auto" is decided here, by the processor, so that all rows are computed alike.
        dtype: as `in_form`.
        rows: of a shard; default: 1000, or 100 of a dense task, or with `resume` as before.
        resume: whether to go on with shards that are missing.
        about: plain data that also decides what the rows are.
        report: is told which form the model will have, and why.

    Raises:
        UsageError: pyarrow is not installed, or the folder is another job's, or not to be resumed.
        TranseptError: it cannot be written to.
    """
    device = next(task.parameters()).device
    if form == "auto":
        form = "fused" if device.type == "cpu" else "eager"
    formed = None
    if form in ("fused", "compiled"):
        dtype, reason, formed = checked_precision(task, dtype)
        report(f"{form} in {dtype}: {reason}")
    asked = {
        "task": task.name,
        "model": weights_digest(task),
        "form": form,
        "dtype": dtype,
        "inference": dataclasses.asdict(inference) if dataclasses.is_dataclass(inference) else inference,  # pyright: ignore[reportArgumentType]
        "reading": task.reading.as_dict(),
        "names": pictures.digest(),
        **(about or {}),
    }
    rows = rows or (kept_rows(folder) if resume else None) or (ROWS_OF_DENSE if task.is_dense else ROWS)
    plan = Plan(folder=folder, pictures=len(pictures), rows=rows, asked=asked)
    formed = formed if form == "fused" else None
    job = Job(task=task, inference=inference, pictures=pictures, plan=plan, form=form, dtype=dtype, formed=formed)
    table_writer(plan.file(0), job.columns)  # raises where there is no pyarrow
    return job, begin(plan, resume=resume)


def write_shards(
    job: Job,
    shards: Sequence[int],
    *,
    workers: int = 0,
    done: Callable[[int], None] = lambda pictures: None,
) -> None:
    """Write these shards, one after another; each gets its name once all of its rows are there.

    Args:
        job: see `plan_job`.
        shards: their numbers.
        workers: processes that read pictures; the model runs in this one.
        done: is told after each batch how many pictures it had.

    Raises:
        TranseptError: a shard cannot be written, or a process was killed.
    """
    if shards:
        ShardWriter(job, workers=workers, done=done).write(shards)


class ShardWriter:
    """Holds the model in its form, and writes the shards that it is told."""

    def __init__(self, job: Job, *, workers: int, done: Callable[[int], None] = lambda pictures: None) -> None:
        self._job, self._workers, self._done = job, workers, done
        self._task = in_form(job.task, job.form, job.dtype) if job.formed is None else job.formed
        at_once = job.task.pictures_at_once(job.inference)
        self._streams = streams_for(job.task, job.form, at_once)
        self._batch_size = at_once // self._streams  # all streams together hold as many as one would

    def write(self, shards: Sequence[int]) -> None:
        """See `write_shards`."""
        plan, task = self._job.plan, self._job.task
        inputs = Inputs(self._job.pictures, task.reading, task.input_of(exact=self._job.is_exact))
        chunks = inputs.chunks([plan.numbers(shard) for shard in shards], self._batch_size, workers=self._workers)
        with Streams(self._streams) as streams:
            for shard, some in groupby(chunks, lambda chunk: chunk.numbers[0] // plan.rows):
                self._write(shard, some, streams)

    def _write(self, shard: int, chunks: Iterable[Chunk], streams: Streams[dict[int, tuple[Any, ...]]]) -> None:
        rows: dict[int, tuple[Any, ...]] = {}
        sizes: dict[int, tuple[int, int]] = {}

        def answered(batches: Iterable[tuple[list[int], Tensor]]) -> None:
            for batch in batches:
                for some in streams.call(partial(self._answers, shard, sizes, *batch)):
                    keep(some)

        def keep(some: dict[int, tuple[Any, ...]]) -> None:
            rows.update(some)
            self._done(len(some))

        batches = Batches(self._batch_size)
        for chunk in chunks:
            sizes |= chunk.sizes
            keep({number: self._bad(number, reason) for number, reason in chunk.errors.items()})
            for numbers, inputs in chunk.groups:
                answered(batches.add(numbers, inputs))
        answered(batches.rest())
        for some in streams.rest():
            keep(some)
        table = table_writer(self._job.plan.file(shard), self._job.columns)
        table.add([rows[number] for number in self._job.plan.numbers(shard)])
        table.finish()

    def _bad(self, number: int, reason: str) -> tuple[Any, ...]:
        return (str(self._job.pictures.path(number)), *(None for _ in range(len(self._job.columns) - 2)), reason)

    def _answers(
        self, shard: int, sizes: Mapping[int, tuple[int, int]], numbers: Sequence[int], inputs: Tensor
    ) -> dict[int, tuple[Any, ...]]:
        task, inference = self._task, self._job.inference
        rows = {}
        for number, answer in zip(numbers, task.answers(inputs, inference), strict=True):
            height, width = size = sizes[number]
            maps = (self._label_map(shard, number, answer),) if task.has_label_map else ()
            record = task.picture_record(answer, inference, size)
            rows[number] = (str(self._job.pictures.path(number)), width, height, *record, *maps, None)
        return rows

    def _label_map(self, shard: int, number: int, answer: Any) -> str:
        """Write it; gives its path from the folder of the shards."""
        image, folder = self._task.label_map(answer), self._job.plan.label_maps(shard)
        assert image is not None
        make_folder(folder)
        write_atomically(folder / f"{number:08d}.png", image.save)
        return (folder / f"{number:08d}.png").relative_to(self._job.plan.folder).as_posix()


class Written(NamedTuple):
    """What a folder holds."""

    rows: int
    bad: int
    """Rows of pictures that could not be read."""
    shards: int


def written(plan: Plan) -> Written:
    """What the folder of a plan holds by now."""
    import pyarrow.parquet  # an extra, which `plan_job` has found

    files = [file for file in map(plan.file, range(plan.shards)) if file.exists()]
    errors = [pyarrow.parquet.read_table(file, columns=[_ERROR])[_ERROR] for file in files]
    return Written(sum(map(len, errors)), sum(len(each) - each.null_count for each in errors), len(files))

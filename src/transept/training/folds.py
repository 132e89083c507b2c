"""Cross-validation: a recipe's run for each fold of the training pictures, and what they say together."""

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from transept.errors import TranseptError, UsageError, say, warn
from transept.files import files_below, reserve, write_atomically
from transept.tasks.run_folder import CONFIG, FOLDS, LOCK
from transept.training.jobs.job import Score
from transept.training.jobs.table import JOBS
from transept.training.loop.folder import claim
from transept.training.loop.interruption import RunInterruptedError
from transept.training.loop.run import Result, train_on
from transept.training.options.recipe import Recipe, plain
from transept.training.processes.world import current_world


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldResult:
    """What came of one fold."""

    fold: int
    """From 1."""
    run: str
    """Its run folder, in that of all folds."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of its best epoch on the pictures of the fold, in 0..1; none where it failed."""
    test: dict[str, float] = field(default_factory=dict)
    """Of its best weights on the test split, where the data has one."""
    epoch: int = 0
    seconds: float = 0.0
    note: str = ""
    """What is there and was not used."""
    error: str | None = None
    """Why it failed."""


class Spread(NamedTuple):
    """A figure over the folds."""

    mean: float
    std: float | None
    """Standard deviation, of n - 1; None of a single fold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossValidation:
    """The folds of a recipe."""

    run: Path
    score: Score
    number: int
    """Of folds."""
    folds: list[FoldResult]
    """Those that were trained, failed ones too."""

    @property
    def done(self) -> list[FoldResult]:
        return [each for each in self.folds if each.error is None]

    @property
    def metrics(self) -> dict[str, Spread]:
        """Mean and standard deviation over the finished folds."""
        return _spreads([each.metrics for each in self.done])

    @property
    def test(self) -> dict[str, Spread]:
        """The same on the test split."""
        return _spreads([each.test for each in self.done])

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as in folds.json."""
        return {
            "run": str(self.run),
            "folds": self.number,
            "score": self.score.key,
            "metrics": {name: spread._asdict() for name, spread in self.metrics.items()},
            "test": {name: spread._asdict() for name, spread in self.test.items()},
            "results": [asdict(each) for each in self.folds],
        }


class Halves(NamedTuple):
    """The pictures of a fold."""

    fold: int
    train: int
    val: int


def train_folds(
    recipe: Recipe, folder: Path, folds: int, *, resume: bool = False, anew: bool = False, progress: bool = True
) -> CrossValidation:
    """Train the recipe once for each fold, in FOLDER/fold-1 and so on, and write folds.json after each.

    A fold that fails leaves the others. With `resume`, unfinished folds go on and missing ones are trained.

    Args:
        recipe: without a fold of its own.
        folder: of all runs.
        folds: how many, at least 2.
        resume: the folder holds some of them.
        anew: finished ones go on too, for the recipe has become longer.
        progress: say on stderr what happens.

    Raises:
        UsageError: fewer than two folds, or what `train` refuses.
        TranseptError: the folder holds other runs, or the first fold's data cannot be read.
        RunInterruptedError: Ctrl-C; everything is saved.
    """
    _check(recipe, folds)
    was_there = folder.is_dir()
    reserve(folder, 2**20)
    with claim(folder, resume=resume), _no_empty_folders(folder, was_there):
        if not resume and (folder / FOLDS).exists():
            raise TranseptError(
                f"{str(folder)!r} holds the runs of folds already; go on with --resume {folder}, or give another "
                "folder with --out"
            )
        runs = CrossValidation(run=folder, score=JOBS[recipe.task].score, number=folds, folds=[])
        if resume:
            kept = read_folds(folder)[1]
            runs = replace(kept, folds=[] if anew else kept.done)
        for number in range(1, folds + 1):
            if number not in {each.fold for each in runs.folds}:
                _write(runs, recipe)
                runs = _with_fold(runs, recipe, number, progress)
        _write(runs, recipe)
        return runs


def read_folds(folder: Path) -> tuple[dict[str, Any], CrossValidation]:
    """The recipe's page in a folder of folds, and what they said so far.

    Raises:
        TranseptError: folds.json cannot be understood.
    """
    file = folder / FOLDS
    try:
        page = json.loads(file.read_text(encoding="utf-8"))
        results = [FoldResult(**each) for each in page["results"]]
        runs = CrossValidation(run=folder, score=Score(**page["score"]), number=page["folds"], folds=results)
        return dict(page["recipe"]), runs
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise TranseptError(f"cannot read {str(file)!r} ({type(error).__name__}: {reason})") from error


def halves_of(recipe: Recipe, folds: int) -> list[Halves]:
    """How many pictures each fold trains on and validates; the data is read, and nothing is trained.

    Raises:
        UsageError, TranseptError: as `train_folds`.
    """
    _check(recipe, folds)
    halves = []
    for number in range(1, folds + 1):
        splits = JOBS[recipe.task](fold_of(recipe, number, folds)).splits
        halves.append(Halves(number, len(splits.train), len(splits.val)))
    return halves


def fold_of(recipe: Recipe, number: int, folds: int) -> Recipe:
    """The recipe of one fold."""
    return replace(recipe, fold=(number, folds))


def _check(recipe: Recipe, folds: int) -> None:
    if folds < 2:
        raise UsageError(f"folds={folds} must be at least 2")
    if recipe.fold is not None:
        raise UsageError(f"fold={list(recipe.fold)} is one fold, and folds={folds} trains all; give one of the two")
    if current_world().size > 1:
        raise UsageError(
            "folds are trained one after the other by one command, which starts processes itself with "
            "--hardware.devices; under torchrun or srun train each by itself, with --fold '[1, 5]' and so on"
        )


def _with_fold(runs: CrossValidation, recipe: Recipe, number: int, progress: bool) -> CrossValidation:
    """With what comes of training one more."""
    name, folder = f"fold {number} of {runs.number}", runs.run / f"fold-{number}"
    if progress:
        say(name)
    score, interrupted = runs.score, False
    try:
        trained = train_on(fold_of(recipe, number, runs.number), folder, progress=progress)
        result, score, interrupted = _result_of(trained, number), trained.score, trained.interrupted
    except (RunInterruptedError, KeyboardInterrupt) as error:  # in its steps, or before them
        raise RunInterruptedError(_stopped(f"in {name}", runs)) from error
    except UsageError:  # of all folds alike
        _forget(runs)
        raise
    except TranseptError as error:
        if not runs.folds and not (folder / CONFIG).exists():  # its data, which the others share
            _forget(runs)
            raise
        result = FoldResult(fold=number, run=folder.name, error=str(error))
        warn(f"{name} failed, and the others go on: {error}")
    runs = replace(runs, score=score, folds=sorted([*runs.folds, result], key=lambda each: each.fold))
    if interrupted and number < runs.number:
        _write(runs, recipe)
        raise RunInterruptedError(_stopped(f"after {name}", runs))
    return runs


def _stopped(where: str, runs: CrossValidation) -> str:
    return f"stopped {where}; everything is saved in {runs.run}; go on with: transept train --resume {runs.run}"


def _result_of(result: Result, number: int) -> FoldResult:
    test = {} if result.test is None else _figures(result.test.metrics)
    return FoldResult(
        fold=number,
        run=result.run.name,
        metrics=_figures(result.metrics),
        test=test,
        epoch=result.epoch,
        seconds=round(result.seconds, 2),
        note=result.note,
    )


def _figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among them, which JSON has."""
    return {name: value for name, value in metrics.items() if isinstance(value, int | float) and math.isfinite(value)}


def _forget(runs: CrossValidation) -> None:
    """Nothing came of it, so that the folder is free for another call."""
    if not runs.folds:
        (runs.run / FOLDS).unlink(missing_ok=True)


@contextmanager
def _no_empty_folders(folder: Path, was_there: bool) -> Iterator[None]:
    """Where nothing comes of any fold, only the locks are left, which go too. The folder is this process's own."""
    try:
        yield
    except TranseptError:
        if {path.name for path in files_below(folder)} <= {LOCK}:
            with suppress(OSError):  # a system that keeps open files
                for lock in list(files_below(folder)):
                    lock.unlink()
                for inner in folder.glob("fold-*"):
                    inner.rmdir()
                if not was_there:
                    folder.rmdir()
        raise


def _spreads(folds: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Of the figures that all of them have."""
    names = [name for name in folds[0] if all(name in each for each in folds)] if folds else []
    values = {name: [each[name] for each in folds] for name in names}
    return {
        name: Spread(statistics.fmean(each), statistics.stdev(each) if len(each) > 1 else None)
        for name, each in values.items()
    }


def _write(runs: CrossValidation, recipe: Recipe) -> None:
    page = runs.as_dict() | {"score": asdict(runs.score), "recipe": plain(asdict(recipe))}
    text = json.dumps(page, ensure_ascii=False, indent=1) + "\n"
    write_atomically(runs.run / FOLDS, lambda file: file.write_text(text, encoding="utf-8"))

"""`transept.train`: a run by a recipe, from Python."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, overload

from transept.errors import UsageError
from transept.training.folds import CrossValidation, train_folds
from transept.training.loop.run import Result
from transept.training.loop.run import train as run_training
from transept.training.options.pages import read_recipe
from transept.training.options.parsing import parse_recipe, shorter_warmup
from transept.training.options.recipe import Recipe


@overload
def train(
    recipe: str | PathLike[str] | Mapping[str, Any] | Recipe,
    out: str | PathLike[str],
    *,
    data: str | PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    folds: None = None,
    progress: bool = False,
) -> Result: ...


@overload
def train(
    recipe: str | PathLike[str] | Mapping[str, Any] | Recipe,
    out: str | PathLike[str],
    *,
    data: str | PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    folds: int,
    progress: bool = False,
) -> CrossValidation: ...


def train(
    recipe: str | PathLike[str] | Mapping[str, Any] | Recipe,
    out: str | PathLike[str],
    *,
    data: str | PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    folds: int | None = None,
    progress: bool = False,
) -> Result | CrossValidation:
    """Train a model by a recipe; `transept.load(out)` gives the trained task.

    Args:
        recipe: a built-in recipe's name ("digits", "quick", "detect/retinanet_cat_small_1x"), a YAML file, its content
            as a mapping, or a `Recipe`.
        out: the run folder to create. Where it holds an interrupted run, "transept train --resume" goes on with it.
        data: what the recipe learns from, where it does not say: a name or folder, as in `transept train --data`.
        options: further options by their dotted names, e.g. `{"schedule.epochs": 20, "model.name": "cat_tiny"}`.
        folds: train so many runs, each of which is validated on its own part of the training pictures: see
            `transept train --folds`.
        progress: show a bar on stderr.

    Returns:
        The best epoch's `metrics` (`top1`, `map` or `miou`, in 0..1), the run folder, the training time in seconds. Of
        folds, mean and standard deviation of each of the `metrics`, and what came of each of the `folds`.

    Raises:
        UsageError: an unknown recipe or option (with the nearest name), or a value out of its range; nothing was read.
        TranseptError: bad data, a folder that holds a run already or cannot be written to.
        RunInterruptedError: Ctrl-C; everything is saved.
    """
    if isinstance(recipe, Recipe):
        if data is not None or options:
            raise UsageError("a Recipe is complete; give data and options in it, or the recipe's name in its place")
        return _trained(recipe, Path(out), folds, progress)
    page = dict(recipe) if isinstance(recipe, Mapping) else read_recipe(str(recipe))
    changes = dict(options or {}) | ({} if data is None else {"data": str(data)})
    changes |= shorter_warmup(page, changes)
    return _trained(parse_recipe(_changed(page, changes), []), Path(out), folds, progress)


def _trained(recipe: Recipe, out: Path, folds: int | None, progress: bool) -> Result | CrossValidation:
    if folds is None:
        return run_training(recipe, out, progress=progress)
    return train_folds(recipe, out, folds, progress=progress)


def _changed(page: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A page with the values of dotted names."""
    changed = dict(page)
    for name, value in changes.items():
        section, dot, rest = name.partition(".")
        changed[section] = _changed(changed.get(section) or {}, {rest: value}) if dot else value
    return changed

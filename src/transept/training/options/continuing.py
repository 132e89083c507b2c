"""What may change when a run goes on: its length, and where and how it is computed, not what it learns."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transept.errors import UsageError
from transept.tasks.kept_recipe import flat
from transept.training.options.parsing import pairs, parse_recipe
from transept.training.options.recipe import Recipe, plain

CHANGEABLE = (
    "schedule.epochs",
    "schedule.iterations",
    "schedule.milestones",
    "schedule.patience",
    "hardware",
    "workers",
    "checkpoint_seconds",
    "loggers",
    "accept_changed_data",
    "data",  # where it lies; that it is the same, its fingerprint tells
)
"""Options, or sections, whose values a run that goes on may have anew."""
_ASKED = tuple(name for name in CHANGEABLE if name != "data")


def continued(page: Mapping[str, Any], options: Sequence[str]) -> Recipe:
    """The recipe of a run's own page with the options given to `--resume`.

    Between two evaluations of a run counted in iterations lie as many as before, also where it becomes longer.

    Raises:
        UsageError: an option that a run cannot change.
    """
    for name in pairs(options):
        if not _is_one_of(name, _ASKED):
            raise UsageError(
                f"{name} cannot change in a run that goes on; --resume takes {', '.join(_ASKED)}; start a new run, "
                "with --model.weights from this one's best.safetensors"
            )
    before = parse_recipe(page, [])
    if before.schedule.iterations is not None:
        schedule = dict(page.get("schedule") or {}) | {"evaluate_every": before.schedule.interval}
        page = {**page, "schedule": schedule}
    return parse_recipe(page, options)


def changes(recipe: Recipe, kept: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options that make another run than the one kept in its state: dotted names to the values then and now."""
    now, then = (dict(flat(page)) for page in (plain(dataclasses.asdict(recipe)), kept))
    return {
        name: (then.get(name), now[name])
        for name in now
        if now[name] != then.get(name) and name in then and not _is_one_of(name, CHANGEABLE)
    }


def with_interval(recipe: Recipe) -> Recipe:
    """With the iterations between evaluations spelt out, which would change with the length of the run."""
    schedule = recipe.schedule
    if schedule.iterations is None:
        return recipe
    return replace(recipe, schedule=replace(schedule, evaluate_every=schedule.interval))


def _is_one_of(name: str, names: Sequence[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in names)

"""A run that goes on: by the recipe that it began with, for as long as it is asked to."""

import dataclasses
from typing import Any

from lightning.pytorch.callbacks import Callback

from transept.checks import shown
from transept.errors import TranseptError, UsageError
from transept.tasks.run_folder import CONFIG, RECIPE_RECORD
from transept.training.loop.states import position
from transept.training.options.continuing import changes, with_interval
from transept.training.options.recipe import Recipe, plain


class RecipeRecord(Callback):
    """Keeps the recipe in the run's state."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @property
    def state_key(self) -> str:
        return RECIPE_RECORD

    def state_dict(self) -> dict[str, Any]:
        return plain(dataclasses.asdict(with_interval(self.recipe)))


def check_same_recipe(recipe: Recipe, state: dict[str, Any]) -> None:
    """Compares with the recipe in the run's state, where it has one.

    Raises:
        TranseptError: an option that decides what is learnt is another.
        UsageError: the run has more epochs behind it than it is to have.
    """
    kept = state.get("callbacks", {}).get(RECIPE_RECORD)
    if kept is not None:
        for name, (then, now) in changes(with_interval(recipe), kept).items():
            raise TranseptError(
                f"{CONFIG} now says {name}: {shown(now)}, but this run began with {shown(then)}, and would be neither "
                "of both; put it back, or start a new run, with --model.weights from this one's best.safetensors"
            )
    finished, _ = position(state)
    schedule = recipe.schedule
    if schedule.evaluations < finished:
        if schedule.iterations is None:
            raise UsageError(
                f"schedule.epochs={schedule.epochs}, but {finished} epochs are finished; give {finished} or more"
            )
        done = finished * schedule.interval
        raise UsageError(f"schedule.iterations={schedule.iterations}, but {done} are finished; give {done} or more")

"""The recipe that a run's state was saved with, by which a page that was cut off is noticed."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from transept.errors import TranseptError
from transept.files import check_regular
from transept.tasks.run_folder import CONFIG, RECIPE_RECORD, STATE


def check_whole(page: Any, folder: Path) -> None:
    """Whether a run's config.yaml is whole, as far as its state tells: a page that was cut off lacks the last options.

    Of the state no tensor is read.

    Raises:
        TranseptError: it lacks options.
    """
    kept = None
    with suppress(Exception):  # a state that is damaged is named when it is loaded
        check_regular(folder / STATE)
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=True)
        kept = state["callbacks"][RECIPE_RECORD]
    if not isinstance(kept, Mapping) or not isinstance(page, Mapping):
        return
    before, now = (dict(flat(each, whole=FREE)) for each in (kept, page))
    lost = [name for name in before if name not in now]
    if lost and len(now) < len(before):  # not one of version 0.1, whose options have other names
        raise TranseptError(
            f"{CONFIG} lacks {len(lost)} of its {len(before)} options, e.g. {lost[-1]}, as if it was cut off; put back "
            "the file as the run wrote it"
        )


FREE = "model.options"
"""The section whose names are a model's, not the recipe's."""


def flat(page: Mapping[str, Any], prefix: str = "", *, whole: str | None = None) -> Iterator[tuple[str, Any]]:
    """The values of a page by their dotted names; the section called `whole` is one value."""
    for key, value in page.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name != whole:
            yield from flat(value, f"{name}.", whole=whole)
        else:
            yield name, value

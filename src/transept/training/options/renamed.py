"""Options that version 0.1 called otherwise. Its names are read for one release more, from pages and command lines."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from transept.errors import TranseptWarning, UsageError
from transept.tasks.data_options import OLD_NAMES

RENAMED: Mapping[str, str] = {
    "augmentation": "classify.augmentation",
    "mix": "classify.mix",
    "distill": "classify.distill",
    "label_smoothing": "classify.label_smoothing",
    "crop_pct": "classify.crop_pct",
    **{f"detect.{name}": f"detect.preprocessing.{name}" for name in "scale mean std bgr per_picture".split()},
    **{
        f"detect.{name}": f"detect.augmentation.{name}"
        for name in "flip flip_vertical short_sides crop_resize crop_short_sides crop_sides color_jitter".split()
    },
    **{f"segment.{name}": f"segment.preprocessing.{name}" for name in "scale multiple_of".split()},
    **{
        f"segment.{name}": f"segment.augmentation.{name}"
        for name in "crop resize_ratio category_max_ratio flip photometric".split()
    },
    **{
        f"pretrain.{name}": f"pretrain.views.{name}"
        for name in ("local_crops local_size global_scale local_scale flip rotation color_jitter blur solarize".split())
    },
    **OLD_NAMES,
}
"""Old name to new one, of options and of whole sections."""


def renamed(name: str) -> str:
    """The name that an option has now."""
    section, _, rest = name.partition(".")
    if name in RENAMED:
        return RENAMED[name]
    return f"{RENAMED[section]}.{rest}" if section in RENAMED and rest else name


def with_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options, dotted, under the names that they have now; a warning names those that were called otherwise.

    Raises:
        UsageError: an option is there under both of its names.
    """
    old = {name: renamed(name) for name in values if renamed(name) != name}
    both = next((name for name in old if old[name] in values), None)
    if both:
        raise UsageError(f"{both} is now called {old[both]}, which is given, too; leave {both} out")
    if old:
        _warn(list(old))
    return {old.get(name, name): value for name, value in values.items()}


def _warn(names: Sequence[str]) -> None:
    first = names[0]
    more = f" (and {len(names) - 1} more have new names: see docs/recipes.md)" if len(names) > 1 else ""
    warnings.warn(
        f"{first} is now called {renamed(first)}{more}; version 0.3 will not know the old name",
        TranseptWarning,
        stacklevel=4,
    )

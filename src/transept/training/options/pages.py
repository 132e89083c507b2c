"""Recipes as YAML pages: the built-in ones, and files."""

import os
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from transept.errors import TranseptError, UsageError, unknown
from transept.files import parse_yaml, read_yaml


def recipe_names() -> list[str]:
    """The built-in recipes; the published ones lie in a folder for each task, e.g. `segment/NAME`."""
    return sorted(_names(_folder(), ""))


def recipe_overview() -> str:
    """For messages: the names, but of a folder only how many it has."""
    names = recipe_names()
    folders = Counter(name.partition("/")[0] for name in names if "/" in name)
    return ", ".join(
        [name for name in names if "/" not in name]
        + [f"{folder}/... ({count} published ones)" for folder, count in folders.items()]
    )


def read_recipe(name: str) -> dict[str, Any]:
    """The page of a built-in recipe, or of a YAML file, as plain data; `parse_recipe` checks it."""
    if name.endswith((".yaml", ".yml")):
        if not os.path.lexists(name):
            raise UsageError(f"there is no recipe file {name!r}; give a YAML file or one of {recipe_overview()}")
        page = read_yaml(Path(name))
    elif name in recipe_names():
        page = parse_yaml((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    else:
        raise unknown("recipe", name, recipe_names(), hint=f"known: {recipe_overview()}")
    if not isinstance(page, dict):
        raise TranseptError(f"the recipe {name!r} must be a mapping of options to values")
    return page


def _names(folder: Any, prefix: str) -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _names(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield prefix + entry.name.removesuffix(".yaml")


def _folder() -> Any:
    return files("transept") / "recipes"

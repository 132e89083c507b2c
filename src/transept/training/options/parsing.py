"""A recipe's page and options of a command line to a checked `Recipe`.

jsonargparse reads both by the types of the dataclasses, a section at a time (its time grows with the square of the
number of options), and the dataclasses check their values. Added here are the names of version 0.1, the nearest name
where one is unknown, and sentences that begin with the option's own name.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from transept.checks import shown
from transept.errors import UsageError, unknown, warn
from transept.tasks.kept_recipe import FREE, flat
from transept.training.options.model import ModelOptions
from transept.training.options.recipe import Recipe
from transept.training.options.renamed import renamed, with_new_names
from transept.training.options.schedule import ScheduleOptions

S = TypeVar("S")


def parse_recipe(page: Mapping[str, Any], options: Sequence[str]) -> Recipe:
    """A recipe's page and `--name value` options to a checked `Recipe`.

    Raises:
        UsageError: an unknown, ill-typed or impossible option: the sentence begins with its name.
    """
    values = with_new_names(dict(flat(page, whole=FREE)))
    texts = with_new_names(pairs(options))
    for kind, names in (("recipe option", values), ("option", texts)):
        for name in names:
            if name not in option_types() and not name.startswith(f"{FREE}."):
                raise unknown(kind, name, option_types())
    return _build(Recipe, values, texts, "")


def shorter_warmup(page: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, int]:
    """The warm-up that a short run takes in place of one that nobody asked for, by its option's name; with a warning.

    Empty where the options that were given name a warm-up, and where that of the page, or the default, fits.

    Args:
        page: a recipe's.
        given: the options beside it, dotted; of a command line, their texts.
    """
    values = {renamed(name): value for name, value in flat(page, whole=FREE)}
    asked = {renamed(name): value for name, value in given.items()}
    now = values | asked
    alone = _EPOCHS in asked or _WARMUP not in values
    if _WARMUP in asked or not alone or now.get("schedule.iterations") is not None:
        return {}
    usual = ScheduleOptions()
    epochs, warmup = now.get(_EPOCHS, usual.epochs), now.get(_WARMUP, usual.warmup_epochs)
    try:
        epochs, warmup = int(epochs), int(warmup)
    except (TypeError, ValueError):  # `parse_recipe` says what it must be
        return {}
    if not 0 < epochs < warmup:
        return {}
    warn(f"{_WARMUP} is {epochs // 2}, not {warmup}, for the run has {_EPOCHS}={epochs}; give it to choose another")
    return {_WARMUP: epochs // 2}


_EPOCHS, _WARMUP = "schedule.epochs", "schedule.warmup_epochs"


def parse_section(section: type[S], texts: Mapping[str, str]) -> S:
    """One dataclass of options from texts, without a page.

    Raises:
        UsageError: as `parse_recipe`.
    """
    return _build(section, {}, texts, "")


def pairs(options: Sequence[str]) -> dict[str, str]:
    """`--name value` or `--name=value` words as a mapping; dashes in a name are underscores.

    Raises:
        UsageError: a word that belongs to no option, or an option without a value.
    """
    texts, words = {}, iter(options)
    for word in words:
        if not word.startswith("--"):
            raise UsageError(f"unexpected {word!r}; options are given as --name value")
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        value = value if equals else next(words, None)
        if value is None or (not equals and value.startswith("--")):
            raise UsageError(f"{name} has no value; give --{name} VALUE")
        texts[name] = value
    return texts


@cache
def option_types() -> dict[str, Any]:
    """Every option of a recipe, dotted, with its declared type."""
    return dict(_leaves(Recipe, ""))


def _leaves(section: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, kind in get_type_hints(section).items():
        if dataclasses.is_dataclass(kind):
            yield from _leaves(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


def _build(section: Any, values: Mapping[str, Any], texts: Mapping[str, str], path: str) -> Any:
    """The dataclass of a section's values, from the page, and texts, from the command line; `path` leads to it."""
    kinds = get_type_hints(section)
    sections = {name: kind for name, kind in kinds.items() if dataclasses.is_dataclass(kind)}
    fields = {
        name: _build(kind, _inside(values, name), _inside(texts, name), f"{path}{name}.")
        for name, kind in sections.items()
    }
    fields |= _typed(section, _beside(values, sections), _beside(texts, sections), path)
    try:
        return section(**fields)
    except UsageError as error:
        raise UsageError(f"{path}{error}") from error


def _inside(given: Mapping[str, Any], section: str) -> dict[str, Any]:
    start = f"{section}."
    return {name.removeprefix(start): value for name, value in given.items() if name.startswith(start)}


def _beside(given: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name.partition(".")[0] not in sections}


def _typed(section: Any, values: Mapping[str, Any], texts: Mapping[str, str], path: str) -> dict[str, Any]:
    """The section's own options as its types have them; only those that are given, where none of them must be."""
    for field in dataclasses.fields(section):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in values.keys() | texts.keys() and not dataclasses.is_dataclass(field.type):
            raise UsageError(f"{path}{field.name} is not given, and has no default")
    if not values and not texts:
        return {}
    typed = _read(section, values, texts, path)
    if section is ModelOptions:
        _check_model_options(typed["name"], typed["options"])
    return typed


def _read(section: Any, values: Mapping[str, Any], texts: Mapping[str, str], path: str) -> dict[str, Any]:
    from jsonargparse import ArgumentError  # a third of a second, which the help of `train` need not wait for

    parser, kinds = _parser(section), get_type_hints(section)
    for name, value in values.items():
        if value is None and name in kinds and NoneType not in get_args(kinds[name]):
            raise UsageError(f"{path}{name}=null; give {_words(kinds[name])}")
    given = {name: shown(value) for name, value in values.items()} | dict(texts)
    for name, text in given.items():
        if number := _TOO_LARGE.search(text):
            raise UsageError(f"{path}{name}={text[:10]}... has a number of {len(number[0])} digits; give fewer")
    words = [f"--{name}={text}" for name, text in texts.items()]
    try:
        typed = parser.parse_object(dict(values))
        return (parser.parse_args(words, namespace=typed) if words else typed).as_dict()
    except (ArgumentError, TypeError, ValueError, ArithmeticError) as error:
        raise UsageError(path + _sentence(error, given, kinds)) from error


def _check_model_options(name: str, options: Mapping[str, Any]) -> None:
    """By the types of the model's own configuration; what it does not know, it refuses itself."""
    try:
        config = ModelOptions(name=name).config
    except UsageError:  # building the recipe says so
        return
    known = {field.name for field in dataclasses.fields(config)}
    _read(type(config), dataclasses.asdict(config) | {o: options[o] for o in options if o in known}, {}, f"{FREE}.")


_TOO_LARGE = re.compile(r"(?<![.\d])\d{301,}")
"""Whole numbers that could be too large to be compared with others."""


@cache
def _parser(section: Any) -> Any:
    from jsonargparse import ArgumentParser  # see _read

    parser = ArgumentParser(exit_on_error=False)
    sections: set[str | int] = {
        name for name, kind in get_type_hints(section).items() if dataclasses.is_dataclass(kind)
    }
    parser.add_class_arguments(section, nested_key=None, skip=sections)
    return parser


def _sentence(error: Exception, texts: Mapping[str, str], kinds: Mapping[str, Any]) -> str:
    """jsonargparse says which option in its first line; the others are about its own types."""
    text = " ".join(str(error).split())
    option = re.match(r'Parser key "([^"]+)"', text)
    if option is None or option[1] not in kinds:
        return text.removeprefix("argument --")
    return f"{option[1]}={texts.get(option[1])}; give {_words(kinds[option[1]])}"


def _words(kind: Any) -> str:
    """A type, for people who write YAML."""
    parts = [_words(part) for part in get_args(kind) if not isinstance(part, str) and part is not Ellipsis]
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) in (UnionType, Union):  # the latter where one part is a Literal
        return " or ".join(parts)
    if get_origin(kind) is list or Ellipsis in get_args(kind):
        return f"a list, each {parts[0]}"
    if get_origin(kind) is tuple:
        return f"a list of {len(parts)}, each {parts[0]}"
    return _PLAIN.get(kind, "names with values")


_PLAIN = {float: "a number", int: "a whole number", bool: "true or false", str: "text", NoneType: "null"}

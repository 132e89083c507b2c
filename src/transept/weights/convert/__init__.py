"""Checkpoints of every known format to our models' names and shapes, and back. Pure functions on names and tensors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transept.errors import unknown
from transept.weights.convert import cabvit, cait, cat, crossformer, crossvit, xcit
from transept.weights.convert.rules import Dialect, Entries, StateDict, entries_of, tensors_of


@dataclass(frozen=True)
class Converter:
    """One family's ways to be written."""

    dialects: tuple[Dialect, ...] = ()
    fit: Callable[[Entries, Any], Entries] = lambda entries, model: entries
    """Bring what depends on the image size, or differs between classifier and pyramid, to the model's shape."""
    same: tuple[str, ...] = ()
    """Code bases, in lower case, that write the official names."""


CONVERTERS = {
    "CAT": Converter(cat.DIALECTS, cat.fit),
    "CabViT": Converter(fit=cabvit.fit),
    "CrossFormer": Converter(crossformer.DIALECTS),
    "XCiT": Converter(xcit.DIALECTS),
    "CaiT": Converter(cait.DIALECTS, cait.fit, same=("timm",)),
    "CrossViT": Converter(crossvit.DIALECTS, crossvit.fit),
}
"""By `Family.name`, for families with a further dialect, or with something to fit."""

OFFICIAL = "official"


def converter_of(family: str) -> Converter:
    """The converter of a family; without an entry its files have our names, and nothing in them is fitted."""
    return CONVERTERS.get(family, Converter())


def dialect_of(entries: Entries, family: str, file_format: str = "") -> Dialect | None:
    """The dialect in which a file of this family is written; None for the official names."""
    dialects = converter_of(family).dialects
    by_name = (dialect for dialect in dialects if dialect.has_marks(entries))
    by_format = (dialect for dialect in dialects if dialect.has_format(entries, file_format))
    return next(by_name, None) or next(by_format, None)


def to_official(state: StateDict, family: str, dialect: str) -> StateDict:
    """A state dict in the words of `dialect` ("timm", "PASSL", ...) under the official names and layouts."""
    form = find_dialect(family, dialect)
    return tensors_of(form.read(entries_of(state))) if form else dict(state)


def from_official(state: StateDict, family: str, dialect: str) -> StateDict:
    """The inverse of `to_official`. What the dialect does not store is left out."""
    form = find_dialect(family, dialect)
    return tensors_of(form.write(entries_of(state))) if form else dict(state)


def find_dialect(family: str, name: str) -> Dialect | None:
    """By name, whatever the case; None for the official names.

    Raises:
        UsageError: the family has no such dialect.
    """
    converter = converter_of(family)
    known = {dialect.name.lower(): dialect for dialect in converter.dialects}
    if name.lower() in (OFFICIAL, *converter.same):
        return None
    if name.lower() not in known:
        names = [OFFICIAL, *(dialect.name for dialect in converter.dialects)]
        raise unknown(f"form of {family} checkpoints", name, names)
    return known[name.lower()]

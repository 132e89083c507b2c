"""How names and layouts of one code base map to those of another, as tables that are read in both directions.

"Official" names are those of the authors' checkpoints, and of our models. A `Dialect` says how another code base
writes the same network; its rules are applied in order to write it, and in reverse order to read it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

StateDict = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor on its way from a file to a model."""

    tensor: Tensor
    file: tuple[str, ...]
    """The names it has, or its parts have, in the file."""
    steps: tuple[str, ...] = ()
    """Changes beside renaming: joined, split, transposed, reshaped, resized 14 x 14 to 24 x 24."""

    def changed(self, tensor: Tensor, step: str) -> "Entry":
        return replace(self, tensor=tensor, steps=(*self.steps, step))


Entries = dict[str, Entry]


def entries_of(state: Mapping[str, Tensor]) -> Entries:
    return {name: Entry(tensor, (name,)) for name, tensor in state.items()}


def tensors_of(entries: Entries) -> StateDict:
    return {name: entry.tensor for name, entry in entries.items()}


class Rule(Protocol):
    """One difference between two ways to write a network. Both directions leave alone what they do not concern."""

    def write(self, entries: Entries) -> Entries:
        """Official to the other."""
        ...

    def read(self, entries: Entries) -> Entries:
        """The other to official."""
        ...


@dataclass(frozen=True)
class Names:
    """Rows of official and other names; the first row that fits a name renames it.

    `{}` stands for one part between dots, `{*}` for anything. A row may repeat a name to keep it from later rows.
    """

    rows: tuple[tuple[str, str], ...]

    def write(self, entries: Entries) -> Entries:
        return {_rename(name, self.rows): entry for name, entry in entries.items()}

    def read(self, entries: Entries) -> Entries:
        backwards = tuple((other, official) for official, other in self.rows)
        return {_rename(name, backwards): entry for name, entry in entries.items()}


@dataclass(frozen=True)
class Parts:
    """One official tensor that the other writes as several, cut along the first axis into equal parts."""

    official: str
    """A name with `{}`."""
    others: tuple[str, ...]
    """The names of its parts, with as many `{}`."""

    def write(self, entries: Entries) -> Entries:
        out: Entries = {}
        for name, entry in entries.items():
            if (values := match(self.official, name)) is None:
                out[name] = entry
                continue
            for other, part in zip(self.others, entry.tensor.chunk(len(self.others)), strict=True):
                out[fill(other, values)] = entry.changed(part, "split")
        return out

    def read(self, entries: Entries) -> Entries:
        out: Entries = {}
        for name, entry in entries.items():
            places = [values for other in self.others if (values := match(other, name)) is not None]
            parts = [fill(other, places[0]) for other in self.others] if places else []
            if not parts or any(part not in entries for part in parts):
                out[name] = entry
            elif name == parts[0]:
                pieces = [entries[part] for part in parts]
                file = tuple(source for part in pieces for source in part.file)
                steps = (*pieces[0].steps, "joined")
                out[fill(self.official, places[0])] = Entry(torch.cat([part.tensor for part in pieces]), file, steps)
        return out


@dataclass(frozen=True)
class TransposedLinears:
    """Matrices of linear layers stored (in, out), as PaddlePaddle does; square ones, too."""

    def write(self, entries: Entries) -> Entries:
        return {
            name: entry.changed(entry.tensor.t(), "transposed") if _is_matrix(name, entry) else entry
            for name, entry in entries.items()
        }

    def read(self, entries: Entries) -> Entries:
        return entries if rows_are_outputs(entries) else self.write(entries)


@dataclass(frozen=True)
class OutputsLast:
    """Kernels of convolutions stored (rows, columns, in, out), as Keras does."""

    def write(self, entries: Entries) -> Entries:
        return self._permuted(entries, (2, 3, 1, 0))

    def read(self, entries: Entries) -> Entries:
        return self._permuted(entries, (3, 2, 0, 1))

    @staticmethod
    def _permuted(entries: Entries, order: tuple[int, ...]) -> Entries:
        return {
            name: entry.changed(entry.tensor.permute(order), "transposed")
            if name.endswith(".weight") and entry.tensor.ndim == 4
            else entry
            for name, entry in entries.items()
        }


@dataclass(frozen=True)
class Stages:
    """Blocks counted through officially, and anew in each stage by the other."""

    official: str
    """A name with `{}` for the block and `{*}` for the rest."""
    other: str
    """The same with `{}` for the stage, counted from 1, before that for the block."""
    ends: tuple[float, ...]
    """Where the stages end, as shares of the depth."""

    def write(self, entries: Entries) -> Entries:
        places = {name: values for name in entries if (values := match(self.official, name))}
        depth = 1 + max((int(block) for block, _ in places.values()), default=0)
        ends = [round(depth * end) for end in self.ends]
        out: Entries = {}
        for name, entry in entries.items():
            if name in places:
                block, rest = places[name]
                stage = sum(int(block) >= end for end in ends)
                first = ends[stage - 1] if stage else 0
                name = fill(self.other, (str(stage + 1), str(int(block) - first), rest))
            out[name] = entry
        return out

    def read(self, entries: Entries) -> Entries:
        places = {name: values for name in entries if (values := match(self.other, name)) and _numbers(values[:2])}
        sizes: dict[int, int] = {}
        for stage, block, _ in places.values():
            sizes[int(stage)] = max(sizes.get(int(stage), 0), int(block) + 1)
        out: Entries = {}
        for name, entry in entries.items():
            if name in places:
                stage, block, rest = places[name]
                first = sum(size for other, size in sizes.items() if other < int(stage))
                name = fill(self.official, (str(first + int(block)), rest))
            out[name] = entry
        return out


def _numbers(values: Iterable[str]) -> bool:
    return all(value.isdecimal() for value in values)


@dataclass(frozen=True)
class Dialect:
    """How a code base writes the checkpoints of a family."""

    name: str
    """The code base."""
    rules: tuple[Rule, ...]
    marks: tuple[str, ...] = ()
    """Names that only this dialect has, with `{}` and `{*}`."""
    format: str = ""
    """A file format whose files are of this dialect where no name says otherwise."""
    departs: str = ""
    """How the code base computes otherwise than ours, so that the same weights give somewhat other outputs."""
    lacks: Mapping[str, str] | None = None
    """Official names (with `{}`, `{*}`) that it does not store, and why that is harmless."""

    def write(self, entries: Entries) -> Entries:
        """Official to this dialect."""
        for rule in self.rules:
            entries = rule.write(entries)
        return {name: entry for name, entry in entries.items() if not any_match(self.lacks or (), name)}

    def read(self, entries: Entries) -> Entries:
        """This dialect to official."""
        for rule in reversed(self.rules):
            entries = rule.read(entries)
        return entries

    def has_marks(self, entries: Entries) -> bool:
        """Whether some of the names are those of this dialect alone."""
        return any(any_match(self.marks, name) for name in entries)

    def has_format(self, entries: Entries, file_format: str) -> bool:
        """Whether a file of this format is written in this dialect, as long as its names do not say otherwise.

        A format that others use too does not say so of matrices that lie as PyTorch's do.
        """
        return bool(self.format) and file_format == self.format and not rows_are_outputs(entries)


def rows_are_outputs(entries: Entries) -> bool:
    """Whether matrices are stored (out, in), as PyTorch does: their biases tell, where they are not square."""
    for name, entry in entries.items():
        bias = entries.get(name.removesuffix("weight") + "bias")
        if _is_matrix(name, entry) and bias is not None and bias.tensor.ndim == 1:
            rows, columns = entry.tensor.shape
            if rows != columns and len(bias.tensor) in (rows, columns):
                return len(bias.tensor) == rows
    return False


def _is_matrix(name: str, entry: Entry) -> bool:
    return name.endswith(".weight") and entry.tensor.ndim == 2


def match(template: str, name: str) -> tuple[str, ...] | None:
    """The parts of `name` at the placeholders of `template`; None where it does not fit."""
    fit = _pattern(template).fullmatch(name)
    return fit.groups() if fit else None


def any_match(templates: Iterable[str], name: str) -> bool:
    return any(match(template, name) is not None for template in templates)


def fill(template: str, values: Iterable[str]) -> str:
    """`template` with its placeholders replaced in order."""
    rest = iter(values)
    return re.sub(r"\{\*?\}", lambda _: next(rest), template)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template).replace(r"\{\}", r"([^.]+)").replace(r"\{\*\}", r"(.+)")
    return re.compile(text)


def _rename(name: str, rows: Iterable[tuple[str, str]]) -> str:
    for old, new in rows:
        if (values := match(old, name)) is not None:
            return fill(new, values)
    return name

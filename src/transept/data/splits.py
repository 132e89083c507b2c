"""The splits of a data set: what they are called, and which of them is learnt from, measured and left alone.

Every kind of data finds its splits in its own way and gives their names to `take`, which decides. Nothing is chosen in
silence: where two splits could be meant the call is refused with the option that says which, and `Parts` says in a
sentence what was taken.
"""

import hashlib
import os
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from transept.errors import TranseptError, UsageError, warn
from transept.words import listed

Kind = Literal["train", "val", "test"]
NAMES: Mapping[Kind, tuple[str, ...]] = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "validate", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
"""What splits are called, in any case; `seg_` may stand before a name, and a year or `set` behind it."""
WHOLE = "none"
"""In the place of a split's name: the data has no splits, whatever its folders are called."""
_KINDS: dict[str, Kind] = {name: kind for kind, names in NAMES.items() for name in names}
_FORM = re.compile(rf"(?:seg[_-])?({'|'.join(sorted(_KINDS, key=len, reverse=True))})(?:[_ -]?(?:set|data|\d{{4}}))?")
_SHOWN_CLASSES = 20


def kind_of(name: str) -> Kind | None:
    """`Training` is train, `valid` is val, `test2017` is test; None for other names."""
    match = _FORM.fullmatch(name.lower())
    return _KINDS[match[1]] if match else None


@dataclass(frozen=True, slots=True)
class Fold:
    """One of the equal parts of the training pictures that validate in turn."""

    number: int
    """From 1."""
    of: int
    seed: int = 0
    """Of the division."""

    def __str__(self) -> str:
        return f"fold {self.number} of {self.of}"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which splits are wanted, where that is said: names as the data has them, or train, val and test for the kind."""

    split: str | None = None
    """To measure; default: validation. `none`: everything, the data has no splits."""
    train_split: str | None = None
    """To learn from. `none`: the data has no splits."""
    val_split: str | None = None
    """To validate on."""
    held_out: bool = True
    """Data without a validation split is divided, and what is measured was held out of training. False: such data is
    measured whole."""
    fold: Fold | None = None
    """The training split is divided into folds, whatever other splits there are, and this one is measured."""

    @property
    def is_whole(self) -> bool:
        """Splits are not to be looked for."""
        return WHOLE in (self.split, self.train_split)

    @property
    def names(self) -> list[str]:
        """All that are given."""
        return [name for name in (self.split, self.train_split, self.val_split) if name not in (None, WHOLE)]


@dataclass(frozen=True, slots=True)
class Parts:
    """The splits that are read, under the names that the data gives them; "" is data without splits."""

    train: str
    """What is learnt from, where that is read."""
    val: str
    """What is measured."""
    held_out: bool
    """The measured pictures are a share of `train`, and not learnt from."""
    tests: tuple[str, ...] = ()
    """Test splits."""
    note: str = ""
    """A remark on what is there and is not used."""
    fold: Fold | None = None
    """What `held_out` says is this fold."""

    @property
    def test(self) -> str | None:
        """What is measured when a training run has ended, and not read before."""
        return self.tests[0] if len(self.tests) == 1 and self.tests[0] != self.val else None

    @property
    def read(self) -> list[str]:
        """The names of what training reads, each once."""
        return list(dict.fromkeys((self.train, self.val)))

    @property
    def split(self) -> str | None:
        """The measured split's name; None where the data has no split of that name."""
        return None if self.held_out else self.val or None

    def measured(self, pictures: int, classes: int, data: str) -> str:
        """What was measured, as a sentence."""
        what = f"{_counted(pictures, 'picture', 'pictures')} in {_counted(classes, 'class', 'classes')}"
        if self.held_out:
            source = f"the split {self.val!r}" if self.val else f"the {_noun(data)}"
            how = f"{self.fold} of {source}" if self.fold else f"held out of {source}"
            return f"{what}, {how} as in training; --split {self.val or WHOLE} measures all of it"
        if not self.val:
            return f"{what}; the {_noun(data)} has no split"
        others = [name for name in self.tests if name != self.val]
        there = f"; there is also {listed(map(repr, others))}: --split {others[0]} measures that" if others else ""
        return f"{what}, the split {self.val!r}{there}"

    def found(self, splits: Any, val_fraction: float) -> str:
        """What a run trains on and is validated on, as a sentence; `splits` has `train`, `val`, `classes`, `counts`."""
        if self.held_out:
            source = f" of {self.train!r}" if self.train else ""
            how = f"held out{source} by the hash of their names (val_fraction {val_fraction:g})"
            how = f"{self.fold}{source}" if self.fold else how
        else:
            how = f"the splits {self.train!r} and {self.val!r}"
        lines = [
            f"{len(splits.train):,} pictures to train on and {len(splits.val):,} to validate, {how}",
            f"{_counted(len(splits.classes), 'class', 'classes')}{_spread(splits.counts)}",
        ]
        if self.test:
            lines.append(f"the split {self.test!r} is measured at the end, and not read before")
        elif self.tests and self.tests != (self.val,):
            lines.append(f"the splits {listed(map(repr, self.tests))} are not read; 'eval --split NAME' measures one")
        return "; ".join([*lines, *([self.note] if self.note else [])])


def take(names: Collection[str], data: str, choice: Choice, *, learns: bool) -> Parts:
    """The splits to read, out of those that the data has.

    Args:
        names: of all splits; none where the data has no splits.
        data: for errors.
        choice: what is wanted.
        learns: training pictures are read, too.

    Raises:
        UsageError: there is no such split, or several could be meant.
    """
    known = [name for name in names if kind_of(name) or _meant(name, choice)]
    if not known and len(names) > 1:
        raise UsageError(
            f"{data!r} has the splits {sorted(names)}; it needs 'train' and 'validation', or say which are meant with "
            "--train_split NAME and --val_split NAME (eval: --split NAME)"
        )
    if choice.is_whole or not known:
        return _undivided(next(iter(names), ""), data, choice, learns=learns)
    others = sorted(set(names) - set(known))
    if others:
        warn(f"{data!r} also has {listed(map(repr, others))}, which are no known splits and are not read")
    tests = tuple(sorted(name for name in known if kind_of(name) == "test"))
    val = None if choice.split else _pick(known, "val", choice.val_split, data)
    if choice.split:
        if choice.split not in known and choice.split.lower() == "val":
            val = _pick(known, "val", choice.val_split, data)
        else:
            val = _named(choice.split, known, data)
    train = _pick(known, "train", choice.train_split, data) if learns or val is None else None
    if learns and train is None:
        raise TranseptError(f"{data!r} has no training pictures, only {listed(map(repr, sorted(known)))}")
    if choice.fold and choice.split is None:
        return _folded(known, tests, data, choice)
    if val is not None:
        return Parts(train or "", val, held_out=False, tests=tests)
    wants_val = choice.split is not None
    if train is not None and choice.held_out:
        return Parts(train, train, held_out=True, tests=tests, fold=choice.fold)
    if tests and not wants_val:
        return Parts(train or "", _pick(known, "test", None, data) or "", held_out=False, tests=tests)
    if train is None or (wants_val and not learns):
        raise _no_split(choice.split or "val", known, data)
    return Parts(train, train, held_out=learns, tests=tests)


def _folded(known: Collection[str], tests: tuple[str, ...], data: str, choice: Choice) -> Parts:
    """The training split alone; a validation split is left alone, to be measured like any other with `--split`."""
    train = _pick(known, "train", choice.train_split, data)
    if train is None:
        raise TranseptError(f"{data!r} has no training pictures, only {listed(map(repr, sorted(known)))}")
    rest = [name for name in known if name != train and kind_of(name) == "val"]
    note = (
        f"folds are of {train!r} alone, and {listed(map(repr, rest))} is not read: 'eval --split {rest[0]}' measures it"
        if rest
        else ""
    )
    return Parts(train, train, held_out=True, tests=tests, note=note, fold=choice.fold)


def matches(root: Path, form: str, choice: Choice) -> dict[str, Path]:
    """Names of splits to the files or folders that exist under a form such as `annotations/instances_{}.json`.

    `{}` is a split's name in any spelling, or one of the names of `choice`; letters' case does not matter.
    """
    found: dict[str, Path] = {}
    for name, path in _walk(root, form.split("/"), choice):
        found.setdefault(name, path)
    return found


def note_bare_splits(parts: Parts, root: Path, forms: Sequence[str], lacks: str) -> Parts:
    """With a remark where folders of pictures have no truth: those of a test, as COCO's, or of a validation, too."""
    wanted: list[Kind] = [] if parts.tests else ["test"]
    if parts.held_out and kind_of(parts.train) == "train":  # first, for it is what the run would be judged on
        wanted.insert(0, "val")
    bare = {kind_of(name): name for form in forms for name in matches(root, form, Choice())}
    name = next((bare[kind] for kind in wanted if kind in bare), None)
    return replace(parts, note=f"the pictures of {name!r} have no {lacks} and are not measured") if name else parts


def lowest(names: Sequence[str], share: float) -> list[int]:
    """The numbers of the share of the names that hash lowest: at least one of them, and never all.

    They are the same on every machine, and a name added later moves few others.
    """
    hashes = [hashlib.sha1(_encoded(name)).digest() for name in names]
    ranked = sorted(range(len(names)), key=hashes.__getitem__)
    return ranked[: min(max(1, round(share * len(ranked))), len(ranked) - 1)]


def _encoded(name: str) -> bytes:
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:  # JSON can write what no file is called; that it is missing is said when it is read
        return name.encode("utf-8", "surrogatepass")


def held_out(
    names: Sequence[str],
    share: float,
    fold: Fold | None,
    where: str,
    *,
    strata: Sequence[int] | None = None,
    groups: Sequence[str] | None = None,
) -> list[int]:
    """The numbers of the pictures that validate: one fold, or the share whose names hash lowest.

    Args:
        names: of the pictures.
        share: where there is no `fold`.
        fold: which one.
        where: they are, for errors.
        strata: a class of each picture: of each class its share. Not of pictures in groups where there is no fold.
        groups: of each picture; a group validates as a whole.

    Raises:
        TranseptError: there are too few pictures or groups.
    """
    if groups is not None and len(set(groups)) < 2:
        raise TranseptError(f"all pictures of {where} are in one group; it takes two, to learn from and to check")
    if fold is not None:
        return _fold(names, fold, where, strata, groups)
    if groups is not None:
        unique = list(dict.fromkeys(groups))
        chosen = {unique[i] for i in lowest(unique, share)}
        return [i for i, group in enumerate(groups) if group in chosen]
    members: dict[int, list[int]] = {}
    for i, stratum in enumerate([0] * len(names) if strata is None else strata):
        members.setdefault(stratum, []).append(i)
    return sorted(each[i] for each in members.values() for i in lowest([names[n] for n in each], share))


def _fold(
    names: Sequence[str], fold: Fold, where: str, strata: Sequence[int] | None, groups: Sequence[str] | None
) -> list[int]:
    # Takes seconds, and only folds need it.
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    what, count = ("pictures", len(names)) if groups is None else ("groups", len(set(groups)))
    classes = np.zeros(len(names), int) if strata is None else np.asarray(strata)
    frequent = int(np.bincount(classes).max(initial=0))
    if count < fold.of or frequent < fold.of:
        have = f"{count} {what}" if count < fold.of else f"no class of {fold.of} pictures"
        raise TranseptError(f"{where} has {have}, too few for {fold.of} folds; give fewer")
    order = np.array(sorted(range(len(names)), key=names.__getitem__))  # whatever order they were listed in
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(fold.of, shuffle=True, random_state=fold.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class of fewer pictures than folds is said by its own warning
        parts = list(splitter.split(order, classes[order], None if groups is None else np.asarray(groups)[order]))
    if not all(len(part) and len(rest) for rest, part in parts):
        raise TranseptError(f"the groups of {where} do not fill {fold.of} folds; give fewer")
    return sorted(order[parts[fold.number - 1][1]].tolist())


def refuse_folds(choice: Choice, data: str) -> None:
    """Raises `UsageError` where data that is drawn for each split is to be divided."""
    if choice.fold:
        raise UsageError(f"{data!r} is drawn for each split, so there is nothing to divide into folds; leave them out")


def say_unmeasured(classes: Sequence[str], data: str) -> None:
    """A warning where classes have nothing to be measured on."""
    if classes:
        verb = "class has" if len(classes) == 1 else "classes have"
        warn(
            f"{len(classes)} {verb} nothing to be measured on in {data!r}, and no score: "
            f"{listed(map(repr, classes), 10)}"
        )


def _walk(folder: Path, parts: Sequence[str], choice: Choice) -> Iterator[tuple[str, Path]]:
    before, mark, behind = parts[0].partition("{}")
    pattern = re.compile(re.escape(before) + ("(.+)" if mark else "()") + re.escape(behind), re.IGNORECASE)
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = pattern.fullmatch(entry.name)
        if not match or (mark and not kind_of(match[1]) and not _meant(match[1], choice)):
            continue
        inner = [(match[1], entry)] if len(parts) == 1 else _walk(entry, parts[1:], choice)
        for name, path in inner:
            yield name or match[1], path


def _undivided(name: str, data: str, choice: Choice, *, learns: bool) -> Parts:
    divided = choice.held_out or learns
    if choice.split in (None, WHOLE, name) or (choice.split == "val" and divided):
        held_out = learns or (divided and choice.split in (None, "val"))
        return Parts(name, name, held_out=held_out, fold=choice.fold if held_out else None)
    raise UsageError(
        f"{data!r} has no splits, so there is no {choice.split!r}; leave out --split, or give --split {WHOLE} to "
        "measure everything"
    )


def _pick(names: Collection[str], kind: Kind, asked: str | None, data: str) -> str | None:
    """The split of that kind, or the one that is asked for."""
    if asked is not None:
        return _named(asked, names, data)
    candidates = [name for name in names if kind_of(name) == kind]
    if len(candidates) > 1:  # VOC's trainval is train and val together
        candidates = [name for name in candidates if not name.lower().startswith("trainval")] or candidates
    if len(candidates) > 1:
        option = "--split" if kind == "test" else f"--{kind}_split NAME (eval: --split NAME)"
        raise UsageError(f"{data!r} has {listed(map(repr, sorted(candidates)))}, which are all {kind}; say {option}")
    return candidates[0] if candidates else None


def _named(asked: str, names: Collection[str], data: str) -> str:
    """The split of this name, or the only one of this kind."""
    if asked in names:
        return asked
    candidates = [name for name in names if name.lower() == asked.lower()]
    if not candidates and asked.lower() in NAMES:
        candidates = [name for name in names if kind_of(name) == asked.lower()]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise UsageError(f"{data!r} has {listed(map(repr, sorted(candidates)))}, which are all {asked}; name one")
    raise _no_split(asked, names, data)


def _no_split(asked: str, names: Collection[str], data: str) -> UsageError:
    return UsageError(f"{data!r} has no split {asked!r}; it has {listed(map(repr, sorted(names)), 10)}")


def _meant(name: str, choice: Choice) -> bool:
    return name.lower() in (each.lower() for each in choice.names)


def _noun(data: str) -> str:
    return "folder" if Path(data).expanduser().is_dir() else "data"


def _counted(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def _spread(counts: Mapping[str, int]) -> str:
    """How much there is of each class, or of the rarest and the most frequent one."""
    if not counts:
        return ""
    ranked = sorted(counts.items(), key=lambda pair: (pair[1], pair[0]))
    if len(ranked) <= _SHOWN_CLASSES:
        return f" to train on: {', '.join(f'{_quoted(name)} {count:,}' for name, count in ranked)}"
    (rare, least), (frequent, most) = ranked[0], ranked[-1]
    return f" to train on, from {_quoted(rare)} {least:,} to {_quoted(frequent)} {most:,}"


def _quoted(name: str) -> str:
    """A name that is a number in quotation marks, for a number of pictures follows it."""
    return f"'{name}'" if name.isdecimal() else name

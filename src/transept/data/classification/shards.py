"""WebDataset shards: tar files in which the files of a sample share a name, `n01440764_18.jpg`, `n01440764_18.cls`.

The `webdataset` library streams shards, shuffles what is in a buffer and hands whole shards to processes. How often a
sample is seen then depends on the number of processes and workers, and a stream cannot be entered in the middle. We
instead note once where in each tar the pictures lie. That makes of the shards an ordinary set, read with one seek for
each picture: shuffled as a whole, shared between processes to the sample, and resumed at the very sample. What is lost
is reading strictly in order, which matters on spinning disks and object stores; such shards belong on a local SSD
first. The library still says what patterns, names and endings mean.
"""

import json
import os
import re
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from glob import glob
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from transept.data.classification.image_set import ImageSet, ManyLabels, Paths, Read, classes_of
from transept.data.images import EXTENSIONS, BadImageError
from transept.data.index import modification, recall, remember
from transept.data.places import is_inside
from transept.data.splits import NAMES, kind_of
from transept.errors import TranseptError, UsageError
from transept.extras import install
from transept.files import open_regular, read_text

SHARDS = "wds:"
CLASSES = "classes.txt"
"""Beside the shards: the name of each class number, one a line."""
_MOST_CLASSES = 1_000_000
_COMMA = r",(?![^{}]*\})"
"""Not those inside braces."""
Labels = Literal["one", "many", "none"]
"""Of each picture; of none they are not looked at."""


class ShardSet(ImageSet):
    """Pictures inside uncompressed tar files."""

    def __init__(self, shards: Sequence[Path], samples: Sequence["Samples"]) -> None:
        self.shards = Paths(Path(), [str(shard) for shard in shards])
        root = os.path.commonpath([shard.parent for shard in shards])
        names = (
            f"{os.path.relpath(shard, root)}/{name}"
            for shard, part in zip(shards, samples, strict=True)
            for name in part.names
        )
        places = [
            (number, offset) for number, part in enumerate(samples) for offset in part.offsets
        ]  # shard, place of its first byte
        sizes = np.array([size for part in samples for size in part.sizes], np.int64)
        labels = [label for part in samples for label in part.labels]
        super().__init__(Paths(Path(root), names), labels, sizes=sizes, places=np.array(places, np.int64))

    def source(self, index: int) -> BinaryIO:
        assert self.places is not None
        assert self.sizes is not None
        shard, offset = self.places[index].tolist()
        try:
            with open_regular(self.shards[shard]) as file:
                file.seek(offset)
                return BytesIO(file.read(int(self.sizes[index])))
        except OSError as error:
            raise BadImageError(self.paths[index], f"cannot be read ({error.strerror or error})") from error


class MultiLabelShardSet(ManyLabels, ShardSet):
    """Pictures of any number of classes each, inside uncompressed tar files."""


@dataclass
class Samples:
    """The pictures of one shard, in its order."""

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    """Class numbers; or lists of numbers or names."""


def find_shards(pattern: str, *, multi_label: bool = False) -> tuple[list[str], Read]:
    """The names of the splits, none where the shards are not told apart, and what reads some of them.

    Args:
        pattern: `TRAIN,VAL`, `TRAIN,VAL,TEST`, or one pattern of shards without splits, or a folder of shards whose
            names say the split: `train-0000.tar`, `imagenet1k-validation-00.tar`. A pattern is a path with braces as in
            `train-{000..146}.tar`, or with `*` and `?`.

    A sample has one picture and its class number, in a file that ends in `.cls`, or as `label` in one that ends in
    `.json`. Classes are called by their numbers, or by the lines of a file `classes.txt` beside the shards.

    With `multi_label` it has a list of numbers or of names there, also an empty one, or as `labels` in the `.json`.

    Raises:
        TranseptError: no such shards, or on reading shards that are damaged, compressed, or lack pictures or classes.
        UsageError: a remote address, or `webdataset` is not installed.
    """
    folder = Path(pattern).expanduser()
    if folder.is_dir():
        shards = _by_split(folder)
    else:
        patterns = re.split(_COMMA, pattern)
        if len(patterns) > len(NAMES):
            raise UsageError(
                f"{SHARDS}{pattern} has {len(patterns)} patterns; give those of training, validation and test shards"
            )
        names = list(NAMES) if len(patterns) > 1 else [""]
        shards = {name: _expand(each) for name, each in zip(names, patterns, strict=False)}
    return [name for name in shards if name], partial(_read_shards, shards, multi_label)


def shard_pictures(pattern: str) -> ShardSet:
    """The pictures of shards, of all of them where it is a folder; whatever classes they have is not read.

    Raises:
        TranseptError: as `find_shards`.
        UsageError: as `find_shards`.
    """
    folder = Path(pattern).expanduser()
    patterns = [str(folder / "*.tar")] if folder.is_dir() else re.split(_COMMA, pattern)
    shards = [shard for each in patterns for shard in _expand(each)]
    with ThreadPoolExecutor() as pool:
        return ShardSet(shards, list(pool.map(partial(_samples, labels="none"), shards)))


def _by_split(folder: Path) -> dict[str, list[Path]]:
    """The word of each shard's name that says the split, to the shards; all in one where no name says it."""
    shards = _expand(str(folder / "*.tar"))
    by_split: dict[str, list[Path]] = {}
    for shard in shards:
        word = next((word for word in re.split(r"[^A-Za-z]+", shard.stem) if kind_of(word)), None)
        if word is not None:
            by_split.setdefault(word, []).append(shard)
    return by_split or {"": shards}


def _read_shards(
    shards: dict[str, list[Path]], multi_label: bool, names: list[str]
) -> tuple[list[str], list[ImageSet]]:
    with ThreadPoolExecutor() as pool:
        labels = "many" if multi_label else "one"
        samples = [list(pool.map(partial(_samples, labels=labels), shards[name])) for name in names]
    file = next(iter(shards.values()))[0].parent / CLASSES
    if multi_label:
        return _read_many_labels(file, [shards[name] for name in names], samples)
    classes = _classes(file, [part.labels for split in samples for part in split])
    return classes, [ShardSet(shards[name], split) for name, split in zip(names, samples, strict=True)]


def _read_many_labels(
    file: Path, shards: Sequence[Sequence[Path]], samples: Sequence[Sequence[Samples]]
) -> tuple[list[str], list[ImageSet]]:
    every = [labels for split in samples for part in split for labels in part.labels]
    kinds = {type(label) for labels in every for label in labels}
    if not kinds:
        raise TranseptError(f"no sample of {str(shards[0][0])!r} has a label; there is nothing to learn")
    if len(kinds) > 1:
        raise TranseptError(
            f"the shards beside {str(file)!r} have numbers and names as labels; make them one of the two"
        )
    if kinds == {int}:
        classes = _classes(file, [[max(labels)] for labels in every if labels], fewest=1)
    else:
        classes = _listed_names(file) or classes_of({label for labels in every for label in labels})
    sets: list[ImageSet] = []
    for tars, parts in zip(shards, samples, strict=True):
        labels = [
            frozenset(classes[label] if isinstance(label, int) else label for label in labels)
            for part in parts
            for labels in part.labels
        ]
        unknown = frozenset().union(*labels) - set(classes)
        if unknown:
            raise TranseptError(f"the label {min(unknown)!r} of {str(tars[0])!r} is not in {str(file)!r}; add it there")
        sets.append(MultiLabelShardSet(tars, parts).labelled(labels, classes))
    return classes, sets


def _expand(pattern: str) -> list[Path]:
    try:
        from webdataset.shardlists import expand_urls  # an extra
    except ModuleNotFoundError as error:
        raise UsageError(f"shards need the package 'webdataset': {install('data')}") from error
    if re.match(r"(?!file:)\w+:", pattern):
        raise UsageError(f"{pattern!r} is no local file; copy the shards to a local disk and give their paths")
    shards: list[Path] = []
    for url in expand_urls(pattern.removeprefix("file:")):
        path = str(Path(url).expanduser())
        matches = sorted(glob(path)) if re.search(r"[*?\[]", path) else [path]  # noqa: PTH207 - of any anchor
        if not matches or not Path(matches[0]).is_file():
            raise TranseptError(f"no shard matches {url!r}; give paths like '{SHARDS}train-{{000..146}}.tar'")
        shards += map(Path, matches)
    return shards


def _samples(shard: Path, *, labels: Labels) -> Samples:
    kind = "" if labels == "one" else f", {labels} labels"
    key = f"shard {shard.resolve()} of {shard.stat().st_size} bytes{kind}"
    modified = modification(shard)
    known = recall(key)
    if known is not None and modified is not None and known["modified"] == modified:
        return Samples(**known["samples"])
    samples = _scan(shard, labels=labels)
    if modified is not None:
        remember(key, {"modified": modified, "samples": vars(samples)})
    return samples


def _scan(shard: Path, *, labels: Labels) -> Samples:
    from webdataset.tariterators import base_plus_ext  # an extra

    samples, size = Samples(), shard.stat().st_size
    current, picture, label = None, None, None

    def finish() -> None:
        if current is None or (picture is None and (label is None or labels == "none")):
            return  # metadata of the shard, or nothing yet
        if picture is None or label is None:
            lacking = "picture" if picture is None else "class (.cls, or 'label' in .json)"
            raise TranseptError(f"the sample {current!r} of {str(shard)!r} has no {lacking}")
        samples.names.append(picture.name)
        samples.offsets.append(picture.offset_data)
        samples.sizes.append(picture.size)
        samples.labels.append(label)

    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                key, endings = base_plus_ext(member.name)
                if not member.isfile() or key is None or endings is None:
                    continue
                odd = member.name.startswith("/") or ".." in member.name
                if odd and not is_inside(shard.parent / member.name, shard.parent):
                    raise TranseptError(
                        f"{str(shard)!r} has the member {member.name!r}, whose name leads out of the archive; write it "
                        "anew with plain names"
                    )
                if key != current:
                    finish()
                    current, picture, label = key, None, 0 if labels == "none" else None
                if member.offset_data + member.size > size:
                    raise TranseptError(f"{str(shard)!r} is cut off; fetch it again")
                ending = "." + endings.lower().rpartition(".")[2]
                if ending in EXTENSIONS:
                    if picture is not None:
                        raise TranseptError(f"the sample {key!r} of {str(shard)!r} has two pictures; it needs one")
                    picture = member
                elif ending == ".cls" or (ending == ".json" and label is None):
                    number = 0 if labels == "none" else _label(tar, member, ending, multi_label=labels == "many")
                    label = label if number is None else number
            finish()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise TranseptError(f"{str(shard)!r} is no uncompressed tar file, or is damaged ({error})") from error
    if not samples.names:
        wanted = "a picture" if labels == "none" else "a picture and a .cls file of the same name"
        raise TranseptError(f"{str(shard)!r} has no samples; a sample is {wanted}")
    return samples


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, ending: str, *, multi_label: bool) -> Any:
    file = tar.extractfile(member)
    assert file is not None
    text = file.read()
    try:
        page: Any = json.loads(text)
        keys = ("labels", "label") if multi_label else ("label",)
        inside = (page[key] for key in keys if key in page) if isinstance(page, dict) else iter(())
        value = page if ending == ".cls" else next(inside, None)
        if value is not None and not (_is_list_of_labels(value) if multi_label else _is_number(value)):
            raise ValueError(value)
    except ValueError as error:
        shown = text[:20].decode(errors="replace")
        numbers = f"from 0 to {_MOST_CLASSES - 1}"
        wanted = f"a class is a number {numbers}; for lists give multi_label"
        wanted = f"labels are a list of numbers {numbers}, or of names" if multi_label else wanted
        raise TranseptError(f"{member.name!r} of {str(tar.name)!r} holds {shown!r}; {wanted}") from error
    return value


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST_CLASSES


def _is_list_of_labels(value: Any) -> bool:
    names = isinstance(value, list) and all(isinstance(each, str) and each.strip() for each in value)
    return names or (isinstance(value, list) and all(map(_is_number, value)))


def _listed_names(file: Path) -> list[str]:
    """Those of `classes.txt`; none where it is not there."""
    lines = read_text(file).splitlines() if os.path.lexists(file) else []
    return [line.strip() for line in lines if line.strip()]


def _classes(names: Path, labels: Sequence[Sequence[int]], fewest: int = 2) -> list[str]:
    largest = max(max(part) for part in labels)
    if os.path.lexists(names):
        classes = _listed_names(names)
        if len(set(classes)) != len(classes) or len(classes) <= largest:
            raise TranseptError(
                f"{str(names)!r} names {len(set(classes))} classes in {len(classes)} lines, but the shards have the "
                f"class number {largest}; give a line for each number from 0 on"
            )
        return classes
    if largest + 1 < fewest:
        raise TranseptError("the shards have one class only, number 0; a classifier needs two or more")
    return [str(number) for number in range(largest + 1)]

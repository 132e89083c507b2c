"""What a COCO file says before its pictures are read: where they are, its categories, and how it is divided in two."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

from transept.data.detection.annotations import Annotations
from transept.data.detection.coco_file import read_categories, read_coco
from transept.data.detection.formats.content import Annotated
from transept.data.splits import Choice, Fold, held_out, kind_of, matches
from transept.errors import TranseptError, warn
from transept.files import is_file

_FOLDERS = ("{}", "images/{}", "{}/images", "images")
_LOOKED_FOR = 20
"""So many pictures are looked for to find their folder."""


class Classes(NamedTuple):
    """In the order of a model."""

    ids: list[int]
    names: list[str]


@dataclass(slots=True)
class Coco:
    """A COCO file, or a part of one."""

    file: Path
    folder: Path
    """Of its pictures."""
    content: dict[str, Any]
    """Its `annotations` in columns."""
    names: dict[int, str]
    """Its categories, by their ids, ascending."""
    objects: Counter[str]
    """Annotations of each category, by its id as text."""
    searched: Sequence[Path]
    """Folders that its pictures were looked for in."""

    @classmethod
    def read(cls, file: Path, root: Path, name: str, *, masks: bool) -> Self:
        """The file of a data set at `root`, whose pictures are in a folder of this name, or near it.

        Raises:
            TranseptError: it is no COCO file.
        """
        content = read_coco(file, masks=masks)
        folders = _picture_folders(file, root, name)
        return cls._made(file, _picture_folder(folders, content), content, folders)

    @classmethod
    def of(cls, found: Annotated, *, masks: bool) -> Self:
        """Annotations of another form."""
        annotations = Annotations(found.content["annotations"], masks=masks)
        return cls._made(found.file, found.folder, {**found.content, "annotations": annotations}, [found.folder])

    @classmethod
    def _made(cls, file: Path, folder: Path, content: dict[str, Any], searched: Sequence[Path]) -> Self:
        categories = dict(zip(*read_categories(content["categories"], file), strict=True))
        return cls(file, folder, content, categories, _count(content), searched)

    def has_objects(self, category: int) -> bool:
        return self.objects[str(category)] > 0

    def counts(self) -> dict[str, int]:
        """Objects of each class."""
        counts: Counter[str] = Counter()
        for category, name in self.names.items():
            counts[name] += self.objects[str(category)]
        return dict(counts)

    def without_objects(self) -> list[str]:
        return [name for category, name in self.names.items() if not self.has_objects(category)]

    def divide(self, share: float, fold: Fold | None = None) -> tuple["Coco", "Coco"]:
        """Training and validation, see `held_out`, of pictures with and without objects each its share.

        Raises:
            TranseptError: fewer than two pictures have objects.
        """
        images = {_key(entry.get("id")): str(entry.get("file_name")) for entry in _dicts(self.content["images"])}
        shown = set(map(_key, self.content["annotations"].image_ids))
        with_objects = sum(number in shown for number in images)
        if with_objects < 2:
            raise TranseptError(
                f"{str(self.file)!r} has {with_objects} pictures with objects; it needs two, to learn from and to check"
            )
        numbers, strata = list(images), [int(number in shown) for number in images]
        taken = held_out(list(images.values()), share, fold, repr(str(self.file)), strata=strata)
        measured = {numbers[i] for i in taken}
        return self._part(measured, inside=False), self._part(measured, inside=True)

    def fit(self, known: Sequence[str] | None, data: str) -> Classes:
        """Give the file the classes of a model, by their names; those that it lacks have no objects.

        Raises:
            TranseptError: there are objects of a class that the model does not know.
        """
        if known is None or list(known) == list(self.names.values()):
            return Classes(list(self.names), list(self.names.values()))
        drop_grouping(self)
        self.check_names()
        odd = [name for number, name in self.names.items() if name not in known and self.has_objects(number)]
        if odd:
            raise TranseptError(
                f"the classes of {data!r} are not the model's {len(known)}: {odd[0]!r} is only in the data"
            )
        numbers = {name: number for number, name in self.names.items()}
        if list(known) == list(self.names.values()):
            return Classes(list(self.names), list(self.names.values()))
        fresh = max(self.names) + 1
        ids = [numbers[name] if name in numbers else fresh + i for i, name in enumerate(known)]
        self.set_names(dict(sorted(zip(ids, known, strict=True))))
        return Classes(ids, list(known))

    def check_names(self) -> None:
        """Raises `TranseptError` where two categories have one name: their objects would be told apart by nothing."""
        first: dict[str, int] = {}
        for number, name in self.names.items():
            if name in first:
                raise TranseptError(
                    f"{str(self.file)!r} gives the name {name!r} to the categories {first[name]} and {number}; merge "
                    "them, or rename one"
                )
            first[name] = number

    def set_names(self, names: dict[int, str]) -> None:
        """Other categories."""
        if names == self.names:
            return
        self.names = names
        self.content = self.content | {"categories": [{"id": number, "name": name} for number, name in names.items()]}

    def _part(self, images: set[str], *, inside: bool) -> "Coco":
        annotations = self.content["annotations"]
        content = self.content | {
            "images": [
                entry
                for entry in self.content["images"]
                if (isinstance(entry, dict) and _key(entry.get("id")) in images) == inside
            ],
            "annotations": annotations.take(
                [i for i, number in enumerate(annotations.image_ids) if (_key(number) in images) == inside]
            ),
        }
        return replace(self, content=content, objects=_count(content))


def unite(train: Coco, val: Coco) -> None:
    """Give both files the categories of either.

    Raises:
        TranseptError: an id has two names, a name two ids, or there are objects to measure that nothing is learnt of.
    """
    drop_grouping(train, val)
    for each in (train, val):
        each.check_names()
    for number in sorted(train.names.keys() & val.names.keys()):
        if train.names[number] != val.names[number]:
            raise TranseptError(
                f"category {number} is {train.names[number]!r} in {str(train.file)!r} and {val.names[number]!r} in "
                f"{str(val.file)!r}; both must have the same categories"
            )
    known = {name: number for number, name in train.names.items()}
    for number in sorted(val.names.keys() - train.names.keys()):
        name = val.names[number]
        if name in known:
            raise TranseptError(
                f"{name!r} is category {known[name]} in {str(train.file)!r} and {number} in {str(val.file)!r}; both "
                "must have the same categories"
            )
        if val.has_objects(number):
            raise TranseptError(
                f"the category {number} ({name!r}) is in {str(val.file)!r} only, so nothing is learnt of it; add "
                f"pictures of it to {str(train.file)!r}, or remove it"
            )
    names = dict(sorted((train.names | val.names).items()))
    train.set_names(names)
    val.set_names(names)


def drop_grouping(*files: Coco) -> None:
    """Take Roboflow's first category out: it has no objects and only groups the others, which name it."""
    said = False
    for file in files:
        name = file.names.get(0)
        if name is None or len(file.names) < 2 or any(each.has_objects(0) for each in files):
            continue
        others = [entry for entry in _dicts(file.content["categories"]) if _key(entry.get("id")) != "0"]
        if all(entry.get("supercategory") == name for entry in others):
            file.set_names({number: each for number, each in file.names.items() if number != 0})
            if not said:
                warn(
                    f"{str(file.file)!r}: the category 0, {name!r}, has no objects and only groups the others; no class"
                )
            said = True


def _picture_folders(file: Path, root: Path, name: str) -> list[Path]:
    candidates = [path for form in _FOLDERS for path in _named(root, form, name)]
    return [folder for folder in dict.fromkeys((*candidates, root, file.parent)) if folder.is_dir()]


def _picture_folder(folders: Sequence[Path], content: dict[str, Any]) -> Path:
    names = [entry.get("file_name") for entry in islice(_dicts(content["images"]), _LOOKED_FOR)]
    for folder in folders:
        if any(isinstance(each, str) and is_file(folder / each) for each in names):
            return folder
    return folders[0]


def _named(root: Path, form: str, name: str) -> list[Path]:
    """The folders of this form for a split's name, then those for other names of its kind."""
    found = matches(root, form, Choice(split=name))
    same = [each for each in found if each.lower() == name.lower() or not each]
    return [found[each] for each in [*same, *(each for each in found if each not in same and _alike(each, name))]]


def _alike(one: str, other: str) -> bool:
    return kind_of(one) is not None and kind_of(one) == kind_of(other)


def _count(content: dict[str, Any]) -> Counter[str]:
    return Counter(map(_key, content["annotations"].category_ids))


def _key(number: Any) -> str:
    """Equal for 3, 3.0 and '3'."""
    return str(int(number)) if isinstance(number, float) and number.is_integer() else str(number)


def _dicts(entries: list[Any]) -> Iterator[dict[str, Any]]:
    return (entry for entry in entries if isinstance(entry, dict))

"""YOLO's text files: `data.yaml`, and a file of lines `class x y width height` or `class x1 y1 x2 y2 ...` a picture."""

import os
from pathlib import Path
from typing import Any

from transept.data.detection.formats.content import SPLITS, Annotated, Contents, Shape, polygon, upright_size
from transept.data.images import EXTENSIONS
from transept.data.places import is_inside
from transept.errors import TranseptError, warn
from transept.files import files_below, is_there, read_text, read_yaml


def read_yolo(root: Path) -> dict[str, Annotated] | None:
    """Sets whose YAML file names the classes, or `classes.txt`, a line each, beside a folder `labels` or in it.

    Pictures lie where it says (`train: images/train`, a list `train.txt`, or several of them), or in `images/train`,
    `train/images` or `images`; the labels in folders called `labels` instead of `images`. A picture with an empty label
    file, or with none, has no objects. A `test:` that leads nowhere is passed over with a word: exports always name it.

    Raises:
        TranseptError: a file cannot be read, `train:` or `val:` leads nowhere or to no picture, or a line is no box or
            polygon.
    """
    pages = {file: page for file in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]) if (page := _page(file))}
    if not pages:
        lists = (root / "classes.txt", root / "labels" / "classes.txt")
        file = next((each for each in lists if os.path.lexists(each)), None)
        if file is None or not any(_is_label(each.relative_to(root)) for each in files_below(root)):
            return None
        names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
        pages = {file: {"names": names}}
    if len(pages) > 1:
        raise TranseptError(f"{str(root)!r} has several YAML files with 'names': {', '.join(f.name for f in pages)}")
    file, page = next(iter(pages.items()))
    contents = Contents(file, root, _names(page["names"], file))
    places = _places(root, page, file)
    if not places:
        raise TranseptError(
            f"{str(file)!r} names no folder of pictures that is there, and {str(root)!r} has no images/"
        )
    pictures = {split: [each for one in many for each in _pictures(one, root)] for split, many in places.items()}
    for split, paths in pictures.items():
        if not paths and split != "test":
            where = " and ".join(repr(str(place)) for place in places[split])
            raise TranseptError(f"{where} of {str(file)!r} has no pictures; put them there, or take its line out")
    for split, paths in pictures.items():
        for path in paths:
            _add(contents, split, path, root)
    return contents.finish()


def _is_label(file: Path) -> bool:
    return file.suffix == ".txt" and file.name != "classes.txt" and "labels" in file.parts


def _pictures(place: Path, root: Path) -> list[Path]:
    """Those of a folder, or of a list of paths from the data folder."""
    if place.is_dir():
        return sorted(each for each in files_below(place) if each.suffix.lower() in EXTENSIONS)
    names = [line.strip() for line in read_text(place).splitlines() if line.strip()]
    paths = [_ends_in(root, name) or root / name for name in names]
    lost = next((name for name, path in zip(names, paths, strict=True) if not is_inside(path, root)), None)
    if lost is not None:
        raise TranseptError(
            f"{str(place)!r} lists {lost!r}, which is outside of the data folder {str(root)!r}; put it or a link to it "
            "there"
        )
    return paths


def _page(file: Path) -> dict[str, Any] | None:
    page = read_yaml(file)
    return page if isinstance(page, dict) and page.get("names") else None


def _names(names: Any, file: Path) -> list[str]:
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise TranseptError(f"{str(file)!r} numbers its {len(names)} 'names' {list(names)}; count from 0")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list):
        raise TranseptError(f"{str(file)!r} has 'names' that are neither a list nor numbered")
    return [str(name) for name in names]


def _places(root: Path, page: dict[str, Any], file: Path) -> dict[str, list[Path]]:
    """The folders or lists of pictures by split."""
    found: dict[str, list[Path]] = {}
    lost: dict[str, str] = {}
    for name, split in SPLITS.items():
        if split in found:
            continue
        said = page.get(name)
        parts = [part for part in (said if isinstance(said, list) else [said]) if part and isinstance(part, str)]
        named = {part: _said(root, page.get("path"), part) for part in parts}
        missing = next((part for part, place in named.items() if place is None), None)
        usual = next((place for place in (root / "images" / name, root / name / "images") if is_there(place)), None)
        if named and missing is None:
            found[split] = [place for place in named.values() if place]
        elif usual and len(named) < 2:
            found[split] = [usual]
            if missing:
                warn(f"{str(file)!r} has the line '{name}: {missing}', which leads nowhere; {str(usual)!r} is taken")
        elif missing:
            lost[split] = f"{name}: {missing}"
    for split, line in lost.items():
        if split in found:
            continue
        sentence = f"{str(file)!r} has the line {line!r}, and nothing is there in {str(root)!r}"
        if split == "test":
            warn(f"{sentence}; its test pictures are passed over")
        else:
            raise TranseptError(f"{sentence}; put the pictures there, correct the line, or take it out")
    return found or ({"": [root / "images"]} if (root / "images").is_dir() else {})


def _said(root: Path, path: Any, name: str) -> Path | None:
    """What a line leads to, from the folder that `path` names where that is in the data folder, too."""
    return (_ends_in(root, f"{path}/{name}") if isinstance(path, str) else None) or _ends_in(root, name)


def _ends_in(root: Path, name: str) -> Path | None:
    """What a path leads to within the data folder, by its end: those of exports are often of another machine."""
    parts = [part for part in Path(name.replace("\\", "/")).parts if part not in ("..", "/")]
    places = (root.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((place for place in places if is_there(place)), None)


def _add(contents: Contents, split: str, picture: Path, root: Path) -> None:
    name = picture.relative_to(root)
    size = upright_size(picture)
    image = contents.add_image(split, name.as_posix(), size)
    parts = list(name.with_suffix(".txt").parts)
    turn = max((i for i, part in enumerate(parts[:-1]) if part == "images"), default=None)
    if turn is not None:
        parts[turn] = "labels"
    labels = root.joinpath(*parts)
    is_missing = not os.path.lexists(labels)
    if size is None or is_missing:
        contents.left_out["label files that are missing, of pictures taken to have no objects"] += is_missing
        return
    for number, line in enumerate(read_text(labels).splitlines(), 1):
        if line.strip():
            place = f"{'/'.join(parts)}:{number}"
            label, shape = _shape(line.split(), size, place)
            contents.add_object(split, image, label, shape, place)


def _shape(fields: list[str], size: tuple[int, int], place: str) -> tuple[int, Shape]:
    height, width = size
    try:
        label, *values = map(float, fields)
    except ValueError:
        raise TranseptError(f"{place} holds {' '.join(fields)[:60]!r}; a line has numbers alone") from None
    if len(values) == 4:
        x, y, across, down = values
        box = [(x - across / 2) * width, (y - down / 2) * height, across * width, down * height]
        shape = Shape(box)
    elif len(values) >= 6 and len(values) % 2 == 0:
        shape = polygon((x * width, y * height) for x, y in zip(values[::2], values[1::2], strict=True))
    else:
        raise TranseptError(
            f"{place} has {len(fields)} numbers; a line is 'class x y width height' or 'class x1 y1 x2 y2 x3 y3 ...'"
        )
    return int(label) if label.is_integer() else -1, shape

"""Pascal VOC's XML, a file a picture."""

import os
from pathlib import Path
from xml.etree import ElementTree

from transept.data.detection.formats.content import (
    SPLITS,
    Annotated,
    Contents,
    Shape,
    numbers_of,
    picture_beside,
    read_xml,
)
from transept.data.places import is_inside
from transept.errors import TranseptError
from transept.files import files_below, read_text

_SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(root: Path) -> dict[str, Annotated] | None:
    """`Annotations/*.xml` with pictures in `JPEGImages/` and splits in `ImageSets/Main/*.txt`, or files by pictures.

    Boxes have the numbers of their first and last pixels, counted from 1. Where a set has a 0 or decimal points (CVAT,
    Datumaro), or names Label Studio, its tool wrote the borders instead, counted from 0. Objects marked `difficult` are
    treated as crowds, as VOC's own evaluation does.

    Raises:
        TranseptError: a file cannot be read, or a box has no numbers.
    """
    files = _files(root)
    missing = {file for names in files.values() for file in names if not os.path.lexists(file)}
    trees = {
        file: ElementTree.Element("annotation") if file in missing else read_xml(file)
        for names in files.values()
        for file in names
    }
    if not any(tree.tag == "annotation" for tree in trees.values()):
        return None
    folder = root / "Annotations" if (root / "Annotations").is_dir() else root
    contents = Contents(folder, root)
    if missing:  # Datumaro writes none for a picture without objects
        contents.left_out["XML files that are missing, of pictures taken to have no objects"] += len(missing)
    boxes = {
        (file, number): numbers_of(_bounds(element, file), _SIDES, repr(str(file)))
        for file, tree in trees.items()
        for number, element in enumerate(tree.iter("object"), 1)
    }
    decimal = any("." in (element.text or "") for tree in trees.values() for element in tree.iter("xmin"))
    label_studio = any(tree.findtext("owner/name") == "Label Studio" for tree in trees.values())
    first = 0 if decimal or label_studio or any(min(box[:2]) < 1 for box in boxes.values()) else 1
    if not first:
        why = "as Label Studio writes them" if label_studio else "as some have a 0 or decimal points"
        contents.taken[f"boxes counted from 0, {why}"] += len(boxes)
    for split, names in files.items():
        for file in names:
            tree = trees[file]
            image = contents.add_image(split, _picture(root, file, tree), _size(tree))
            for number, element in enumerate(tree.iter("object"), 1):
                x1, y1, x2, y2 = boxes[file, number]
                shape = Shape([x1 - first, y1 - first, x2 - x1 + first, y2 - y1 + first])
                difficult = (element.findtext("difficult") or "0").strip() == "1"
                contents.taken["objects marked difficult, neither learnt nor counted as misses"] += difficult
                label = (element.findtext("name") or "").strip()
                place = f"{file.relative_to(root).as_posix()}:object {number}"
                contents.add_object(split, image, label, shape, place, crowd=difficult)
    contents.taken = +contents.taken
    return contents.finish()


def _files(root: Path) -> dict[str, list[Path]]:
    folder = root / "Annotations"
    if not folder.is_dir():
        found = {split: sorted((root / name).glob("*.xml")) for name, split in SPLITS.items()}
        return {split: files for split, files in found.items() if files}
    lists = {SPLITS.get(file.stem): file for file in sorted((root / "ImageSets" / "Main").glob("*.txt"))}
    lists = {split: file for split, file in lists.items() if split}
    if not lists:
        return {"": sorted(file for file in files_below(folder) if file.suffix.lower() == ".xml")}
    # A line is a name, in lists of a class with 1 or -1 behind it.
    names = {
        split: [line.split()[0] for line in read_text(file).splitlines() if line.strip()]
        for split, file in lists.items()
    }
    for split, listed in names.items():
        if not listed and split != "test":
            raise TranseptError(f"{str(lists[split])!r} lists no pictures; write their names in it, or take it away")
        lost = next((name for name in listed if not is_inside(folder / f"{name}.xml", root)), None)
        if lost is not None:
            raise TranseptError(
                f"{str(lists[split])!r} lists {lost!r}, which is outside of the data folder {str(root)!r}; put the "
                "picture and its XML file there"
            )
    return {split: [folder / f"{name}.xml" for name in listed] for split, listed in names.items()}


def _bounds(element: ElementTree.Element, file: Path) -> ElementTree.Element:
    bounds = element.find("bndbox")
    if bounds is None:
        raise TranseptError(f"{str(file)!r} has an object without a 'bndbox'; add it")
    return bounds


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    sides = [tree.findtext(f"size/{name}") or "0" for name in ("height", "width")]
    if not all(side.strip().isdigit() and int(side) for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def _picture(root: Path, file: Path, tree: ElementTree.Element) -> str:
    """From the data folder: the picture that is called as the file, for `filename` is often that of a former place."""
    stem = file.relative_to(root / "Annotations").with_suffix("") if (root / "Annotations") in file.parents else None
    places = [root / folder / stem for folder in ("JPEGImages", "images")] if stem else [file.with_suffix("")]
    found = next((picture for place in places if (picture := picture_beside(place))), None)
    if found is None:
        name = tree.findtext("filename") or f"{file.stem}.jpg"
        return (places[0].parent / name).relative_to(root).as_posix() if not Path(name).is_absolute() else name
    return found.relative_to(root).as_posix()

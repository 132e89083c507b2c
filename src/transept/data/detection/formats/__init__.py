"""Annotations of boxes and polygons in other forms than COCO's, each read into the content of a COCO file."""

from collections.abc import Callable
from pathlib import Path

from transept.data.detection.formats import cvat, label_studio, labelme, voc, yolo
from transept.data.detection.formats.content import Annotated
from transept.errors import TranseptError

_Read = Callable[[Path], dict[str, Annotated] | None]

FORMATS: dict[str, _Read] = {
    "YOLO": yolo.read_yolo,
    "Pascal VOC": voc.read_voc,
    "CVAT": cvat.read_cvat,
    "Label Studio": label_studio.read_label_studio,
    "LabelMe": labelme.read_labelme,
}
"""Each finds its files in a folder and reads them; None where there are none."""


def find_annotations(root: Path) -> dict[str, Annotated] | None:
    """The annotations in a folder by split: `train`, `val`, `test`, other names as they are, or "" where there is none.

    None where the folder holds none of these formats.

    Raises:
        TranseptError: a file cannot be read, or there are files of several formats.
    """
    found = {name: splits for name, read in FORMATS.items() if (splits := _read(root, name, read)) is not None}
    if len(found) > 1:
        raise TranseptError(f"{str(root)!r} holds annotations of {' and '.join(found)}; keep those of one of them")
    return next(iter(found.values()), None)


def _read(root: Path, name: str, read: _Read) -> dict[str, Annotated] | None:
    try:
        return read(root)
    except TranseptError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # Readers name the place where they can; a page may be built in more ways than they think of.
        raise TranseptError(
            f"{str(root)!r} has an annotation that is not as {name} writes it ({error!r}); export it again"
        ) from error

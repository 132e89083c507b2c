"""The classes behind the values or colours of label masks, and where a folder of masks says so."""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from transept.data.images import BadImageError
from transept.errors import TranseptError
from transept.files import read_text
from transept.ops.masks import IGNORE_LABEL
from transept.style import Color, drawing_color

_REFUSED = 254
# Names that lists give to what no annotator labelled.
_UNLABELED = {"unlabeled", "unlabelled", "void", "ignore", "ignored", "unknown"}
CLASS_FILES = (
    "classes.txt",
    "class_names.txt",
    "objectInfo150.csv",
    "objectInfo150.txt",
    "palette.txt",
    "class_dict.csv",
    "labelmap.txt",
)


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """Values and colours of masks to classes 0..n-1 or `IGNORE_LABEL`."""

    classes: list[str]
    palette: list[Color]
    """A colour for each class: the masks' own, or one to draw it with."""
    values: dict[int, int]
    """The classes of masks that hold indices."""
    colors: dict[Color, int]
    """The classes of masks that hold colours; empty where the set has none."""
    others_ignored: bool = False
    """A value or colour that is not listed is `IGNORE_LABEL`; otherwise it is refused."""

    def encode(self, mask: Image.Image, path: Path) -> np.ndarray:
        """The classes of a mask, `H W`, 8 bit.

        Raises:
            BadImageError: a value or colour that the table lacks, colours where indices are expected, or numbers that
                are no labels.
        """
        if mask.mode in ("RGB", "RGBA") or (mask.mode == "P" and self.colors):
            return self._encode_colors(mask, path)
        if mask.mode not in ("1", "L", "P", "I") and not mask.mode.startswith("I;16"):
            raise BadImageError(path, f"is of Pillow's mode {mask.mode!r}; masks are single-channel PNGs of indices")
        values = np.asarray(mask).astype(np.uint8) if mask.mode == "1" else np.asarray(mask)
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < 2**16:
            raise BadImageError(path, f"holds the value {values.min() if values.min() < 0 else values.max()}; no label")
        classes = self._of_value[values]
        if (classes == _REFUSED).any():
            odd, counts = np.unique(values[classes == _REFUSED], return_counts=True)
            codes = sorted(self.values)
            span = f"{codes[0]} to {codes[-1]}" if codes[-1] - codes[0] == len(codes) - 1 else f"{len(codes)} values"
            raise BadImageError(
                path,
                f"holds the value {odd[0]} in {_pixels(int(counts[0]))}, which the class list lacks (it has {span}; "
                f"{IGNORE_LABEL} is ignored); mend the mask or the list",
            )
        return classes

    def _encode_colors(self, mask: Image.Image, path: Path) -> np.ndarray:
        if not self.colors:
            raise BadImageError(
                path,
                "is a colour picture where class indices are expected (give a palette.txt of lines 'R G B name', "
                "or save indices)",
            )
        rgb = np.asarray(mask.convert("RGB")).astype(np.int32)
        codes = rgb @ (2**16, 2**8, 1)
        classes = self._of_color[codes]
        if (classes == _REFUSED).any():
            odd, counts = np.unique(codes[classes == _REFUSED], return_counts=True)
            color = (int(odd[0]) >> 16, int(odd[0]) >> 8 & 255, int(odd[0]) & 255)
            raise BadImageError(
                path, f"holds the colour {color} in {_pixels(int(counts[0]))}, which the palette lacks; add or mend it"
            )
        return classes

    def of_black_and_white(self, pixels: np.ndarray) -> "LabelTable | None":
        """The table of masks that hold 0 and 255 alone, where it is plain what 255 means; else None.

        255 is ignored in masks of indices. Where no index but 0 occurs, it is white: the palette's, where it has black
        and white, or the second of two classes.

        Args:
            pixels: of each class, 256 of them, as this table reads the masks.
        """
        black, white = self.colors.get((0, 0, 0)), self.colors.get((255, 255, 255))
        if self.others_ignored or 255 in self.values or not pixels[IGNORE_LABEL]:
            return None
        # What is called unlabelled is ignored, too, so that its pixels cannot be told from those of 255.
        first = self.values.get(0)
        if first is None or pixels[:IGNORE_LABEL].sum() != (0 if first == IGNORE_LABEL else pixels[first]):
            return None
        if black is not None and white is not None:
            return replace(self, values={0: black, 255: white})
        if not self.colors and self.values == {0: 0, 1: 1}:
            return replace(self, values={0: 0, 255: 1})
        return None

    @cached_property
    def _of_value(self) -> np.ndarray:
        table = np.full(2**16, IGNORE_LABEL if self.others_ignored else _REFUSED, np.uint8)
        table[IGNORE_LABEL] = IGNORE_LABEL
        for value, label in self.values.items():
            table[value] = label
        return table

    @cached_property
    def _of_color(self) -> np.ndarray:
        table = np.full(2**24, IGNORE_LABEL if self.others_ignored else _REFUSED, np.uint8)
        for (red, green, blue), label in self.colors.items():
            table[red << 16 | green << 8 | blue] = label
        return table


def make_table(
    entries: Iterable[tuple[int, str, Color | None]], where: str, *, reduce_zero_label: bool = False
) -> LabelTable:
    """The table of (value, name, colour): classes count up in the order of the values, without the unlabelled ones.

    Args:
        entries: colours in all of them or in none.
        where: what errors name.
        reduce_zero_label: ADE20K's way: value 0 is ignored, whatever it is called, and k is class k - 1.

    Raises:
        TranseptError: a value, name or colour given twice, a value out of 0..65535, or no class or too many.
    """
    classes: list[str] = []
    palette: list[Color] = []
    values: dict[int, int] = {}
    colors: dict[Color, int] = {}
    for value, name, color in sorted(entries, key=lambda entry: entry[0]):
        if not 0 <= value < 2**16:
            raise TranseptError(f"{where} gives {name!r} the value {value}; values are 0 to 65535")
        if value in values:
            raise TranseptError(f"{where} gives the value {value} twice")
        if color in colors:
            raise TranseptError(f"{where} gives the colour {color} twice")
        ignored = name.lower() in _UNLABELED or (reduce_zero_label and value == 0)
        if not ignored and name in classes:
            raise TranseptError(f"{where} names {name!r} twice")
        label = values[value] = IGNORE_LABEL if ignored else len(classes)
        if color is not None:
            colors[color] = label
        if not ignored:
            classes.append(name)
            palette.append(color or drawing_color(label))
    if reduce_zero_label:
        values[0] = IGNORE_LABEL
    if not 0 < len(classes) < _REFUSED:
        raise TranseptError(f"{where} names {len(classes)} classes; there must be 1 to {_REFUSED - 1}")
    return LabelTable(classes=classes, palette=palette, values=values, colors=colors)


def table_of_names(names: Sequence[str], where: str, *, reduce_zero_label: bool = False) -> LabelTable:
    """Names in the order of the values, which begin at 0, or at 1 with `reduce_zero_label`."""
    numbered = enumerate(names, start=int(reduce_zero_label))
    return make_table(((i, name, None) for i, name in numbered), where, reduce_zero_label=reduce_zero_label)


def read_table(file: Path, *, reduce_zero_label: bool | None = None) -> LabelTable:
    """The table in one of `CLASS_FILES`.

    - `classes.txt`, LabelMe's `class_names.txt`: lines `value name`, or names alone, the first for value 0 (1 with
      `reduce_zero_label`).
    - `objectInfo150.csv` or `.txt`: ADE20K's, where 0 is unlabelled.
    - `palette.txt`: lines `R G B name`; `class_dict.csv`: `name,r,g,b`; `labelmap.txt`: CVAT's `name:r,g,b::`, or
      datumaro's `name:::` in VOC's colours. Masks may hold these colours, or the number of the line, from 0.

    Names such as `unlabeled` and `void` stand for pixels to ignore.

    Raises:
        TranseptError: the file is missing, or a line is not of its form.
    """
    lines = read_text(file).splitlines()
    where = repr(str(file))
    numbered = [(i, line.strip()) for i, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if file.name.startswith("objectInfo"):
        if reduce_zero_label is False:
            raise TranseptError(f"{where} counts classes from 1, so reduce_zero_label cannot be off")
        return make_table(_object_info(lines, where), where, reduce_zero_label=True)
    if file.name in _COLOR_LINES:
        return make_table(_colored(file, numbered), where, reduce_zero_label=bool(reduce_zero_label))
    valued = [re.fullmatch(r"([0-9]+)[\s,:]+(.+)", line) for _, line in numbered]
    if all(valued):
        entries = [(_integer(match[1]), match[2].strip(), None) for match in valued if match]
        return make_table(entries, where, reduce_zero_label=bool(reduce_zero_label))
    if any(valued):
        number, line = next(line for line, match in zip(numbered, valued, strict=True) if not match)
        raise TranseptError(f"{where}, line {number}: {line!r} has no value, but other lines have one")
    return table_of_names([line for _, line in numbered], where, reduce_zero_label=bool(reduce_zero_label))


_COLOR_LINES = {
    "palette.txt": (r"(?P<r>\d+)[\s,]+(?P<g>\d+)[\s,]+(?P<b>\d+)[\s,]+(?P<name>.+)", "R G B name"),
    "class_dict.csv": (r"(?P<name>[^,]+),\s*(?P<r>\d+),\s*(?P<g>\d+),\s*(?P<b>\d+)", "name,r,g,b"),
    "labelmap.txt": (r"(?P<name>[^:]+):(?:(?P<r>\d+),(?P<g>\d+),(?P<b>\d+))?:.*", "name:r,g,b::"),
}


def _colored(file: Path, lines: list[tuple[int, str]]) -> Iterable[tuple[int, str, Color]]:
    pattern, form = _COLOR_LINES[file.name]
    if file.suffix == ".csv" and lines and lines[0][1].replace(" ", "").lower() == "name,r,g,b":
        lines = lines[1:]
    for value, (number, line) in enumerate(lines):
        match = re.fullmatch(pattern, line)
        color = (256, 0, 0)
        if match is not None:
            named = match["r"] is not None  # datumaro leaves out VOC's own
            read = (_integer(match["r"]), _integer(match["g"]), _integer(match["b"])) if named else None
            color = read or _voc_color(value)
        if match is None or max(color) > 255:
            raise TranseptError(f"{str(file)!r}, line {number}: {line!r} is not '{form}' with numbers 0 to 255")
        yield value, match["name"].strip(), color


def _object_info(lines: list[str], where: str) -> Iterable[tuple[int, str, None]]:
    rows = csv.DictReader(lines, delimiter="\t" if lines and "\t" in lines[0] else ",")
    taken: set[str] = set()
    for row in rows:
        index, name = (row.get("Idx") or "").strip(), (row.get("Name") or "").strip()
        if not index.isdecimal() or not name:
            raise TranseptError(f"{where}, line {rows.line_num}: no index in column 'Idx' or no name in column 'Name'")
        synonyms = [synonym.strip() for synonym in re.split("[;,]", name)]
        short = next((synonym for synonym in synonyms if synonym not in taken), name)  # two begin with "screen"
        taken.add(short)
        yield _integer(index), short, None


def _integer(digits: str) -> int:
    """Thousands of digits stand for more than any file can hold, and Python would not read them."""
    return int(digits) if len(digits) < 10 else 10**9


def _pixels(count: int) -> str:
    return "1 pixel" if count == 1 else f"{count} pixels"


# Name, value in *_labelIds.png, colour in *_color.png; the class, and the value in *_labelTrainIds.png, is the line.
_CITYSCAPES: tuple[tuple[str, int, Color], ...] = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)


def cityscapes_table(ending: str) -> LabelTable:
    """The 19 classes that Cityscapes evaluates, for its masks with this ending; all else is ignored."""
    return LabelTable(
        classes=[name for name, _, _ in _CITYSCAPES],
        palette=[color for _, _, color in _CITYSCAPES],
        values={value if ending == "_gtFine_labelIds" else i: i for i, (_, value, _) in enumerate(_CITYSCAPES)},
        colors={color: i for i, (_, _, color) in enumerate(_CITYSCAPES)} if ending == "_gtFine_color" else {},
        others_ignored=ending != "_gtFine_labelTrainIds",
    )


_VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()
_VOC_VOID = 255


def voc_table() -> LabelTable:
    """Pascal VOC's background and 20 classes, in its colours; the outlines of objects are ignored."""
    palette = [_voc_color(value) for value in range(len(_VOC))]
    colors = {color: value for value, color in enumerate(palette)} | {_voc_color(_VOC_VOID): IGNORE_LABEL}
    return LabelTable(classes=list(_VOC), palette=palette, values={i: i for i in range(len(_VOC))}, colors=colors)


def _voc_color(value: int) -> Color:
    """Three bits of the value at a time make the next lower bit of red, green and blue."""
    red, green, blue = (
        sum((value >> (3 * step + channel) & 1) << (7 - step) for step in range(8)) for channel in range(3)
    )
    return red, green, blue

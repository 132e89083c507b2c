"""Coverage-guided fuzzing of every reader of files, with atheris: `make fuzz READER=weights SECONDS=1800`.

Right is a value or a `TranseptError`; any other exception, ten seconds of processor time or three gigabytes of memory
(imports are one; the largest picture that is allowed takes the rest) are a find, and libFuzzer writes the input
beside the corpus. Its own `-timeout`, by the clock, is for hangs that no signal ends. Not part of the tests: it ends
when its time does. Seeds are written by `fuzz/seeds.py`. Video is left out: FFmpeg, not we, reads it.
"""

import io
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["transept"]):
    from transept.data.detection.coco_set import CocoSet
    from transept.data.detection.formats import find_annotations
    from transept.data.images import read_image, read_mask, read_values
    from transept.data.labels import read_table
    from transept.errors import TranseptError
    from transept.training.options.pages import read_recipe
    from transept.training.options.parsing import parse_recipe
    from transept.weights.files.reading import read_checkpoint

PLACES = ("a.txt", "data.yaml", "a.xml", "annotations.xml", "a.json")
"""Where formats of annotations look; the first byte of an input chooses."""
LONGEST = 10.0
"""Seconds of this process, for one input; by the clock a machine at other work would be a find."""
TABLES = ("classes.txt", "palette.txt", "class_dict.csv", "labelmap.txt", "objectInfo150.txt")


def weights(folder: Path, data: bytes) -> None:
    file = folder / "w.pth"
    file.write_bytes(data)
    read_checkpoint(file)


def images(folder: Path, data: bytes) -> None:
    for read in (read_image, read_mask, read_values):
        try:
            read(io.BytesIO(data), name="a.tif")
        except TranseptError:
            continue


def annotations(folder: Path, data: bytes) -> None:
    """YOLO, Pascal VOC, CVAT, Label Studio and LabelMe, beside a picture `a.png`."""
    file = folder / PLACES[data[0] % len(PLACES)] if data else folder / PLACES[0]
    file.write_bytes(data[1:])
    try:
        find_annotations(folder)
    finally:
        file.unlink()


def coco(folder: Path, data: bytes) -> None:
    """With the truth that is measured against, and the targets that are learnt, of the picture `a.png`."""
    file = folder / "a.json"
    file.write_bytes(data)
    objects = CocoSet(file, folder, masks=True)
    objects.ground_truth()
    for index in range(len(objects)):
        objects[index]


def recipes(folder: Path, data: bytes) -> None:
    file = folder / "a.yaml"
    file.write_bytes(data)
    parse_recipe(read_recipe(str(file)), [])


def labels(folder: Path, data: bytes) -> None:
    file = folder / TABLES[data[0] % len(TABLES)] if data else folder / TABLES[0]
    file.write_bytes(data[1:])
    read_table(file)


READERS: dict[str, Callable[[Path, bytes], None]] = {
    reader.__name__: reader for reader in (weights, images, annotations, coco, recipes, labels)
}


class TooLong(BaseException):
    """No Exception, which a reader might take for damage of the file and answer with a sentence."""


def _too_long(number: int, frame: object) -> None:
    raise TooLong(f"more than {LONGEST:g} seconds of processor time")


def main() -> None:
    reader = READERS[sys.argv.pop(1)]
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, _too_long)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if reader in (annotations, coco):
            from PIL import Image

            Image.new("RGB", (60, 40)).save(folder / "a.png")

        def test_one_input(data: bytes) -> None:
            signal.setitimer(signal.ITIMER_PROF, LONGEST)
            try:
                reader(folder, data)
            except TranseptError as error:
                if "\n" in str(error):
                    raise RuntimeError(f"a sentence of several lines: {error}") from error
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)

        atheris.Setup(sys.argv, test_one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

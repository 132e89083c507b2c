"""Only files are opened, and none outside of the data folder that a data set names."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.robust import sets
from transept.data.classification.sets import load_splits
from transept.data.detection.sets import load_detection_splits
from transept.data.images import BadImageError, read_image, read_mask
from transept.data.inputs import find_inputs
from transept.data.segmentation.sets import load_segmentation_splits
from transept.errors import TranseptError, TranseptWarning
from transept.files import read_text, read_yaml
from transept.training.options.pages import read_recipe

PIPE = "a pipe, socket or device, not a file"


@pytest.fixture(autouse=True)
def _no_wait() -> Iterator[None]:
    """What is opened in error waits for ever: the test then ends all the same."""
    signal.alarm(20)
    yield
    signal.alarm(0)


def pipe(path: Path) -> Path:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def device(path: Path) -> Path:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/null")
    return path


@pytest.mark.parametrize("make", [pipe, device])
@pytest.mark.parametrize("read", [read_image, read_mask, read_text, read_yaml], ids=lambda read: read.__name__)
def test_what_is_no_file_is_not_opened(tmp_path: Path, make: Callable[[Path], Path], read: Callable[[Path], Any]):
    with pytest.raises(TranseptError, match=PIPE):
        read(make(tmp_path / "a.png"))


def test_lists_and_recipes(tmp_path: Path):
    with pytest.raises(TranseptError, match=PIPE):
        find_inputs([f"@{pipe(tmp_path / 'list.txt')}"])
    with pytest.raises(TranseptError, match=PIPE):
        read_recipe(str(pipe(tmp_path / "recipe.yaml")))


def detect(root: Path) -> Any:
    return load_detection_splits(str(root))


def segment(root: Path) -> Any:
    return load_segmentation_splits(str(root))


def classify(root: Path) -> Any:
    return load_splits(str(root))


@pytest.mark.parametrize(
    ("make", "load", "member"),
    [
        (sets.class_folders, classify, "a/0.png"),
        (sets.table, classify, "table.csv"),
        (sets.table, classify, "a/0.png"),
        (sets.masks, segment, "images/train/0.png"),
        (sets.masks, segment, "masks/val/0.png"),
        (sets.masks, segment, "classes.txt"),
        (sets.coco, detect, "coco.json"),
        (sets.coco, detect, "images/1.png"),
        (sets.yolo, detect, "data.yaml"),
        (sets.yolo, detect, "train.txt"),
        (sets.yolo, detect, "labels/0.txt"),
        (sets.voc, detect, "Annotations/a.xml"),
        (sets.voc, detect, "ImageSets/Main/train.txt"),
        (sets.labelme, detect, "0.json"),
        (sets.cvat, detect, "annotations.xml"),
        (sets.label_studio, detect, "project.json"),
    ],
    ids=lambda each: each if isinstance(each, str) else each.__name__,
)
def test_a_pipe_in_a_set_is_named(tmp_path: Path, make: Callable[[Path], Path], load: Any, member: str):
    root = make(tmp_path / "set")
    pipe(tmp_path / "set" / member)
    with pytest.raises(TranseptError, match=PIPE) as error:
        load(root)
    assert member.rpartition("/")[2] in str(error.value)


@pytest.mark.parametrize("lead", [str, lambda path: f"../{path.name}"], ids=["absolute", "climbing"])
@pytest.mark.parametrize(
    "make", [sets.yolo, sets.labelme, sets.cvat, sets.label_studio], ids=lambda each: each.__name__
)
def test_no_picture_outside_of_the_folder(tmp_path: Path, make: Any, lead: Callable[[Path], str]):
    outside = lead(sets.picture(tmp_path / "outside.png"))
    with pytest.raises(TranseptError, match="outside of the data folder"):
        detect(make(tmp_path / "set", first=outside))


@pytest.mark.parametrize("lead", ["../../other/Annotations/a", "{}/other/Annotations/a"])
def test_no_annotation_outside_of_the_folder(tmp_path: Path, lead: str):
    sets.voc(tmp_path / "other")
    with pytest.raises(TranseptError, match=r"train.txt' lists .*other/Annotations/a', which is outside of the data"):
        detect(sets.voc(tmp_path / "set", first=lead.format(tmp_path)))


@pytest.mark.parametrize("member", ["/etc/s", "../s"])
def test_no_member_outside_of_an_archive(tmp_path: Path, member: str):
    pytest.importorskip("webdataset")
    with pytest.raises(TranseptError, match=r"train-0.tar' has the member .*, whose name leads out of the archive"):
        load_splits(f"wds:{sets.shards(tmp_path / 'set', member=member)}")


def test_rows_of_a_table_of_datasets(tmp_path: Path):
    """The `datasets` library keeps the bytes of pictures; a table may also have been written with a path alone."""
    datasets = pytest.importorskip("datasets")
    outside = str(sets.picture(tmp_path / "outside.png"))
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = {"image": [{"bytes": None, "path": outside}] * 4, "label": [0, 1, 0, 1]}
    half = datasets.Dataset.from_dict(rows, features=features).cast_column("image", datasets.Image())
    whole = datasets.DatasetDict(train=half, validation=half)
    folder = tmp_path / "set"
    for name, part in whole.items():  # as save_to_disk, which would put the bytes in
        (folder / name).mkdir(parents=True)
        part._info.write_to_directory(str(folder / name))
        with datasets.arrow_writer.ArrowWriter(path=str(folder / name / "data-00000-of-00001.arrow")) as writer:
            writer.write_table(part.data.table)
            writer.finalize()
        (folder / name / "state.json").write_text(
            '{"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "0", "_format_columns": null,'
            ' "_format_kwargs": {}, "_format_type": null, "_output_all_columns": false, "_split": null}'
        )
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    with pytest.raises(TranseptError, match="outside of the data folder; save the set with its pictures in it"):
        load_splits(str(folder))


@pytest.mark.parametrize(
    ("make", "load", "member"),
    [
        (sets.class_folders, classify, "a/0.png"),
        (sets.masks, segment, "masks/val/0.png"),
        (sets.coco, detect, "images/1.png"),
    ],
)
def test_links_are_followed_and_said_once(tmp_path: Path, make: Any, load: Any, member: str):
    root, path = make(tmp_path / "set"), tmp_path / "set" / member
    path.rename(tmp_path / "outside.png")
    path.symlink_to(tmp_path / "outside.png")
    with pytest.warns(TranseptWarning) as caught:
        load(root)
    (said,) = [text for each in caught if "behind links" in (text := str(each.message))]
    assert said.startswith(f"1 file lies outside of the data folder '{root}', behind links, e.g. '{path}'")


def test_a_link_to_itself(tmp_path: Path):
    path = sets.class_folders(tmp_path / "set") / "a" / "0.png"
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(TranseptError, match=r"a/0.png' cannot be read \(Too many levels of symbolic links\)"):
        classify(tmp_path / "set")
    with pytest.raises(BadImageError, match="cannot be read"):
        read_image(path)


def test_two_categories_of_one_name(tmp_path: Path):
    page = sets.coco_page()
    page["categories"].append({"id": 7, "name": "cell"})
    for load in (detect, segment):
        with pytest.raises(
            TranseptError, match="gives the name 'cell' to the categories 1 and 7; merge them, or rename"
        ):
            load(sets.coco(tmp_path, page))
    with pytest.raises(TranseptError, match="data.yaml' gives the name 'cell' to the categories 0 and 1"):
        detect(sets.yolo(tmp_path / "yolo", names="[cell, cell]"))

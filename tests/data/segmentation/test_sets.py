"""Masks are read exactly, however they are stored; transforms keep picture and mask in step; errors name the file."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from transept.data.labels import IGNORE_LABEL, read_table
from transept.data.loading import EpochSampler, JointlyTransformedSet, make_loader
from transept.data.resizing import fit_within
from transept.data.segmentation.sets import load_segmentation_splits
from transept.data.segmentation.transforms import (
    CategoryCrop,
    PhotometricDistortion,
    SegmentationAugmentation,
    SegmentationPreprocessing,
    segmentation_eval_transform,
    segmentation_train_transform,
)
from transept.errors import TranseptError, UsageError
from transept.style import drawing_color

VALUES = np.arange(35).reshape(5, 7) % 4  # 0..3 in a picture 7 wide and 5 high


def save_pair(root: Path, half: str, name: str, mask: Image.Image, picture: Image.Image | None = None) -> None:
    for folder in ("images", "annotations"):
        (root / folder / half).mkdir(parents=True, exist_ok=True)
    picture = picture or Image.new("RGB", mask.size, (200, 100, 50))
    picture.save(root / "images" / half / f"{name}.png")
    mask.save(root / "annotations" / half / (f"{name}.tif" if mask.mode == "I" else f"{name}.png"))


def fill(root: Path, mask: Image.Image, classes: str | None = "a\nb\nc\nd\n") -> Path:
    for half in ("training", "validation"):
        save_pair(root, half, "one", mask)
    if classes is not None:
        (root / "classes.txt").write_text(classes)
    return root


def index_mask(values: np.ndarray = VALUES) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8))


def palette_mask() -> Image.Image:
    mask = Image.fromarray(VALUES.astype(np.uint8), "P")
    mask.putpalette([9, 9, 9, 9, 9, 9, 200, 0, 0, 0, 0, 255])  # two entries look alike; indices count
    return mask


def refused(root: Path | str, message: str, **options) -> None:
    with pytest.raises(TranseptError, match=message) as caught:
        load_segmentation_splits(str(root), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "mask",
    [index_mask(), palette_mask(), Image.fromarray(VALUES.astype(np.uint16)), Image.fromarray(VALUES.astype(np.int32))],
    ids=["L", "P", "I;16", "I"],
)
def test_masks_are_read_exactly(tmp_path: Path, mask: Image.Image):
    splits = load_segmentation_splits(str(fill(tmp_path, mask)))
    assert splits.classes == splits.train.classes == list("abcd")
    picture, read = splits.train[0]
    assert (picture.shape, picture.dtype) == ((3, 5, 7), torch.uint8)
    assert picture[:, 0, 0].tolist() == [200, 100, 50]
    assert read.dtype == torch.int64
    assert read.tolist() == VALUES.tolist()


def test_black_and_white_masks(tmp_path: Path):
    fill(tmp_path, Image.fromarray(VALUES > 1), "ground\nthing")
    assert load_segmentation_splits(str(tmp_path)).val[0][1].tolist() == (VALUES > 1).astype(int).tolist()


def test_values_and_their_names(tmp_path: Path):
    """A list with values leaves gaps, and what is unlabelled is ignored, as 255 always is."""
    values = np.array([[0, 7, 30], [255, 7, 2]])
    fill(tmp_path, index_mask(values), "# value name\n0\tunlabeled\n2\troad\n7 traffic light\n30,sky\n")
    splits = load_segmentation_splits(str(tmp_path))
    assert splits.classes == ["road", "traffic light", "sky"]
    assert splits.train[0][1].tolist() == [[IGNORE_LABEL, 1, 2], [IGNORE_LABEL, 1, 0]]


def test_reduce_zero_label(tmp_path: Path):
    fill(tmp_path, index_mask(), "a\nb\nc\n")
    splits = load_segmentation_splits(str(tmp_path), reduce_zero_label=True)
    assert splits.classes == list("abc")
    assert splits.train[0][1].tolist() == np.where(VALUES == 0, IGNORE_LABEL, VALUES - 1).tolist()
    listed = load_segmentation_splits(str(tmp_path), classes=["x", "y", "z"], reduce_zero_label=True)
    assert listed.classes == ["x", "y", "z"]
    refused(tmp_path, "holds the value 3 in 8 pixels, which the class list lacks .it has 0 to 2; 255 is ignored")


def test_object_info(tmp_path: Path):
    head = "Idx\tRatio\tTrain\tVal\tName\n"
    (tmp_path / "objectInfo150.txt").write_text(head + "1\t0.1\t1\t1\twall  \n2\t0.1\t1\t1\tscreen, silver screen\n")
    table = read_table(tmp_path / "objectInfo150.txt")
    assert (table.classes, table.values) == (["wall", "screen"], {0: IGNORE_LABEL, 1: 0, 2: 1})
    (tmp_path / "objectInfo150.csv").write_text("Idx,Ratio,Name\n1,,screen;silver screen\n2,,screen;CRT screen\n")
    assert read_table(tmp_path / "objectInfo150.csv").classes == ["screen", "CRT screen"]
    (tmp_path / "objectInfo150.csv").write_text("Idx,Ratio,Name\none,,wall\n")
    with pytest.raises(TranseptError, match="objectInfo150.csv', line 2: no index in column 'Idx'"):
        read_table(tmp_path / "objectInfo150.csv")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("palette.txt", "128 64 128 road\n244 35 232 side walk\n0 0 0 void\n"),
        ("class_dict.csv", "name,r,g,b\nroad,128,64,128\nside walk, 244, 35, 232\nVoid,0,0,0\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nroad:128,64,128::\nside walk:244,35,232::\nvoid:0,0,0::\n"),
    ],
)
def test_colored_masks(tmp_path: Path, name: str, text: str):
    colors = np.array([[128, 64, 128], [244, 35, 232], [0, 0, 0]], np.uint8)
    values = VALUES % 3
    for kind, mask in {
        "rgb": Image.fromarray(colors[values]),
        "indices": index_mask(values),
        "palette": Image.fromarray(colors[values]).quantize(),
    }.items():
        root = fill(tmp_path / kind, mask, None)
        (root / name).write_text(text)
        splits = load_segmentation_splits(str(root))
        assert splits.classes == ["road", "side walk"]
        assert splits.palette == [(128, 64, 128), (244, 35, 232)]
        assert splits.val[0][1].tolist() == np.where(values == 2, IGNORE_LABEL, values).tolist(), kind
    root = fill(tmp_path / "odd", Image.new("RGB", (3, 3), (1, 2, 3)), None)
    (root / name).write_text(text)
    refused(root, r"one.png', which holds the colour \(1, 2, 3\) in 9 pixels, which the palette lacks")


def test_cityscapes(tmp_path: Path):
    ids = np.array([[7, 8], [0, 33]])  # road, sidewalk, unlabelled, bicycle
    train_ids = np.array([[0, 1], [255, 18]])
    for half in ("train", "val"):
        for folder in ("leftImg8bit", "gtFine"):
            (tmp_path / folder / half / "bonn").mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "leftImg8bit" / half / "bonn" / "bonn_1_leftImg8bit.png")
        index_mask(ids).save(tmp_path / "gtFine" / half / "bonn" / "bonn_1_gtFine_labelIds.png")
        index_mask(ids).save(tmp_path / "gtFine" / half / "bonn" / "bonn_1_gtFine_instanceIds.png")
    with pytest.warns(UserWarning, match="16 classes never occur"):
        by_id = load_segmentation_splits(str(tmp_path))
    assert (len(by_id.classes), by_id.classes[18], by_id.palette[0]) == (19, "bicycle", (128, 64, 128))
    assert by_id.val[0][1].tolist() == train_ids.tolist()
    for half in ("train", "val"):
        index_mask(train_ids).save(tmp_path / "gtFine" / half / "bonn" / "bonn_1_gtFine_labelTrainIds.png")
    with pytest.warns(UserWarning, match="16 classes never occur"):
        by_train_id = load_segmentation_splits(str(tmp_path))
    assert by_train_id.val[0][1].tolist() == train_ids.tolist()


@pytest.mark.parametrize("layout", ["train/images train/masks", "images/train labels/train", "train train_labels"])
def test_layouts(tmp_path: Path, layout: str):
    for half in ("train", "val"):
        for folder in layout.replace("train", half).split():
            (tmp_path / folder).mkdir(parents=True)
            index_mask().save(tmp_path / folder / "x.png")
    splits = load_segmentation_splits(str(tmp_path), classes=list("abcd"))
    assert (len(splits.train), len(splits.val)) == (1, 1)
    assert splits.train[0][1].tolist() == VALUES.tolist()


def test_one_folder_is_split(tmp_path: Path):
    for i in range(10):
        save_pair(tmp_path, ".", f"{i}", index_mask())
    splits = load_segmentation_splits(str(tmp_path), classes=list("abcd"), val_fraction=0.3)
    assert (len(splits.train), len(splits.val)) == (7, 3)
    assert not set(splits.train.paths) & set(splits.val.paths)
    only = load_segmentation_splits(str(tmp_path), classes=list("abcd"), val_fraction=0.3, halves="val")
    assert (only.val.paths, len(only.train)) == (splits.val.paths, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_tag_turns_both(tmp_path: Path, orientation: int):
    """A mask drawn on the upright picture stays; one drawn on the stored picture is turned with it."""
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[0:8, 0:8] = 255  # a white corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    for half in ("training", "validation"):
        for folder in ("images", "annotations"):
            (tmp_path / folder / half).mkdir(parents=True)
        Image.fromarray(stored).save(tmp_path / "images" / half / "a.png", exif=exif)
        mask = Image.fromarray((stored[..., 0] > 0).astype(np.uint8))
        # On the stored picture, where the size tells; else as an annotator sees it, by a mask with its own tag.
        mask.save(tmp_path / "annotations" / half / "a.png", exif=None if orientation >= 5 else exif)
    picture, mask = load_segmentation_splits(str(tmp_path), classes=["ground", "corner"]).train[0]
    assert picture.shape[1:] == mask.shape == ((24, 16) if orientation >= 5 else (16, 24))
    assert ((picture[0] > 128) == (mask == 1)).all()
    upright = Image.fromarray(mask.numpy().astype(np.uint8))
    upright.save(tmp_path / "annotations" / "training" / "a.png")
    again = load_segmentation_splits(str(tmp_path), classes=["ground", "corner"]).train[0]
    assert (again[1] == mask).all()


def test_bad_masks_are_named(tmp_path: Path):
    good = fill(tmp_path / "good", index_mask())

    def spoilt(name: str) -> Path:
        return Path(shutil.copytree(good, tmp_path / name))

    root = spoilt("size")
    index_mask(VALUES[:4]).save(root / "annotations" / "training" / "one.png")
    refused(root, "1 picture or mask cannot .*'one.png', which is 7 x 4, but its picture .*training/one.png' is 7 x 5")
    root = spoilt("value")
    values = VALUES.copy()
    values[0, :3] = 9
    index_mask(values).save(root / "annotations" / "validation" / "one.png")
    refused(root, r"validation/one.png' has the mask 'one.png', which holds the value 9 in 3 pixels.*it has 0 to 3;")
    Image.fromarray(np.full((5, 7), 70000, np.int32)).save(root / "annotations" / "validation" / "one.tif")
    (root / "annotations" / "validation" / "one.png").unlink()
    refused(root, "holds the value 70000; no label")
    root = spoilt("rgb")
    index_mask().convert("RGB").save(root / "annotations" / "training" / "one.png")
    refused(root, "is a colour picture where class indices are expected .give a palette.txt")
    root = spoilt("missing")
    (root / "annotations" / "training" / "one.png").unlink()
    refused(root, "training/one.png' has no mask .expected .*annotations/training/one'.png")
    root = spoilt("orphan")
    (root / "images" / "training" / "one.png").unlink()
    refused(root, "annotations/training/one.png' is a mask without a picture")
    root = spoilt("jpeg")
    index_mask().save(root / "annotations" / "training" / "one.jpg")
    (root / "annotations" / "training" / "one.png").unlink()
    refused(root, "has the mask 'one.jpg', whose format blurs labels; save PNGs")
    root = spoilt("twice")
    index_mask().convert("RGB").save(root / "images" / "training" / "one.jpg")
    refused(root, "one.jpg' and 'one.png' have the same name; keep one")
    root = spoilt("broken")
    (root / "images" / "training" / "one.png").write_bytes(b"")
    refused(root, "training/one.png' is empty")
    (root / "images" / "training" / "one.png").write_bytes((good / "images/training/one.png").read_bytes()[:45])
    refused(root, "training/one.png' is damaged or truncated")


def test_bad_pairs_are_left_out_on_request(tmp_path: Path):
    root = fill(tmp_path, index_mask())
    save_pair(root, "training", "bad", index_mask(VALUES + 3))
    (root / "images" / "training" / "lone.png").write_bytes((root / "images/training/one.png").read_bytes())
    refused(root, "2 pictures or masks cannot be used: .*lone.png' has no mask.*; .*bad.png' has the mask")
    splits = load_segmentation_splits(str(root), skip_bad_images=True)
    assert [skip.path.name for skip in splits.skipped] == ["lone.png", "bad.png"]
    assert [path.name for path in splits.train.paths] == ["one.png"]
    (root / "images" / "training" / "one.png").unlink()
    refused(root, "has no training pictures that can be used", skip_bad_images=True)


def test_wrong_folders_and_lists(tmp_path: Path):
    refused("digits-scene", "there is no data 'digits-scene'; give 'digits-scenes' or a folder")
    (tmp_path / "empty").mkdir()
    refused(
        tmp_path / "empty", "has neither masks nor outlines of objects; put pictures and masks into images/training"
    )
    root = fill(tmp_path / "set", index_mask(), None)
    refused(root, "does not say what the values of its masks mean; add a classes.txt")
    for text, message in [
        ("0 a\nb\n", "classes.txt', line 2: 'b' has no value, but other lines have one"),
        ("0 a\n0 b\n", "gives the value 0 twice"),
        ("a\na\n", "names 'a' twice"),
        ("70000 a\n", "gives 'a' the value 70000; values are 0 to 65535"),
        ("void\n", "names 0 classes"),
    ]:
        (root / "classes.txt").write_text(text)
        refused(root, message)
    (root / "classes.txt").unlink()
    (root / "palette.txt").write_text("1 2 300 road\n")
    refused(root, "palette.txt', line 1: '1 2 300 road' is not 'R G B name' with numbers 0 to 255")
    (root / "palette.txt").write_text("1 2 3 road\n1 2 3 sky\n")
    refused(root, r"gives the colour \(1, 2, 3\) twice")
    (root / "palette.txt").unlink()


def test_a_class_that_never_occurs_is_named_once(tmp_path: Path):
    root = fill(tmp_path, index_mask(), "a\nb\nc\nd\ne\nf\n")
    with pytest.warns(UserWarning, match="2 classes never occur in the training pictures of .*: 'e', 'f'") as caught:
        splits = load_segmentation_splits(str(root))
    assert len(caught) == 1
    assert splits.absent == ["e", "f"]
    (root / "classes.txt").write_text("a\nb\nc\nd\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_segmentation_splits(str(root)).absent == []


def test_hugging_face_tables(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    pictures = [Image.new("RGB", (7, 5), (i, 0, 0)) for i in range(3)]
    features = datasets.Features(
        {"annotation": datasets.Image(), "image": datasets.Image(), "id": datasets.Value("int64")}
    )
    rows = {"image": pictures, "annotation": [palette_mask()] * 3, "id": [0, 1, 2]}
    table = datasets.Dataset.from_dict(rows, features=features)
    saved = tmp_path / "saved"
    datasets.DatasetDict({"train": table, "validation": table.select([2])}).save_to_disk(str(saved))
    splits = load_segmentation_splits(str(saved), classes=list("abcd"))
    assert (len(splits.train), len(splits.val)) == (3, 1)
    picture, mask = splits.train[1]
    assert picture[0].unique().tolist() == [1]
    assert mask.tolist() == VALUES.tolist()
    refused(saved, "does not say what the values of its masks mean")
    refused(
        saved,
        r"train\[0\].image' has the mask 'train\[0\].annotation', which holds the value 3 in 8",
        classes=list("abc"),
    )
    with pytest.raises(UsageError, match="has no image column 'mask'; it has"):
        load_segmentation_splits(str(saved), classes=list("abcd"), columns=("image", "mask"))
    table.to_parquet(tmp_path / "files" / "train.parquet")
    table.to_parquet(tmp_path / "files" / "validation.parquet")
    hub = load_segmentation_splits(f"hf:{tmp_path / 'files'}", classes=list("abcd"))
    assert hub.val[2][1].tolist() == VALUES.tolist()
    datasets.DatasetDict({"other": table}).save_to_disk(str(tmp_path / "half"))
    divided = load_segmentation_splits(str(tmp_path / "half"), classes=list("abcd"))
    assert (len(divided.train), len(divided.val), divided.parts.held_out) == (2, 1, True)


def test_digits_scenes():
    splits = load_segmentation_splits("digits-scenes", scenes=(6, 3), seed=2)
    assert (len(splits.train), len(splits.val), len(splits.classes)) == (6, 3, 11)
    picture, mask = splits.train[4]
    assert picture.shape[1:] == mask.shape
    assert 0 < mask.max() <= 10
    assert len(set(splits.palette)) == len(splits.palette) == 11


def test_drawing_colors_differ():
    colors = np.array([drawing_color(label) for label in range(60)], int)
    distance = np.abs(colors[:, None] - colors[None]).sum(-1) + 1000 * np.eye(60, dtype=int)
    assert distance.min() > 8
    assert min(distance[i, i + 1] for i in range(59)) > 60


def test_camvid(shared_data: Path):
    splits = load_segmentation_splits(str(shared_data / "camvid"))
    assert (len(splits.train), len(splits.val)) == (184, 51)
    assert splits.classes[0] == "sky"
    assert splits.classes[-1] == "bicyclist"
    assert splits.absent == []
    picture, mask = splits.val[7]
    stored = np.asarray(Image.open(splits.val.masks[7])).astype(int)
    assert mask.tolist() == np.where(stored == 0, IGNORE_LABEL, stored - 1).tolist()
    assert picture.shape == (3, 360, 480)


def test_ade20k(shared_data: Path):
    root = str(shared_data / "ade20k_samples")
    splits = load_segmentation_splits(root, halves="val")
    assert (len(splits.classes), len(splits.val), len(splits.train)) == (150, 3, 0)
    assert splits.classes[:3] == ["wall", "building", "sky"]
    stored = np.asarray(Image.open(Path(root) / "annotations" / "validation" / "ADE_val_00000001.png")).astype(int)
    assert splits.val[0][1].tolist() == np.where(stored == 0, IGNORE_LABEL, stored - 1).tolist()
    refused(root, "has no training pictures, only 'validation'")


# Transforms


def coded(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture of 16 x 16 blocks whose red says the class: 20 times it."""
    from torchvision import tv_tensors

    rows, columns = torch.arange(height) // 16, torch.arange(width) // 16
    mask = (3 * rows[:, None] + columns[None]) % 10
    picture = (20 * mask).to(torch.uint8).expand(3, -1, -1).contiguous()
    return tv_tensors.Image(picture), tv_tensors.Mask(mask)


PLAIN = SegmentationPreprocessing(scale=(192, 128), mean=(0, 0, 0), std=(1, 1, 1))


def test_picture_and_mask_stay_in_step():
    transform = segmentation_train_transform(PLAIN, SegmentationAugmentation(crop=(96, 112), photometric=0))
    picture, mask = coded(128, 160)
    agreement = []
    for seed in range(30):
        torch.manual_seed(seed)
        image, labels = transform(picture, mask)
        assert (image.shape, labels.shape) == ((3, 96, 112), (96, 112))
        assert (image.dtype, labels.dtype) == (torch.float32, torch.int64)
        known = labels != IGNORE_LABEL
        agreement.append(((image[0] * 255 / 20).round()[known] == labels[known]).float().mean().item())
        assert (image[:, ~known] == 0).all()
    # Pixels between blocks are mixed by the bilinear resize: a shift of a pixel would cost far more than these.
    assert min(agreement) > 0.75
    assert np.mean(agreement) > 0.85


def test_the_steps_follow_the_options():
    picture, mask = coded(128, 160)

    def run(seed: int = 0, **options) -> tuple[torch.Tensor, torch.Tensor]:
        still = dict(crop=(128, 160), resize_ratio=(1, 1), category_max_ratio=1, flip=0, photometric=0)
        torch.manual_seed(seed)
        return segmentation_train_transform(PLAIN, SegmentationAugmentation(**(still | options)))(picture, mask)

    image, labels = run()
    assert torch.equal(labels, mask.as_subclass(torch.Tensor))
    assert torch.equal((image * 255).round().to(torch.uint8), picture.as_subclass(torch.Tensor))
    assert torch.equal(run(flip=1)[1], labels.flip(-1))
    assert torch.equal(run(flip=1)[0], image.flip(-1))
    changed = run(photometric=1)
    assert torch.equal(changed[1], labels)
    assert (changed[0] - image).abs().max() > 0.05
    assert not torch.equal(run(resize_ratio=(2, 2))[1], labels)
    small = run(crop=(192, 256))
    assert small[1].shape == (192, 256)
    assert (small[1][128:] == IGNORE_LABEL).all()
    assert (small[1][:, 160:] == IGNORE_LABEL).all()
    assert torch.equal(small[1][:128, :160], labels)


def test_normalisation_comes_before_padding():
    grey = SegmentationPreprocessing(scale=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
    options = SegmentationAugmentation(crop=(40, 40), resize_ratio=(1, 1), photometric=0, flip=0)
    picture, mask = coded(32, 32)
    image, _ = segmentation_train_transform(grey, options)(picture, mask)
    assert (image[:, 32:] == 0).all()
    assert torch.allclose(image[:, :32, :32], (picture.as_subclass(torch.Tensor) / 255 - 0.5) / 0.25, atol=1e-6)


def test_category_ratio():
    """A picture that is one class but for a corner: crops without the corner are drawn again."""
    from torchvision import tv_tensors

    mask = torch.zeros(64, 64, dtype=torch.int64)
    mask[:24, :24] = 1
    mask[40:] = IGNORE_LABEL
    pair = tv_tensors.Image(torch.zeros(3, 64, 64, dtype=torch.uint8)), tv_tensors.Mask(mask)

    def mixed(max_ratio: float) -> float:
        crop, hits = CategoryCrop((32, 32), max_ratio), 0
        for seed in range(200):
            torch.manual_seed(seed)
            counts = crop(*pair)[1].as_subclass(torch.Tensor).flatten().bincount(minlength=256)[:255]
            hits += bool((counts > 0).sum() > 1 and counts.max() < 0.75 * counts.sum())
        return hits / 200

    once = mixed(1.0)
    assert 0.05 < once < 0.5
    # Eleven draws, of which the last is taken whatever it is.
    assert mixed(0.75) == pytest.approx(1 - (1 - once) ** 11, abs=0.06)


def test_sizes_of_the_published_resize():
    assert fit_within((512, 683), (2048, 512)) == (512, 683)
    assert fit_within((512, 683), (1024, 256)) == (256, 342)
    assert fit_within((512, 683), (2048, 512), multiple_of=32) == (512, 704)
    assert fit_within((300, 3000), (2048, 512)) == (205, 2048)
    assert fit_within((480, 640), (1333, 800)) == (800, 1067)


def test_evaluation_keeps_the_mask():
    picture, mask = coded(100, 160)
    transform = segmentation_eval_transform(SegmentationPreprocessing(scale=(200, 80), multiple_of=32))
    image, labels = transform(picture, mask)
    assert image.shape == (3, 96, 128)
    assert torch.equal(labels, mask.as_subclass(torch.Tensor))
    assert transform(picture).shape == (3, 96, 128)
    half = segmentation_eval_transform(SegmentationPreprocessing(scale=(200, 80)), ratio=0.5)
    assert half(picture).shape == (3, 40, 64)


def test_distortion_is_bounded_and_of_the_right_kind():
    from torchvision import tv_tensors

    grey = tv_tensors.Image(torch.full((3, 4, 4), 100, dtype=torch.uint8))
    seen = torch.stack([PhotometricDistortion(1.0)(grey).flatten()[0] for _ in range(300)]).float()
    assert seen.min() < 50  # (100 - 32) * 0.5 = 34 at the least, (100 + 32) * 1.5 = 198 at the most
    assert seen.min() >= 34
    assert 180 < seen.max() <= 198
    step = PhotometricDistortion()
    red = tv_tensors.Image(torch.tensor([200, 100, 100], dtype=torch.uint8).reshape(3, 1, 1))
    still = dict(brightness=None, contrast=None, saturation=None, hue=None, contrast_last=False)

    def changed(**drawn: float) -> list[int]:
        return step.transform(red, still | drawn).flatten().tolist()

    assert changed() == [200, 100, 100]
    assert changed(brightness=-32.0) == [168, 68, 68]
    assert changed(contrast=1.5) == [255, 150, 150]
    assert changed(contrast=1.5, contrast_last=True) == [255, 150, 150]
    assert changed(saturation=0.5) == pytest.approx([200, 150, 150], abs=2)
    turned = changed(hue=256 / 6)  # 60 degrees: yellow
    assert turned == pytest.approx([200, 200, 100], abs=3)


def test_impossible_options_are_refused():
    for wrong, message in [
        (dict(flip=3), "flip=3 is not in"),
        (dict(resize_ratio=(2, 0.5)), r"resize_ratio=\[2, 0.5\]"),
        (dict(crop=(0, 7)), r"crop=\[0, 7\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            SegmentationAugmentation(**wrong)
    with pytest.raises(ValueError, match=r"scale=\[0, 9\]"):
        SegmentationPreprocessing(scale=(0, 9))


def batch_sums(workers: int = 0, start: int = 0) -> list[float]:
    scenes = load_segmentation_splits("digits-scenes", scenes=(12, 1)).train
    options = SegmentationAugmentation(crop=(64, 64))
    dataset = JointlyTransformedSet(scenes, segmentation_train_transform(PLAIN, options))
    sampler = EpochSampler(12, seed=3, batch_size=4, start_epoch=1, start_batch=start)
    loader = make_loader(dataset, 4, sampler=sampler, workers=workers)
    return [float((images.double() * (1 + labels[:, None])).sum()) for images, labels in loader]


def test_batches_depend_on_seed_and_epoch_alone():
    torch.manual_seed(torch.seed() % 1000)
    plain = batch_sums()
    assert len(plain) == 3
    assert batch_sums(start=2) == plain[2:]
    assert batch_sums(workers=1) == plain  # in another process


# Pascal VOC


def voc_file(root: Path, name: str, values: np.ndarray, *, has_mask: bool = True) -> None:
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", values.shape[::-1], (9, 8, 7)).save(root / "JPEGImages" / f"{name}.jpg")
    if has_mask:
        mask = Image.fromarray(values.astype(np.uint8), "P")
        mask.putpalette(VOC_PALETTE)
        mask.save(root / "SegmentationClass" / f"{name}.png")


VOC_PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + 251 * [1, 2, 3] + [224, 224, 192]
"""Of the first classes, and of the outlines that are ignored."""


def test_pascal_voc(tmp_path: Path):
    """Its own palette, lists of names, and pictures without masks that no list names."""
    values = np.where(VALUES == 3, 255, VALUES)
    for name in ("2007_1", "2007_2", "2007_3"):
        voc_file(tmp_path, name, values, has_mask=name != "2007_3")
    lists = tmp_path / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("2007_1\n")
    (lists / "val.txt").write_text("2007_2\n")
    (lists / "trainval.txt").write_text("2007_1\n2007_2\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 18 classes never occur
        splits = load_segmentation_splits(str(tmp_path))
    assert (len(splits.classes), splits.classes[2], splits.palette[20]) == (21, "bicycle", (0, 64, 128))
    assert [path.name for half in (splits.train, splits.val) for path in half.paths] == ["2007_1.jpg", "2007_2.jpg"]
    assert torch.equal(splits.train[0][1], torch.from_numpy(values))
    (lists / "val.txt").write_text("2007_2\n2007_3\n2007_4\n")
    refused(tmp_path, "2007_3.jpg' has no mask .*2007_4' is listed, but is neither there nor in")


@pytest.mark.parametrize("masks", ["SegmentationClass", "SegmentationClassPNG"])
def test_labelme_masks(tmp_path: Path, masks: str):
    """As `formats/make.py` had LabelMe write them. Until 5.3 it kept arrays where the masks are now."""
    shutil.copytree(Path(__file__).parents[1] / "detection" / "formats" / "labelme_masks", tmp_path, dirs_exist_ok=True)
    (tmp_path / "SegmentationClass").rename(tmp_path / masks)
    if masks != "SegmentationClass":
        (tmp_path / "SegmentationClass").mkdir()
        np.save(tmp_path / "SegmentationClass" / "a.npy", np.zeros((40, 60), np.int32))
    (tmp_path / "JPEGImages").mkdir()
    for name in "ab":
        Image.new("RGB", (60, 40)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
    splits = load_segmentation_splits(str(tmp_path), val_fraction=0.5)
    assert splits.classes == ["_background_", "cat", "dog"]
    drawn = next(half[0][1] for half in (splits.train, splits.val) if half.paths[0].stem == "a")
    assert (drawn[20, 20], drawn[12, 50], drawn[37, 2], drawn[5, 50]) == (1, 2, 255, 0)


def test_voc_masks_without_lists_are_divided(tmp_path: Path):
    for i in range(5):
        voc_file(tmp_path, str(i), VALUES, has_mask=i < 4)
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nground:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\neel:128,128,0::\n"
    )
    splits = load_segmentation_splits(str(tmp_path), val_fraction=0.25)
    assert splits.classes == ["ground", "cat", "dog", "eel"]
    assert (len(splits.train), len(splits.val)) == (3, 1)
    assert torch.equal(splits.train[0][1], torch.from_numpy(VALUES))

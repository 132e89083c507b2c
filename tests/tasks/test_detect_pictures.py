"""Pictures of any size, several views of one picture, and results as COCO has them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

import transept
from transept.data.detection.transforms import DetectionPreprocessing
from transept.errors import TranseptError, UsageError
from transept.heads.instances import Detections
from transept.models.registry import skeletons
from transept.tasks.coco_results import from_coco_results, to_coco_results
from transept.tasks.detect import Detector
from transept.tasks.detect_pictures import DetectionInference, merge_detections, merge_tiles

PREPROCESSING = DetectionPreprocessing(scale=(128, 96))


def detector(method: str = "retinanet", **options) -> Detector:
    """Untrained, but sure enough of itself to find something."""
    made = transept.create_detector(
        method, backbone="xcit_nano_12_p8", depth=2, embed_dim=32, num_heads=2, num_classes=3, width=32,
        classes=["ant", "bee", "cat"], preprocessing=PREPROCESSING, **options,
    )  # fmt: skip
    for name, parameter in made.named_parameters():
        if name.endswith(("_cls.weight", "fc_reg.weight")):
            torch.nn.init.normal_(parameter, std=0.5 if "roi_head" in name else 0.2)
        elif name.endswith("_cls.bias"):
            torch.nn.init.constant_(parameter, -1.0)
    return made.eval()


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    coarse = {(200, 150): (6, 8, 3), (90, 170): (9, 5, 3)}
    return [
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for size, shape in coarse.items()
    ]


def test_each_picture_in_its_own_pixels():
    model, images = detector("mask_rcnn"), pictures()
    model.train()
    found = model.predict(images)
    assert model.training
    for picture, objects in zip(images, found, strict=True):
        width, height = picture.size
        assert len(objects.boxes) > 3
        assert objects.boxes.min() >= 0
        assert objects.boxes[:, 2].max() <= width
        assert objects.boxes[:, 3].max() <= height
        assert objects.boxes[:, 2].max() > 0.7 * width
        assert objects.masks is not None
        assert (objects.masks.dtype, *objects.masks.shape[1:]) == (torch.bool, height, width)
        assert objects.image_masks((height, width)) is objects.masks
        with pytest.raises(ValueError, match=f"at {height} x {width}; they cannot be drawn at 9 x 9"):
            objects.image_masks((9, 9))
    grids = model.predict(images[:1], DetectionInference(draw_masks=False))[0]
    assert grids.masks is not None
    assert grids.masks.shape[1:] == (28, 28)
    assert torch.equal(grids.image_masks((150, 200)), found[0].masks)


def test_a_batch_finds_what_single_pictures_do():
    model, images = detector(), pictures()
    alone, together = model.predict(images), model.predict(images, DetectionInference(batch_size=2))
    for one, other in zip(alone, together, strict=True):
        # Padding is seen by attention over the whole picture, so the scores differ a little.
        assert len(one.boxes) > 3
        best = box_iou(one.boxes[:3], other.boxes).max(dim=1).values
        assert best.min() > 0.7


def test_bytes_are_as_good_as_pictures():
    model, picture = detector(), pictures()[0]
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    (one,), (other,) = model.predict([picture]), model.predict([pixels])
    assert torch.equal(one.boxes, other.boxes)
    with pytest.raises(TranseptError, match=r"the picture is \(150, 200\) of uint8; give 3 x H x W bytes"):
        model.predict([pixels[0]])
    with pytest.raises(TranseptError, match="of float32"):
        model.predict([pixels / 255])


def test_thresholds_and_classes():
    model, picture = detector(), pictures()[0]
    (every,) = model.predict([picture])
    middle = float(every.scores.median())
    (some,) = model.predict([picture], DetectionInference(score_threshold=middle))
    assert torch.equal(some.boxes, every.boxes[every.scores > middle])
    (best,) = model.predict([picture], DetectionInference(max_detections=2))
    assert torch.equal(best.scores, every.scores[:2])
    (bees,) = model.predict([picture], DetectionInference(classes=("bee", "cat")))
    assert torch.equal(bees.scores, every.scores[every.labels > 0])
    assert 0 < len(bees.scores) < len(every.scores)
    with pytest.raises(UsageError, match="no class of this detector is called 'beee'; did you mean 'bee'"):
        model.predict([picture], DetectionInference(classes=("beee",)))


@pytest.mark.parametrize("method", ["retinanet", "mask_rcnn"])
def test_a_mirror_image_is_mirrored_back(method: str):
    """With the mirror image as a further view, a picture and its mirror image hold the same objects, mirrored."""
    model, picture = detector(method), pictures()[0]
    inference = DetectionInference(flip=True, scales=((128, 96), (160, 120)), draw_masks=False)
    (one,) = model.predict([picture], inference)
    (other,) = model.predict([picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], inference)
    assert len(one.boxes) == len(other.boxes) > 3
    mirrored = other.boxes[:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1, -1, 1]) + torch.tensor([200.0, 0, 200, 0])
    torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-5)
    nearest = box_iou(one.boxes, mirrored).max(dim=1)
    assert nearest.values.min() > 0.999
    if one.masks is not None and other.masks is not None:
        torch.testing.assert_close(one.masks, other.masks[nearest.indices].flip(-1), rtol=1e-3, atol=1e-3)
    (plain,) = model.predict([picture], DetectionInference(draw_masks=False))
    assert not torch.equal(plain.scores[:5], one.scores[:5])


def test_merging_views():
    """Of overlapping boxes of one class the best is kept, whichever view it is from; a mask stays with its box."""
    first = Detections(
        torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]), torch.tensor([0.6, 0.5]), torch.tensor([0, 1]),
        torch.tensor([0.1, 0.2])[:, None, None].expand(2, 4, 4),
    )  # fmt: skip
    second = Detections(
        torch.tensor([[1.0, 0, 11, 10], [50, 50, 60, 60]]), torch.tensor([0.9, 0.4]), torch.tensor([0, 2]),
        torch.tensor([0.3, 0.4])[:, None, None].expand(2, 4, 4),
    )  # fmt: skip
    merged = merge_detections([first, second])
    assert merged.scores.tolist() == pytest.approx([0.9, 0.5, 0.4])
    assert merged.labels.tolist() == [0, 1, 2]
    assert merged.masks is not None
    assert merged.masks[:, 0, 0].tolist() == pytest.approx([0.3, 0.2, 0.4])
    assert len(merge_detections([first, second], iou_threshold=0.9).scores) == 4


@pytest.mark.parametrize("method", ["retinanet", "mask_rcnn"])
def test_tiles_are_seen_as_pictures_are(method: str):
    """Of a mosaic of pictures, tile by tile: each object of a picture is there, or a better one is in its place."""
    model, picture = detector(method), pictures()[0].crop((0, 0, 150, 150))
    alone = [picture, picture.transpose(Image.Transpose.ROTATE_180)]
    mosaic = Image.new("RGB", (300, 150))
    for i, each in enumerate(alone):
        mosaic.paste(each, (150 * i, 0))
    inference = DetectionInference(score_threshold=0.1, tile=150, overlap=0.0, draw_masks=False)
    (found,) = model.predict([mosaic], inference)
    whole, *parts = model.predict([mosaic, *alone], replace(inference, tile=None))
    cut = [torch.zeros(len(whole.labels), dtype=torch.bool)]
    for i, part in enumerate(parts):
        parts[i] = part._replace(boxes=part.boxes + torch.tensor([150.0 * i, 0, 150.0 * i, 0]))
        cut.append((part.boxes[:, 0 if i else 2] - 150 * (1 - i)).abs() <= 1.5)
    expected = merge_tiles([whole, *parts], cut)
    assert 3 < len(expected.scores) < sum(len(each.scores) for each in (whole, *parts))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    (batched,) = model.predict([mosaic], replace(inference, batch_size=2))
    assert len(batched.scores) == len(found.scores)
    (one,), (other,) = (model.predict([picture], replace(inference, tile=tile)) for tile in (150, None))
    assert torch.equal(one.boxes, other.boxes)  # one tile is the whole picture


def test_merging_tiles():
    """Part of an object goes where a tile that has the whole of it says nearly as surely what it is."""
    parts = Detections(
        torch.tensor([[90.0, 10, 100, 30], [90, 50, 100, 70], [60, 80, 100, 99], [5, 5, 9, 9]]),
        torch.tensor([0.9, 0.9, 0.9, 0.2]),
        torch.tensor([0, 0, 0, 1]),
    )
    whole = Detections(
        torch.tensor([[90.0, 10, 120, 30], [90, 50, 120, 70], [94, 80, 120, 99], [5, 5, 9, 9]]),
        torch.tensor([0.5, 0.4, 0.8, 0.3]),
        torch.tensor([0, 0, 0, 0]),
    )
    cut = [torch.tensor([True, True, True, False]), torch.zeros(4, dtype=torch.bool)]
    merged = merge_tiles([parts, whole], cut)
    kept = sorted(zip(merged.boxes[:, 0].tolist(), merged.scores.tolist(), strict=True))
    # The second part is much surer than the whole, the third has another object in it; classes are apart.
    expected = [(5, 0.2), (5, 0.3), (60, 0.9), (90, 0.4), (90, 0.5), (90, 0.9), (94, 0.8)]
    assert kept == [(x, pytest.approx(score)) for x, score in expected]
    nothing = parts.take(torch.zeros(4, dtype=torch.bool))
    assert len(merge_tiles([nothing, parts], [cut[0][:0], cut[0]]).scores) == 4


def test_preprocessing_is_kept(tmp_path: Path):
    model = detector()
    model.preprocessing = replace(PREPROCESSING, bgr=True, std=(1 / 255,) * 3, antialias=True)
    model.save(tmp_path / "d.safetensors")
    loaded = Detector.load(tmp_path / "d.safetensors")
    assert loaded.preprocessing == model.preprocessing
    (one,), (other,) = model.predict(pictures()[:1]), loaded.predict(pictures()[:1])
    assert torch.equal(one.boxes, other.boxes)


def test_published_preprocessing():
    with skeletons():
        fcos = transept.create_detector("fcos", backbone="cat_small").preprocessing
        atss = transept.create_detector("atss", backbone="cat_small").preprocessing
    assert fcos.bgr
    assert [255 * value for value in (*fcos.mean, *fcos.std)] == pytest.approx([102.9801, 115.9465, 122.7717, 1, 1, 1])
    assert atss == DetectionPreprocessing()


def test_coco_results_and_back():
    pytest.importorskip("pycocotools")
    images = pictures()
    sizes = [(picture.height, picture.width) for picture in images]
    found = detector("mask_rcnn").predict(images, DetectionInference(draw_masks=False))
    with pytest.raises(UsageError, match="need its height and width: give sizes"):
        to_coco_results(found, [9, 4], [1, 5, 90])
    results = json.loads(json.dumps(to_coco_results(found, [9, 4], [1, 5, 90], sizes)))
    assert {result["category_id"] for result in results} <= {1, 5, 90}
    x1, y1, x2, y2 = found[0].boxes[0].tolist()
    assert results[0]["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1])
    back = from_coco_results(results, [9, 4], [1, 5, 90])
    for one, other, size in zip(found, back, sizes, strict=True):
        torch.testing.assert_close(other.boxes, one.boxes)
        assert torch.equal(other.scores, one.scores)
        assert torch.equal(other.labels, one.labels)
        assert torch.equal(other.image_masks(size), one.image_masks(size))
    assert to_coco_results(back, [9, 4], [1, 5, 90]) == results
    assert len(from_coco_results([], [3], [1])[0].boxes) == 0
    with pytest.raises(TranseptError, match="result 0 has the image_id 9, which the data lacks"):
        from_coco_results(results, [4], [1, 5, 90])
    del results[0]["segmentation"]
    with pytest.raises(TranseptError, match="results of image 9 only"):
        from_coco_results(results, [9, 4], [1, 5, 90])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(score_threshold=1.5), r"score_threshold=1.5 is not in \[0, 1\]"),
        (dict(batch_size=0), "batch_size=0 must be at least 1"),
        (dict(tile=0), "tile=0 must be at least 1"),
        (dict(tile=64, overlap=1.0), r"overlap=1 is not in \[0, 1\)"),
        (dict(scales=((100, 0),)), "give pairs of a longest long and short side"),
    ],
)
def test_wrong_inference(options: dict, message: str):
    with pytest.raises(UsageError, match=message):
        DetectionInference(**options)

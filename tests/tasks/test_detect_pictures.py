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
from transept.tasks.detect_pictures import DetectionInference, merge_detections

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
        (dict(scales=((100, 0),)), "give pairs of a longest long and short side"),
    ],
)
def test_wrong_inference(options: dict, message: str):
    with pytest.raises(UsageError, match=message):
        DetectionInference(**options)

"""Detectors: every method learns, answers image by image, and says what is wrong with its input."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate
from torchvision.ops import box_iou

import transept
from tests.helpers import NARROW
from transept.errors import TranseptError, UsageError
from transept.heads.instances import Target
from transept.models.registry import skeletons
from transept.ops.matching import RandomSampler
from transept.tasks.detect import METHODS, Detector
from transept.tasks.detect_methods import TwoStage

# Cascade Mask R-CNN is Cascade R-CNN with the masks of Mask R-CNN, which these show of both.
QUICK = [pytest.param(m, marks=[pytest.mark.slow] if m == "cascade_mask_rcnn" else []) for m in METHODS]
TINY = dict(backbone="xcit_nano_12_p8", depth=2, embed_dim=32, num_heads=2, num_classes=3, width=32)


def tiny(method: str, **options: int) -> Detector:
    width = 64 if method in ("fcos", "atss") else 32
    detector = transept.create_detector(method, **TINY | {"width": width} | options)
    if isinstance(detector.stages, TwoStage):  # fewer regions, for speed
        loss = replace(detector.stages.loss, sampler=RandomSampler(number=64, positive_fraction=0.25))
        detector.stages = replace(detector.stages, loss=loss)
    return detector


def a_target(size: tuple[int, int] = (96, 128)) -> Target:
    """Objects of many sizes, one as large as the image."""
    height, width = size
    boxes = torch.tensor([[4.0, 6, 20, 30], [30, 10, 70, 60], [0, 0, width, height], [60, 50, 90, 92]])
    masks = torch.zeros(4, height, width, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    return Target(boxes, torch.tensor([0, 2, 1, 1]), size, masks)


def no_objects(size: tuple[int, int] = (96, 128)) -> Target:
    return Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), size, torch.zeros(0, *size, dtype=torch.bool))


def learning(detector: Detector) -> list[tuple[str, torch.nn.Parameter]]:
    """All parameters but those of the finest level, which the single-stage methods do not read."""
    unread = () if isinstance(detector.stages, TwoStage) else ("backbone.fpn1.",)
    return [(name, p) for name, p in detector.named_parameters() if not name.startswith(unread)]


@pytest.mark.parametrize("method", METHODS)
def test_losses_reach_every_parameter(method: str):
    detector = tiny(method)
    losses = detector.losses(detector(torch.randn(2, 3, 96, 128)), [a_target(), a_target()])
    assert all(value.isfinite() and value >= 0 for value in losses.values())
    loss = torch.stack(list(losses.values())).sum()
    loss.backward()
    for name, parameter in learning(detector):
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A level that no object suits learns no box, and group norm makes a single cell a constant.
        assert parameter.grad.any() or name.startswith(("bbox_head.scales", "neck.fpn_convs")), name


@pytest.mark.parametrize("method", QUICK)
def test_images_without_objects(method: str):
    detector = tiny(method)
    images = torch.randn(2, 3, 96, 128)
    for targets in ([no_objects(), a_target()], [no_objects(), no_objects()]):
        detector.zero_grad()
        losses = detector.losses(detector(images), targets)
        torch.stack(list(losses.values())).sum().backward()
        assert all(value.isfinite() for value in losses.values())
        assert all(p.grad is not None and p.grad.isfinite().all() for _, p in learning(detector))
    located = [value for name, value in losses.items() if "cls" not in name]
    assert len(located) >= 1
    assert not any(located)


@pytest.mark.parametrize(
    ("method", "backbone"),
    [pytest.param(*each.values, "cabvit_h_l1", marks=each.marks) for each in QUICK]
    + [("retinanet", name) for name in list(NARROW)[1:]],
)
def test_what_gets_no_gradient_does_not_ask_for_one(method: str, backbone: str):
    width = 64 if method in ("fcos", "atss") else 32
    detector = transept.create_detector(method, backbone=backbone, num_classes=3, width=width, **NARROW[backbone])
    for targets in ([a_target(), no_objects()], [no_objects(), no_objects()]):
        detector.zero_grad()
        detector.loss(detector(torch.randn(2, 3, 96, 128)), targets).backward()
        learns = {name for name, p in detector.named_parameters() if p.requires_grad}
        assert {name for name, p in detector.named_parameters() if p.grad is not None} == learns
    idle = {name.rpartition(".")[0] for name, _ in detector.named_parameters()} - {n.rpartition(".")[0] for n in learns}
    assert all(name.startswith(("backbone.out_0", "backbone.norm0", "backbone.fpn1")) for name in idle), idle
    assert bool(idle) == (detector.neck.start_level > 0 and backbone != "crossformer_tiny")


@pytest.mark.parametrize("method", QUICK)
@torch.no_grad()
def test_a_batch_is_its_images(method: str):
    detector = tiny(method).eval()
    _sharpen(detector)
    images, sizes = torch.randn(2, 3, 96, 128), [(96, 128), (80, 100)]
    together = detector.decode(detector(images), sizes)
    for i, found in enumerate(together):
        (alone,) = detector.decode(detector(images[i : i + 1]), sizes[i : i + 1])
        assert len(found.boxes) == len(alone.boxes) > 5
        torch.testing.assert_close(found.scores, alone.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.boxes, alone.boxes, rtol=1e-4, atol=1e-3)
        assert torch.equal(found.labels, alone.labels)
        height, width = sizes[i]
        assert found.boxes.min() >= 0
        assert found.boxes[:, 2].max() <= width
        assert found.boxes[:, 3].max() <= height
        assert (found.masks is not None) == detector.has_masks == (method in ("mask_rcnn", "cascade_mask_rcnn"))
        if found.masks is not None and alone.masks is not None:
            torch.testing.assert_close(found.masks, alone.masks, rtol=1e-3, atol=1e-4)
            assert found.image_masks((height, width)).shape == (len(found.boxes), height, width)


@pytest.mark.parametrize("method", QUICK)
@torch.no_grad()
def test_boxes_come_back_in_the_original_image(method: str):
    detector = tiny(method).eval()
    _sharpen(detector)
    outputs = detector(torch.randn(1, 3, 96, 128))
    (resized,) = detector.decode(outputs, [(96, 128)])
    (original,) = detector.decode(outputs, [(96, 128)], [(192, 64)])
    factors = torch.tensor([0.5, 2, 0.5, 2])
    # Overlaps do not change when both sides are stretched, so the same boxes are left.
    torch.testing.assert_close(original.boxes, resized.boxes * factors, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(original.scores, resized.scores, rtol=1e-5, atol=1e-6)
    if resized.masks is not None:
        torch.testing.assert_close(original.masks, resized.masks, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["retinanet", "atss", "mask_rcnn"])
def test_what_a_batch_adds_to_an_image_does_not_train(method: str):
    """Anchors of cells beyond the padded image take no part."""
    detector = tiny(method).eval()
    target = Target(torch.tensor([[4.0, 6, 20, 30]]), torch.tensor([1]), (64, 64), torch.ones(1, 64, 64).bool())
    outputs = detector(torch.randn(1, 3, 128, 128))
    logits = outputs.rpn.logits if method == "mask_rcnn" else outputs.logits

    def loss() -> float:
        if method == "mask_rcnn":
            # Of all anchors, not of a random sample.
            return float(detector.stages.rpn_loss.match(anchors, sizes, target).eq(-1).sum())
        return float(detector.losses(outputs, [target])["loss_cls"].detach())

    if method == "mask_rcnn":
        sizes = [tuple(level.shape[-2:]) for level in logits]
        anchors = torch.cat(detector.stages.rpn_loss.anchors(sizes))
        on_image = sum(3 * max(1, 64 // stride) ** 2 for stride in (4, 8, 16, 32, 64))
        assert on_image / 2 < loss() < on_image
        return
    before = loss()
    with torch.no_grad():
        for level in logits:
            h, w = (-(-side // 2) for side in level.shape[-2:])
            level[..., h:, :] = 30.0
            level[..., :, w:] = 30.0
    assert loss() == pytest.approx(before)
    with torch.no_grad():
        logits[0][..., 7, 7] = 30.0
    assert loss() > before + 1


def digits() -> tuple[torch.Tensor, Target]:
    """Three of scikit-learn's digits on a dark ground."""
    pictures = load_digits().images
    image, boxes, masks = torch.zeros(96, 96), [], []
    for x, y, side, number in ((4, 6, 32, 3), (52, 10, 40, 5), (30, 56, 36, 8)):
        digit = torch.tensor(pictures[number] / 16, dtype=torch.float32)[None, None]
        digit = interpolate(digit, size=(side, side), mode="bilinear")[0, 0]
        image[y : y + side, x : x + side] = torch.maximum(image[y : y + side, x : x + side], digit)
        mask = torch.zeros(96, 96, dtype=torch.bool)
        mask[y : y + side, x : x + side] = digit > 0.3
        rows, columns = mask.nonzero().unbind(dim=1)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        masks.append(mask)
    target = Target(torch.tensor(boxes).float(), torch.tensor([0, 1, 2]), (96, 96), torch.stack(masks))
    return image[None, None].repeat(1, 3, 1, 1) * 2 - 1, target


@pytest.mark.parametrize(
    ("method", "steps"),
    [
        pytest.param("retinanet", 160, marks=pytest.mark.slow),
        ("mask_rcnn", 90),
        pytest.param("fcos", 250, marks=pytest.mark.slow),
        pytest.param("atss", 250, marks=pytest.mark.slow),
        pytest.param("cascade_rcnn", 80, marks=pytest.mark.slow),
        pytest.param("cascade_mask_rcnn", 80, marks=pytest.mark.slow),
    ],
)
def test_learns_one_image(method: str, steps: int):
    images, target = digits()
    detector = tiny(method, depth=1).train()
    optimiser = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        detector.loss(detector(images), [target]).backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimiser.step()
    with torch.no_grad():
        (found,) = detector.eval().decode(detector(images), [(96, 96)])
    best = [int((found.labels == label).nonzero()[0]) for label in range(3)]  # best first
    assert box_iou(found.boxes[best], target.boxes).diagonal().min() > 0.75
    assert found.scores[best].min() > 0.3
    if detector.has_masks:
        drawn, truth = found.image_masks((96, 96))[best], target.masks
        assert ((drawn & truth).sum((1, 2)) / (drawn | truth).sum((1, 2))).min() > 0.75


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_saving_and_loading(method: str, tmp_path: Path):
    detector = tiny(method).eval()
    detector.classes = ["cat", "cabin", "cross"]
    detector.save(tmp_path / "detector.safetensors")
    loaded = Detector.load(tmp_path / "detector.safetensors")
    assert (loaded.method, loaded.width, loaded.classes) == (method, detector.width, detector.classes)
    state = detector.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("method", ["retinanet", "cascade_rcnn"])
def test_smaller_anchors(method: str, tmp_path: Path):
    """The same in training and in answering, and when loaded again."""

    def sides(detector: Detector) -> list[float]:
        stages = detector.stages
        if isinstance(stages, TwoStage):
            parts = (stages.rpn_loss, stages.train_proposals, stages.test_proposals)
        else:
            parts = (stages.loss, stages.decode)
        anchors = [part.anchors([(1, 1)] * 5)[0][0] for part in parts]
        return [float(anchor[2] - anchor[0]) for anchor in anchors]

    published = transept.create_detector(method, **TINY)
    smaller = transept.create_detector(method, **TINY, anchor_scale=0.5)
    smaller.save(tmp_path / "detector.safetensors")
    for detector in (smaller, Detector.load(tmp_path / "detector.safetensors")):
        assert sides(detector) == pytest.approx([side / 2 for side in sides(published)])


def test_fewer_regions_to_learn_from():
    stages = tiny("mask_rcnn").stages
    assert isinstance(stages, TwoStage)
    few = stages.learning_from(8)
    assert few.loss.sampler == RandomSampler(number=8, positive_fraction=0.25)
    assert (few.train_proposals.per_level, few.train_proposals.kept) == (32, 32)
    assert few.test_proposals == stages.test_proposals


@pytest.mark.parametrize("method", ["atss", "cascade_mask_rcnn"])
@torch.no_grad()
def test_a_checkpoint_as_official_training_writes_it(method: str, tmp_path: Path):
    detector = tiny(method)
    own = detector.state_dict()
    state = {f"module.{name}": torch.randn_like(p) if p.is_floating_point() else p for name, p in own.items()}
    torch.save({"meta": {"CLASSES": ("a", "b", "c")}, "state_dict": state, "optimizer": {}}, tmp_path / "epoch_12.pth")
    report = transept.load_weights(detector, tmp_path / "epoch_12.pth")
    assert not report.missing
    assert not report.unexpected
    assert all(torch.equal(value, state[f"module.{name}"]) for name, value in detector.state_dict().items())


def test_a_file_that_holds_no_detector(tmp_path: Path):
    detector = tiny("retinanet")
    torch.save(detector.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(TranseptError, match="load it with create_detector"):
        Detector.load(tmp_path / "bare.pth")


class Whole(torch.nn.Module):
    """A detector with its decoding."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        sizes = torch.tensor([images.shape[-2:]] * len(images))
        found = self.detector.decode(self.detector(images), sizes)
        return [tuple(part for part in image if part is not None) for image in found]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_an_exported_detector_decodes_the_same(method: str):
    detector = tiny(method).eval()
    _sharpen(detector)
    whole = Whole(detector)
    program = torch.export.export(whole, (torch.randn(1, 3, 128, 160),))
    for images in (torch.randn(1, 3, 128, 160), torch.rand(1, 3, 128, 160)):
        (wanted,), (found,) = whole(images), program.module()(images)
        assert len(wanted[0]) > 0
        assert [part.shape for part in found] == [part.shape for part in wanted]
        # As sets: where scores tie to the last digit, the order is anyone's.
        ours, theirs = (
            torch.cat([part.flatten(1) for part in (b, s[:, None], n[:, None], *m)], dim=1)
            for b, s, n, *m in (wanted, found)
        )
        apart = (ours[:, None] - theirs).abs().amax(dim=2)
        assert apart.amin(dim=0).max() < 1e-2
        assert apart.amin(dim=1).max() < 1e-2


def test_initial_values():
    for method, classifier in (("retinanet", "retina_cls"), ("fcos", "conv_cls"), ("atss", "atss_cls")):
        head = transept.create_detector(method, **TINY | {"width": 256}).bbox_head
        bias = getattr(head, classifier).bias
        assert torch.allclose(bias, torch.full_like(bias, -math.log(99)))
        for module in head.modules():
            if isinstance(module, torch.nn.Conv2d):
                assert float(module.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    box_head = transept.create_detector("mask_rcnn", **TINY | {"width": 256}).roi_head.bbox_head
    assert float(box_head.fc_cls.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    assert float(box_head.fc_reg.weight.detach().std()) == pytest.approx(0.001, rel=0.1)
    bound = (6 / (256 * 49 + 1024)) ** 0.5
    assert 0.98 * bound < box_head.shared_fcs[0].weight.detach().abs().max() <= bound


@pytest.mark.parametrize(
    ("method", "backbone", "expected"),
    [
        ("mask_rcnn", "crossformer_small", dict(group_sizes=(7, 7, 7, 7), intervals=(8, 4, 2, 1), grouping="legacy")),
        ("cascade_mask_rcnn", "crossformer_base", dict(group_sizes=(14, 14, 7, 7), intervals=(16, 8, 2, 1))),
        ("retinanet", "cat_base", dict(num_heads=(3, 6, 12, 24))),
        ("atss", "cat_base", dict(num_heads=(4, 8, 16, 32))),
    ],
)
def test_published_options(method: str, backbone: str, expected: dict):
    with skeletons():
        detector = transept.create_detector(method, backbone=backbone)
        other = transept.create_detector(method, backbone=backbone, drop_path_rate=0.1, mlp_ratio=2.0)
    config = detector.backbone.config
    assert {name: tuple(getattr(config, name)) if name != "grouping" else config.grouping for name in expected} == (
        expected
    )
    assert other.backbone.config.mlp_ratio == 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(method="retinet"), "no detection method is called 'retinet'; did you mean 'retinanet'"),
        (dict(backbone="xcit_nano_13_p8"), "xcit_nano_12_p8"),
        (dict(widht=64), "no option of a detector on .* is called 'widht'; did you mean 'width'"),
        (dict(width=40), "width=40; give a positive multiple of 32"),
        (dict(method="atss"), "width=32; atss has 32 groups of channels, give 64 or more"),
        (dict(anchor_scale=0.0), "anchor_scale=0 must be greater than 0"),
        (dict(method="fcos", width=64, anchor_scale=0.5), "anchor_scale=0.5, but fcos has no anchors"),
        (dict(num_classes=0), "there are no classes"),
        (dict(classes=["a", "b"], num_classes=4), "2 names of classes were given for num_classes=4"),
        (dict(weights="a.pth", backbone_weights="b.pth"), "give them or backbone_weights"),
    ],
)
def test_calls_that_are_wrong(options: dict, message: str):
    with pytest.raises(UsageError, match=message):
        transept.create_detector(**dict(method="retinanet") | TINY | options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(labels=torch.tensor([0, 3, 1, 1])), "target 1 of the batch has the label 3; classes are 0 to 2"),
        (dict(labels=torch.tensor([0, 1])), r"boxes \(4, 4\) and labels \(2,\)"),
        (dict(boxes=torch.tensor([[5.0, 5, 5, 9]] * 4)), r"the box \[5.0, 5.0, 5.0, 9.0\]; give x1 < x2"),
        (dict(boxes=torch.tensor([[5.0, 5, torch.nan, 9]] * 4)), "all finite"),
        (dict(masks=None), "target 1 of the batch has 4 boxes and no masks"),
        (dict(masks=torch.zeros(2, 96, 128).bool()), "target 1 of the batch has 4 boxes and 2 masks"),
    ],
)
def test_targets_that_are_wrong(change: dict, message: str):
    detector = tiny("mask_rcnn")
    outputs = detector(torch.randn(2, 3, 96, 128))
    with pytest.raises(TranseptError, match=message):
        detector.losses(outputs, [a_target(), a_target()._replace(**change)])


def test_as_many_targets_as_images():
    detector = tiny("retinanet")
    with pytest.raises(TranseptError, match="1 targets for 2 images"):
        detector.loss(detector(torch.randn(2, 3, 64, 64)), [a_target((64, 64))])


def test_masks_of_a_detector_without():
    detector = tiny("retinanet").eval()
    with torch.no_grad():
        (found,) = detector.decode(detector(torch.randn(1, 3, 64, 64)), [(64, 64)])
    with pytest.raises(ValueError, match="no masks"):
        found.image_masks((64, 64))


def _sharpen(detector: Detector) -> None:
    """Random weights find nothing: make the class scores differ enough that some pass the threshold."""
    for name, parameter in detector.named_parameters():
        if name.endswith(("_cls.weight", "fc_reg.weight")):
            torch.nn.init.normal_(parameter, std=0.5 if "roi_head" in name else 0.2)
        elif name.endswith("_cls.bias"):
            torch.nn.init.constant_(parameter, -1.0)
        elif name.endswith("gn.bias"):  # else a level of one cell gives all classes the same score
            torch.nn.init.normal_(parameter)

"""Detection necks and heads compute what the official ones compute, under the same names (tests/golden)."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import transept
from tests.golden import weights
from tests.golden.make import DETECTORS, REFERENCE, fingerprint
from transept.heads.atss import ANCHORS as ATSS_ANCHORS
from transept.heads.atss import ATSSDecoder, ATSSLoss, ATSSOutputs
from transept.heads.cascade_rcnn import CascadeRCNNDecoder, CascadeRCNNHead, CascadeRCNNLoss
from transept.heads.dense import map_sizes
from transept.heads.fcos import STRIDES, FCOSDecoder, FCOSLoss, FCOSOutputs
from transept.heads.instances import Detections, Target, size_tensor
from transept.heads.mask_rcnn import MaskRCNNDecoder, MaskRCNNHead, MaskRCNNLoss
from transept.heads.retinanet import ANCHORS as RETINANET_ANCHORS
from transept.heads.retinanet import RetinaNetDecoder, RetinaNetLoss, RetinaNetOutputs
from transept.heads.roi import BoxOutputs, refine_rois, roi_levels
from transept.heads.rpn import ANCHORS as RPN_ANCHORS
from transept.heads.rpn import Proposals, RPNLoss
from transept.models.registry import skeletons
from transept.ops.anchors import base_anchors, grid_points
from transept.ops.boxes import clip_boxes, decode_deltas, encode_deltas
from transept.ops.matching import ATSS, BACKGROUND, IGNORED, InsideBox, MaxIoU, RandomSampler
from transept.tasks.detect import Detector

GOLDEN = Path(__file__).parents[1] / "golden" / "dense"
NAMES = [name for name, _ in DETECTORS]
# Quick are the sizes that do not divide, one set of weights for each method.
SLOW = ("cascade_mask_rcnn", "mask_rcnn.cat_s", "mask_rcnn.xcit_s12_p8", "mask_rcnn.xcit_s12_p16", "retinanet.cat_s",
        ("cascade_rcnn", "even"), ("mask_rcnn", "even"), ("retinanet", "even"), ("fcos", "even"),
        ("atss", "even"))  # fmt: skip
EVERY = RandomSampler(number=10**6, positive_fraction=0.5)
"""The recorded losses look at all anchors and all regions."""


def read(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


OPERATIONS = read("operations")


def shapes_of(module: torch.nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in module.state_dict().items()}


@cache
def without_weights(name: str) -> Detector:
    golden = read(name)
    with skeletons():
        return transept.create_detector(golden["method"], backbone=golden["backbone"]).eval()


@cache
def build(name: str) -> Detector:
    """Neck and heads with the recorded weights."""
    detector = without_weights(name)
    with skeletons():
        detector = Detector(detector.method, detector.backbone, detector.classes).eval()
    detector.backbone = torch.nn.Identity()
    detector.to_empty(device="cpu")
    shapes = {key: list(value.shape) for key, value in detector.state_dict().items() if value.is_floating_point()}
    assert fingerprint(shapes) == read(name)["head_keys"]
    state = {key: torch.from_numpy(value) for key, value in weights.state_dict_for(shapes).items()}
    detector.load_state_dict(state, strict=False)
    return detector


def maps_of(recorded: dict) -> list[Tensor]:
    return [torch.from_numpy(weights.image_for(given["seed"], given["shape"])) for given in recorded["inputs"]]


def assert_equal(value: Tensor, expected: dict, what: str, tolerance: float | None = None) -> None:
    """Within 1e-4 of the spread, or within `tolerance`."""
    assert list(value.shape) == expected["shape"], what
    error = np.abs(np.array(weights.sample(value.numpy())) - np.array(expected["sample"])).max()
    assert error < (tolerance or 1e-4 * expected["std"]), (what, error, expected["std"])


def assert_same_boxes(found: Tensor, expected: dict, labels: Tensor | None = None) -> None:
    """Rows x1, y1, x2, y2, score: the recorded ones, all of them; where scores nearly tie, in any order."""
    assert len(found) == expected["count"]
    assert abs(float(found.double().sum()) - expected["sum"]) < 1e-6 * max(1.0, expected["sum"])
    wanted = torch.tensor(expected["first"]).reshape(-1, 5)
    # A tie at the end of the list may have put another row into it.
    candidates = found[: len(wanted) + 5]
    spread = torch.tensor([1e-3] * 4 + [1e-5])
    for i, row in enumerate(wanted):
        same = ((candidates - row).abs() < spread).all(dim=1)
        if labels is not None:
            same &= labels[: len(candidates)] == expected["labels"][i]
        assert same.any(), (i, row.tolist())
        same_place = same.nonzero().flatten() - i
        assert same_place.abs().min() <= 2, (i, row.tolist())


def assert_same_detections(found: Detections, expected: dict) -> None:
    assert_same_boxes(torch.cat((found.boxes, found.scores[:, None]), dim=1), expected, found.labels)


# Names


@pytest.mark.parametrize("name", NAMES)
def test_names_shapes_and_parameters_are_those_of_the_official_checkpoint(name: str):
    golden, detector = read(name), without_weights(name)
    assert fingerprint(shapes_of(detector)) == golden["keys"]
    for part, parameters in golden["parameters"].items():
        assert sum(p.numel() for p in detector.get_submodule(part).parameters()) == parameters, part


@pytest.mark.parametrize("name", NAMES)
def test_names_one_by_one(name: str):
    table = REFERENCE / "dense_keys" / f"{name}.json"
    if not table.exists():
        pytest.skip(f"needs the recorded names at {table}")
    recorded = json.loads(table.read_text())
    ours = shapes_of(without_weights(name))
    derived = {key for key in recorded["integer_buffers"] if key.endswith("relative_position_index")}
    assert recorded["shapes"].keys() - ours.keys() == derived
    for key, shape in ours.items():
        assert recorded["shapes"][key] == shape, key


# Neck and heads


def cases(single_stage: bool) -> list:
    methods = ("retinanet", "fcos", "atss")
    return [
        pytest.param(name, case, marks=[pytest.mark.slow] if name in SLOW or (name, case) in SLOW else [])
        for name in NAMES
        if (read(name)["method"] in methods) == single_stage
        for case in read(name)["cases"]
    ]


def named_levels(prefix: str, levels: list[Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{i}": level for i, level in enumerate(levels)}


@pytest.mark.parametrize(("name", "case"), cases(single_stage=True))
@torch.inference_mode()
def test_raw_outputs_of_single_stage_heads(name: str, case: str):
    detector, recorded = build(name), read(name)["cases"][case]
    maps = detector.neck(maps_of(recorded))
    outputs = named_levels("neck", maps)
    for part, levels in zip(("cls", "reg", "centerness"), detector.bbox_head(maps), strict=False):
        outputs |= named_levels(f"bbox_head.{part}", levels)
    assert outputs.keys() == recorded["outputs"].keys()
    for key, value in outputs.items():
        assert_equal(value, recorded["outputs"][key], key)


@pytest.mark.parametrize(("name", "case"), cases(single_stage=False))
@torch.inference_mode()
def test_two_stage_heads(name: str, case: str):
    detector, recorded = build(name), read(name)["cases"][case]
    maps = detector.neck(maps_of(recorded))
    outputs = named_levels("neck", maps)
    rpn = detector.rpn_head(maps)
    for part, levels in zip(("cls", "reg"), rpn, strict=True):
        outputs |= named_levels(f"rpn_head.{part}", levels)

    image_sizes = [tuple(recorded["image_size"])] * 2
    for found, expected in zip(Proposals()(rpn, image_sizes), recorded["proposals"], strict=True):
        assert_same_boxes(torch.cat((found.boxes, found.scores[:, None]), dim=1), expected)

    rois = torch.tensor(recorded["rois"]["values"])
    assert roi_levels(rois).tolist() == recorded["roi_levels"]
    sizes = size_tensor(image_sizes, rois.device)
    head = detector.roi_head
    if isinstance(head, MaskRCNNHead):
        boxes, masks = head(maps, rois)
        box_heads, mask_heads, last, decoder = [boxes], [masks], rois, MaskRCNNDecoder().boxes
        features = [head.bbox_head.features(maps, rois), head.mask_head.features(maps, rois)]
    else:
        assert isinstance(head, CascadeRCNNHead)
        box_heads, mask_heads, refined = [], [], rois
        for i, stage in enumerate(head.stages):
            box_heads.append(head.boxes(i, maps, refined))
            if head.mask_heads:
                mask_heads.append(head.masks(i, maps, rois))
            if i < 2:
                refined = refine_rois(refined, box_heads[i], stage.std, sizes)
                expected = torch.tensor(recorded[f"refined_rois_after_stage_{i}"])
                torch.testing.assert_close(refined, expected, rtol=0, atol=1e-3)
        last, boxes = head(maps, rois, sizes)
        assert torch.equal(last, refined)
        decoder = CascadeRCNNDecoder().boxes
        features = [head.bbox_head[0].features(maps, rois), *(h.features(maps, rois) for h in head.mask_heads[:1])]
    for i, (logits, deltas) in enumerate(box_heads):
        outputs |= {f"box_head.{i}.cls": logits, f"box_head.{i}.reg": deltas}
    outputs |= named_levels("mask_head", mask_heads)
    outputs |= dict(zip(("roi_features_7x7", "roi_features_14x14"), features, strict=False))
    for key, value in outputs.items():
        assert_equal(value, recorded["outputs"][key], key)

    scores = boxes.logits.softmax(dim=1)
    assert_equal(scores[:8], recorded["outputs"]["softmax_scores_image0"], "scores", tolerance=1e-6)
    decoded = decoder.boxes(last, boxes, sizes)[:8].flatten(1)
    assert_equal(decoded, recorded["outputs"]["decoded_boxes_image0"], "boxes", tolerance=1e-3)
    assert outputs.keys() | {"softmax_scores_image0", "decoded_boxes_image0"} == recorded["outputs"].keys()
    # The recording has the scores times 4, so that some pass the threshold.
    detections = decoder(last, BoxOutputs(boxes.logits * 4, boxes.deltas), image_sizes)
    assert_same_detections(detections[0], recorded["detections_image0"])


# Priors, coder, assignments


@pytest.mark.parametrize(
    ("name", "anchors"), [("retinanet", RETINANET_ANCHORS), ("rpn", RPN_ANCHORS), ("atss", ATSS_ANCHORS)]
)
def test_anchors(name: str, anchors):
    recorded = OPERATIONS["priors"][name]
    for stride, expected in recorded["base_anchors"].items():
        base = base_anchors(int(stride), anchors.scales, anchors.ratios)
        torch.testing.assert_close(base, torch.tensor(expected), rtol=0, atol=1e-5)
    levels = anchors(recorded["feature_sizes"])
    assert [len(level) for level in levels] == recorded["count"]
    torch.testing.assert_close(levels[0][:12], torch.tensor(recorded["first12_level0"]), rtol=0, atol=1e-4)
    torch.testing.assert_close(levels[0][-3:], torch.tensor(recorded["last3_level0"]), rtol=0, atol=1e-4)
    for level, expected in zip(levels, recorded["sum_abs"], strict=True):
        assert float(level.double().abs().sum()) == pytest.approx(expected, rel=1e-6)


def test_points():
    recorded = OPERATIONS["priors"]["fcos_points"]
    for stride, size, expected in zip(STRIDES, recorded["feature_sizes"], recorded["first3"], strict=True):
        points = grid_points(stride, size)
        assert len(points) == size[0] * size[1]
        assert points[:3].tolist() == expected


@pytest.mark.parametrize("std", OPERATIONS["box_coder"]["by_std"])
def test_box_coder(std: str):
    recorded = OPERATIONS["box_coder"]
    boxes, targets, deltas = (torch.tensor(recorded[key]) for key in ("boxes", "targets", "deltas"))
    expected = {key: torch.tensor(value) for key, value in recorded["by_std"][std].items()}
    deviations = tuple(json.loads(std))
    torch.testing.assert_close(encode_deltas(boxes, targets, deviations), expected["encoded"], rtol=0, atol=1e-5)
    decoded = decode_deltas(boxes, deltas, deviations)
    torch.testing.assert_close(decoded, expected["decoded_unclipped"], rtol=0, atol=1e-3)
    clipped = clip_boxes(decoded[None], torch.tensor([OPERATIONS["image_size"]]))[0]
    torch.testing.assert_close(clipped, expected["decoded_clipped"], rtol=0, atol=1e-3)


def positive_boxes(assignment: Tensor) -> dict[str, int]:
    return {str(i): int(assignment[i]) for i in (assignment >= 0).nonzero().flatten().tolist()}


def counts(assignment: Tensor) -> tuple[int, int, int]:
    return int((assignment >= 0).sum()), int((assignment == BACKGROUND).sum()), int((assignment == IGNORED).sum())


def test_assignments():
    boxes = torch.tensor(OPERATIONS["gt_boxes"][0])
    sizes = OPERATIONS["retinanet"]["feature_sizes"]
    recorded = OPERATIONS["retinanet"]["assignment_image0"]
    matcher = MaxIoU(positive=0.5, negative=0.4, low_quality=0.0)
    assignment = matcher(torch.cat(RETINANET_ANCHORS(sizes)), boxes)
    assert counts(assignment) == (recorded["positive"], recorded["negative"], recorded["ignored"])
    assert positive_boxes(assignment) == recorded["positive_index_to_gt"]

    recorded = OPERATIONS["atss"]["assignment_image0"]
    assignment = ATSS()(ATSS_ANCHORS(sizes), boxes)
    assert counts(assignment) == (recorded["positive"], len(assignment) - recorded["positive"], 0)
    assert positive_boxes(assignment) == recorded["positive_index_to_gt"]

    recorded = OPERATIONS["mask_rcnn"]["rpn_assignment_image0_all_anchors"]
    matcher = MaxIoU(positive=0.7, negative=0.3, low_quality=0.3)
    assignment = matcher(torch.cat(RPN_ANCHORS(OPERATIONS["priors"]["rpn"]["feature_sizes"])), boxes)
    assert counts(assignment) == (recorded["positive"], recorded["negative"], recorded["ignored"])
    assert positive_boxes(assignment) == recorded["positive_index_to_gt"]


def test_assignment_of_points():
    sizes = OPERATIONS["fcos"]["feature_sizes"]
    points = [grid_points(stride, size) for stride, size in zip(STRIDES, sizes, strict=True)]
    by_image = [
        InsideBox()(points, torch.tensor(boxes)).split([len(level) for level in points])
        for boxes in OPERATIONS["gt_boxes"]
    ]
    for recorded in OPERATIONS["fcos"]["assignment"]:
        found = {}
        for image, labels in enumerate(OPERATIONS["gt_labels"]):
            part = by_image[image][recorded["level"]]
            start = image * len(part)
            found |= {str(start + i): labels[int(part[i])] for i in (part >= 0).nonzero().flatten().tolist()}
        assert found == recorded["positive_index_to_label"]


# Losses and detections of given raw maps


def ellipse(box: Tensor) -> Tensor:
    """Of the recording's image size: the pixels whose centres lie in the ellipse inscribed in the box."""
    height, width = OPERATIONS["image_size"]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    return ((x - centre[0]) / half[0]) ** 2 + ((y - centre[1]) / half[1]) ** 2 <= 1


def targets() -> list[Target]:
    size = tuple(OPERATIONS["image_size"])
    return [
        Target(boxes, torch.tensor(labels), size, torch.stack([ellipse(box) for box in boxes]))
        for boxes, labels in zip(map(torch.tensor, OPERATIONS["gt_boxes"]), OPERATIONS["gt_labels"], strict=True)
    ]


def raw_maps(recorded: dict, part: str) -> list[Tensor]:
    given = recorded["raw_outputs"][part]
    maps = []
    for seed, (h, w), stride in zip(given["seeds"], recorded["feature_sizes"], STRIDES, strict=True):
        x = torch.from_numpy(weights.image_for(seed, (2, given["channels"], h, w)))
        match given["transform"].partition(" (")[0]:
            case "0.8*x - 4":
                x = 0.8 * x - 4
            case "0.3*x":
                x = 0.3 * x
            case "abs(0.3*x) * 4 * stride":
                x = (0.3 * x).abs() * 4 * stride
            case other:
                assert other == "x"
        maps.append(x)
    return maps


@pytest.mark.parametrize(
    ("name", "record", "loss", "decoder"),
    [
        ("retinanet", RetinaNetOutputs, RetinaNetLoss(num_classes=80), RetinaNetDecoder(num_classes=80)),
        ("fcos", FCOSOutputs, FCOSLoss(num_classes=80), FCOSDecoder(num_classes=80)),
        ("atss", ATSSOutputs, ATSSLoss(num_classes=80), ATSSDecoder(num_classes=80)),
    ],
)
def test_losses_and_detections_of_single_stage_heads(name: str, record, loss, decoder):
    recorded = OPERATIONS[name]
    outputs = record(*(raw_maps(recorded, part) for part in recorded["raw_outputs"]))
    losses = loss(outputs, targets())
    assert losses.keys() == recorded["losses"].keys()
    for key, value in losses.items():
        assert float(value) == pytest.approx(np.sum(recorded["losses"][key]), rel=1e-5), key
    sizes = [tuple(OPERATIONS["image_size"])] * 2
    for found, expected in zip(decoder(outputs, sizes), recorded["detections"], strict=True):
        assert_same_detections(found, expected)


@pytest.mark.parametrize(
    "name", ["mask_rcnn", "cascade_rcnn", pytest.param("cascade_mask_rcnn", marks=pytest.mark.slow)]
)
@torch.inference_mode()
def test_losses_of_two_stage_heads(name: str):
    detector, recorded = build(name), OPERATIONS[name]
    maps = detector.neck(maps_of(recorded))
    rpn = detector.rpn_head(maps)
    cascade = name != "mask_rcnn"
    rpn_loss = RPNLoss(sampler=EVERY, beta=1 / 9 if cascade else None, inside=cascade)
    for key, value in rpn_loss(rpn, targets()).items():
        assert float(value) == pytest.approx(sum(recorded["rpn_losses_all_anchors"][key]), rel=1e-5), key
    anchors = torch.cat(RPN_ANCHORS(map_sizes(rpn.logits)))
    assignment = RPNLoss().match(anchors, map_sizes(rpn.logits), targets()[0])
    assert positive_boxes(assignment) == recorded["rpn_assignment_image0_all_anchors"]["positive_index_to_gt"]

    loss = CascadeRCNNLoss(sampler=EVERY, giou=name == "cascade_mask_rcnn") if cascade else MaskRCNNLoss(sampler=EVERY)
    proposals = [torch.tensor(OPERATIONS["proposals"])] * 2
    losses = loss(detector.roi_head, maps, proposals, targets())
    expected = {key: value for key, value in recorded["roi_losses"].items() if not key.endswith("acc")}
    assert losses.keys() == expected.keys()
    for key, value in losses.items():
        assert float(value) == pytest.approx(expected[key], rel=1e-5), key

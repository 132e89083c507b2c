"""Object detection and instance segmentation: a box, a class and where the method has it a mask for every object."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from transept.checks import check_known, check_positive
from transept.data.detection.transforms import DetectionPreprocessing
from transept.errors import TranseptError, UsageError, unknown
from transept.heads.atss import ATSSDecoder, ATSSHead, ATSSLoss
from transept.heads.cascade_rcnn import CascadeRCNNDecoder, CascadeRCNNHead, CascadeRCNNLoss
from transept.heads.fcos import FCOSDecoder, FCOSHead, FCOSLoss
from transept.heads.fpn import FPN
from transept.heads.instances import Detections, Size, Target
from transept.heads.mask_rcnn import MaskRCNNDecoder, MaskRCNNHead, MaskRCNNLoss
from transept.heads.retinanet import RetinaNetDecoder, RetinaNetHead, RetinaNetLoss
from transept.heads.roi import BoxHead, MaskHead
from transept.heads.rpn import Proposals, RPNHead, RPNLoss, RPNOutputs
from transept.models.backbone import Backbone
from transept.models.registry import build_model, find_model
from transept.tasks.dense import build_pyramid, check_sources, class_names, load_sources
from transept.tasks.detect_pictures import DetectionInference, detect_pictures
from transept.tasks.saving import describe, loading_task, save_task, tuples


class TwoStageOutputs(NamedTuple):
    """What does not depend on proposals yet."""

    maps: list[Tensor]
    """`b c h w` of strides 4, 8, 16, 32, 64."""
    rpn: RPNOutputs


@dataclass(frozen=True, kw_only=True, slots=True)
class SingleStage:
    """How a method learns and answers whose head sees every place once."""

    loss: Any
    """`RetinaNetLoss` or its like: outputs and targets to losses by name."""
    decode: Any
    """`RetinaNetDecoder` or its like: outputs and sizes to detections."""

    def with_anchors(self, scale: float) -> "SingleStage":
        """With anchors of so many times the published sides."""
        return SingleStage(loss=_scaled(self.loss, scale), decode=_scaled(self.decode, scale))


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoStage:
    """How a method learns and answers whose head looks again at the proposals of a region proposal network."""

    rpn_loss: RPNLoss
    loss: Any
    """`MaskRCNNLoss` or `CascadeRCNNLoss`."""
    decode: Callable[..., list[Detections]]
    train_proposals: Proposals
    test_proposals: Proposals = Proposals()

    def with_anchors(self, scale: float) -> "TwoStage":
        """With anchors of so many times the published sides."""
        parts = ("rpn_loss", "train_proposals", "test_proposals")
        return dataclasses.replace(self, **{part: _scaled(getattr(self, part), scale) for part in parts})

    def learning_from(self, rois: int) -> "TwoStage":
        """With so many regions of each image in the loss, of at most four times as many proposals."""
        sampler = dataclasses.replace(self.loss.sampler, number=rois)
        kept = min(4 * rois, self.train_proposals.kept)
        return dataclasses.replace(
            self,
            loss=dataclasses.replace(self.loss, sampler=sampler),
            train_proposals=dataclasses.replace(self.train_proposals, per_level=kept, kept=kept),
        )


def _scaled(part: Any, scale: float) -> Any:
    """A part that has anchors, with them scaled."""
    anchors = dataclasses.replace(part.anchors, scales=tuple(scale * each for each in part.anchors.scales))
    return dataclasses.replace(part, anchors=anchors)


class Parts(NamedTuple):
    """What a method puts on a backbone."""

    neck: FPN
    heads: Mapping[str, nn.Module]
    """By their names in checkpoints."""
    stages: SingleStage | TwoStage
    has_masks: bool = False


def _retinanet(channels: Sequence[int], num_classes: int, width: int) -> Parts:
    neck = FPN(channels, width, 5, start_level=1, extra="on_input")
    head = RetinaNetHead(width, num_classes, channels=width)
    stages = SingleStage(loss=RetinaNetLoss(num_classes=num_classes), decode=RetinaNetDecoder(num_classes=num_classes))
    return Parts(neck, {"bbox_head": head}, stages)


def _fcos(channels: Sequence[int], num_classes: int, width: int) -> Parts:
    neck = FPN(channels, width, 5, start_level=1, extra="on_output", relu_before_extra=True)
    head = FCOSHead(width, num_classes, channels=width)
    stages = SingleStage(loss=FCOSLoss(num_classes=num_classes), decode=FCOSDecoder(num_classes=num_classes))
    return Parts(neck, {"bbox_head": head}, stages)


def _atss(channels: Sequence[int], num_classes: int, width: int) -> Parts:
    neck = FPN(channels, width, 5, start_level=1, extra="on_output")
    head = ATSSHead(width, num_classes, channels=width)
    stages = SingleStage(loss=ATSSLoss(num_classes=num_classes), decode=ATSSDecoder(num_classes=num_classes))
    return Parts(neck, {"bbox_head": head}, stages)


def _mask_rcnn(channels: Sequence[int], num_classes: int, width: int) -> Parts:
    head = MaskRCNNHead(width, num_classes, hidden=4 * width, mask_channels=width)
    stages = TwoStage(
        rpn_loss=RPNLoss(),
        loss=MaskRCNNLoss(),
        decode=MaskRCNNDecoder(),
        train_proposals=Proposals(per_level=2000, kept=1000),
    )
    neck = FPN(channels, width, 5, extra="pool")
    return Parts(neck, {"rpn_head": RPNHead(width, channels=width), "roi_head": head}, stages, has_masks=True)


def _cascade(channels: Sequence[int], width: int, head: CascadeRCNNHead, *, giou: bool) -> Parts:
    stages = TwoStage(
        rpn_loss=RPNLoss(beta=1 / 9, inside=True),
        loss=CascadeRCNNLoss(giou=giou),
        decode=CascadeRCNNDecoder(),
        train_proposals=Proposals(per_level=2000, kept=2000),
    )
    neck = FPN(channels, width, 5, extra="pool")
    heads = {"rpn_head": RPNHead(width, channels=width), "roi_head": head}
    return Parts(neck, heads, stages, has_masks=bool(head.mask_heads))


def _cascade_rcnn(channels: Sequence[int], num_classes: int, width: int) -> Parts:
    return _cascade(channels, width, CascadeRCNNHead(width, num_classes, hidden=4 * width), giou=False)


def _cascade_mask_rcnn(channels: Sequence[int], num_classes: int, width: int) -> Parts:
    head = CascadeRCNNHead(
        width,
        num_classes,
        num_convs=4,
        num_fcs=1,
        class_agnostic=False,
        with_masks=True,
        hidden=4 * width,
        mask_channels=width,
    )
    return _cascade(channels, width, head, giou=True)


METHODS: Mapping[str, Callable[[Sequence[int], int, int], Parts]] = {
    "retinanet": _retinanet,
    "fcos": _fcos,
    "atss": _atss,
    "mask_rcnn": _mask_rcnn,
    "cascade_rcnn": _cascade_rcnn,
    "cascade_mask_rcnn": _cascade_mask_rcnn,
}
"""Method to `(channels, num_classes, width)`; a new one is a head and a line here."""

_SMALL_GROUPS = dict(group_sizes=(7, 7, 7, 7), intervals=(8, 4, 2, 1), grouping="legacy")
_LARGE_GROUPS = dict(group_sizes=(14, 14, 7, 7), intervals=(16, 8, 2, 1), grouping="legacy")
PUBLISHED_OPTIONS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    # Of CrossFormer's Mask R-CNN the 1x rows; its 3x rows, as the cascade, have the large groups.
    (method, f"crossformer_{size}"): _LARGE_GROUPS if method == "cascade_mask_rcnn" else _SMALL_GROUPS
    for method in METHODS
    for size in ("small", "base", "large")
} | {
    # CAT-B was published with two numbers of heads, that of the classifier and this one.
    (method, "cat_base"): dict(num_heads=(4, 8, 16, 32))
    for method in ("mask_rcnn", "fcos", "atss")
}
"""Method and backbone to the options of the published detector, where they are not the classifier's."""

PUBLISHED_3X_OPTIONS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("mask_rcnn", f"crossformer_{size}"): _LARGE_GROUPS for size in ("small", "base")
}
"""The same of those that were also published with three times the training, in which they differ."""

PUBLISHED_PREPROCESSING: Mapping[tuple[str, str], DetectionPreprocessing] = {
    ("fcos", f"cat_{size}"): DetectionPreprocessing(
        mean=(102.9801 / 255, 115.9465 / 255, 122.7717 / 255), std=(1 / 255, 1 / 255, 1 / 255), bgr=True
    )
    for size in ("small", "base")
}
"""Method and backbone to the preprocessing of the published detector, where it is not the default."""


class Detector(nn.Module):
    """A backbone with a method's neck and heads, the names of its classes, and its preprocessing.

    Names of parameters are those of mmdetection's checkpoints: `backbone`, `neck`, and `bbox_head`, or `rpn_head` and
    `roi_head`.
    """

    bbox_head: nn.Module
    rpn_head: nn.Module
    roi_head: nn.Module

    def __init__(
        self,
        method: str,
        backbone: Backbone,
        classes: Sequence[str],
        *,
        width: int = 256,
        anchor_scale: float = 1.0,
        preprocessing: DetectionPreprocessing | None = None,
    ) -> None:
        super().__init__()
        check_parts(method, width, anchor_scale)
        if not classes:
            raise UsageError("there are no classes; give one or more")
        levels = backbone.feature_info
        if list(levels.reduction()) != [4, 8, 16, 32]:
            raise UsageError(f"the backbone has levels of strides {list(levels.reduction())}; give one of 4, 8, 16, 32")
        self.method = method
        self.width = width
        self.anchor_scale = anchor_scale
        self.classes = list(classes)
        self.preprocessing = preprocessing or DetectionPreprocessing()
        self.backbone = backbone
        self.neck, heads, self.stages, self.has_masks = METHODS[method](levels.channels(), len(classes), width)
        if anchor_scale != 1:
            self.stages = self.stages.with_anchors(anchor_scale)
        for name, head in heads.items():
            self.add_module(name, head)
        # What no loss reads does not learn: training on several processes waits for every gradient there should be.
        for level in range(self.neck.start_level):
            name = levels.module_name(level)
            if "." not in name:  # else a stage, which the next levels come from
                backbone.get_submodule(name).requires_grad_(False)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The backbone's: its name and the channels and native size of its images."""
        return self.backbone.pretrained_cfg

    def forward(self, images: Tensor) -> Any:
        """Normalised images `b 3 H W`, padded on the right and at the bottom, to the raw outputs of the method."""
        maps = self.neck(self.backbone(images))
        if isinstance(self.stages, SingleStage):
            return self.bbox_head(maps)
        return TwoStageOutputs(maps, self.rpn_head(maps))

    def run_layers(self, images: Tensor, *, boxes: int = 1000, masks: int = 100) -> None:
        """Each layer once, to be counted: box heads on so many regions, mask heads on so many, whatever the image.

        The numbers are those of the published costs. What the heads see is not read from the image.
        """
        self(images)
        for head in self.modules():
            if isinstance(head, BoxHead | MaskHead):
                size = head.features.size
                head(images.new_empty(boxes if isinstance(head, BoxHead) else masks, self.width, size, size))

    def losses(self, outputs: Any, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The method's losses by name, each with its weight.

        Raises:
            TranseptError: targets that do not fit the batch or the classes, or lack masks that the method learns from.
        """
        self._check(outputs, targets)
        if isinstance(self.stages, SingleStage):
            return self.stages.loss(outputs, targets)
        losses = self.stages.rpn_loss(outputs.rpn, targets)
        found = self.stages.train_proposals(outputs.rpn, [target.size for target in targets])
        return losses | self.stages.loss(self.roi_head, outputs.maps, [image.boxes for image in found], targets)

    def loss(self, outputs: Any, targets: Sequence[Target]) -> Tensor:
        """The sum of `losses`."""
        return torch.stack(list(self.losses(outputs, targets).values())).sum()

    def decode(
        self, outputs: Any, image_sizes: Sequence[Size] | Tensor, original_sizes: Sequence[Size] | Tensor | None = None
    ) -> list[Detections]:
        """Raw outputs to the detections of each image.

        `image_sizes` are height and width of the resized images without padding. With `original_sizes`, those of the
        images as they were, boxes come back in their pixels.
        """
        if isinstance(self.stages, SingleStage):
            return self.stages.decode(outputs, image_sizes, original_sizes)
        found = [image.boxes for image in self.stages.test_proposals(outputs.rpn, image_sizes)]
        return self.stages.decode(self.roi_head, outputs.maps, found, image_sizes, original_sizes)

    @torch.inference_mode()
    def predict(
        self, pictures: Sequence[Image.Image | Tensor], inference: DetectionInference | None = None
    ) -> list[Detections]:
        """RGB pictures (or bytes `3 H W`) of any sizes to what is on each, in its own pixels, best first.

        Masks are drawn into the picture: `n H W` bool.

        Raises:
            TranseptError: a tensor that is no picture.
            UsageError: `inference` names a class that the detector does not know.
        """
        return detect_pictures(self, pictures, inference or DetectionInference())

    def save(self, path: Path) -> None:
        """Weights, architecture, classes and preprocessing in one safetensors file, written atomically."""
        about = describe(self.backbone) | {
            "method": self.method,
            "width": self.width,
            "anchor_scale": self.anchor_scale,
            "classes": self.classes,
            "preprocessing": dataclasses.asdict(self.preprocessing),
        }
        save_task(path, "detect", self, about)

    @staticmethod
    def load(path: Path) -> "Detector":
        """What `save` wrote.

        Raises:
            TranseptError: the file is missing, damaged, or was not written by `save`.
        """
        with loading_task(path, "detect") as (state, about):
            backbone = build_model(
                about["architecture"], in_chans=about["in_chans"], features_only=True, **about["options"]
            )
            detector = Detector(
                about["method"],
                backbone,
                about["classes"],
                width=about["width"],
                anchor_scale=about.get("anchor_scale", 1.0),
                preprocessing=DetectionPreprocessing(**tuples(about["preprocessing"])),
            )
            detector.load_state_dict(state)
            return detector.eval()

    def _check(self, outputs: Any, targets: Sequence[Target]) -> None:
        logits = outputs.rpn.logits if isinstance(outputs, TwoStageOutputs) else outputs.logits
        if len(targets) != len(logits[0]):
            raise TranseptError(f"{len(targets)} targets for {len(logits[0])} images; give one for each")
        for i, target in enumerate(targets):
            if target.boxes.ndim != 2 or target.boxes.shape[1] != 4 or len(target.labels) != len(target.boxes):
                raise TranseptError(
                    f"target {i} of the batch has boxes {tuple(target.boxes.shape)} and labels"
                    f" {tuple(target.labels.shape)}; give n x 4 and n"
                )
            if target.boxes.device.type != "cpu":  # elsewhere the look would make the processor wait
                continue
            wrong = target.labels[(target.labels < 0) | (target.labels >= len(self.classes))]
            if len(wrong):
                raise TranseptError(
                    f"target {i} of the batch has the label {int(wrong[0])}; classes are 0 to {len(self.classes) - 1}"
                )
            sound = (target.boxes[:, 2:] > target.boxes[:, :2]).all(dim=1) & target.boxes.isfinite().all(dim=1)
            if not sound.all():
                box = target.boxes[~sound][0].tolist()
                raise TranseptError(f"target {i} of the batch has the box {box}; give x1 < x2 and y1 < y2, all finite")


def check_parts(method: str, width: int, anchor_scale: float) -> None:
    """Whether there is such a detector.

    Raises:
        UsageError: an unknown method, or values that it cannot have.
    """
    check_known(METHODS, method=method)
    if width < 32 or width % 32:
        raise UsageError(f"width={width}; give a positive multiple of 32 channels")
    if width < 64 and method in ("fcos", "atss"):
        # Of one channel a group norm cannot be taken where a level is a single cell.
        raise UsageError(f"width={width}; {method} has 32 groups of channels, give 64 or more")
    check_positive(anchor_scale=anchor_scale)
    if anchor_scale != 1 and method == "fcos":
        raise UsageError(f"anchor_scale={anchor_scale}, but fcos has no anchors; leave it out")


def create_detector(
    method: str,
    *,
    backbone: str,
    num_classes: int = 80,
    weights: str | PathLike[str] | None = None,
    backbone_weights: str | PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: DetectionPreprocessing | None = None,
    width: int = 256,
    anchor_scale: float = 1.0,
    in_chans: int = 3,
    img_size: int | Sequence[int] | None = None,
    drop_path_rate: float = 0.0,
    **options: Any,
) -> Detector:
    """A detector by name, on any model of `transept.list_models()`.

    Methods are "retinanet", "fcos", "atss", "mask_rcnn", "cascade_rcnn" and "cascade_mask_rcnn". CrossFormer's groups
    and grouping rule, CAT-B's heads and the pictures of CAT's FCOS (blue first, not scaled) are those of the published
    detectors, where nothing else is given.

    Args:
        method: one of `METHODS`.
        backbone: a model's name; without its image size (`xcit_small_12_p16`), as detectors are published.
        num_classes: number of classes; labels begin at 0, and the background has none.
        weights: load the whole detector: what `transept.load_weights` takes.
        backbone_weights: load the backbone from a classification checkpoint instead.
        classes: names of the classes, `num_classes` of them; default: their numbers.
        preprocessing: default: the published one, pictures within 1333 x 800 pixels.
        width: channels of neck and heads, a multiple of 32 (FCOS, ATSS: from 64 on), for models smaller than the
            published; box heads have four times as many hidden units.
        anchor_scale: factor of the anchors' sides, less than 1 where objects are smaller than those of everyday
            photographs. FCOS has no anchors.
        in_chans: channels of the image.
        img_size: native size of the backbone in pixels, which its position table is made for. Any size can be given
            to the detector.
        drop_path_rate: stochastic depth of the backbone.
        options: fields of the family's config, under the paper's names.

    Raises:
        UsageError: an unknown method, backbone or option (with the nearest name), or values that contradict each other.
        TranseptError: the weights cannot be found or do not fit.
    """
    if method not in METHODS:
        raise unknown("detection method", method, METHODS)
    name, _ = find_model(backbone.partition(".")[0])
    names = class_names(classes, num_classes)
    check_sources("detector", weights, backbone_weights)
    published = PUBLISHED_OPTIONS.get((method, name), {})
    model = build_pyramid(
        "detector",
        create_detector,
        backbone,
        published,
        options,
        in_chans=in_chans,
        img_size=img_size,
        drop_path_rate=drop_path_rate,
    )
    preprocessing = preprocessing or PUBLISHED_PREPROCESSING.get((method, name))
    detector = Detector(method, model, names, width=width, anchor_scale=anchor_scale, preprocessing=preprocessing)
    load_sources(detector, model, weights, backbone_weights)
    return detector

"""Methods of detection: the parts that each puts on a backbone, and how it learns and answers."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from transept.checks import check_known, check_positive
from transept.errors import UsageError
from transept.heads.atss import ATSSDecoder, ATSSHead, ATSSLoss
from transept.heads.cascade_rcnn import CascadeRCNNDecoder, CascadeRCNNHead, CascadeRCNNLoss
from transept.heads.fcos import FCOSDecoder, FCOSHead, FCOSLoss
from transept.heads.fpn import FPN
from transept.heads.instances import Detections
from transept.heads.mask_rcnn import MaskRCNNDecoder, MaskRCNNHead, MaskRCNNLoss
from transept.heads.retinanet import RetinaNetDecoder, RetinaNetHead, RetinaNetLoss
from transept.heads.rpn import Proposals, RPNHead, RPNLoss


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
    """The parts that a method puts on a backbone."""

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


METHODS: dict[str, Callable[[Sequence[int], int, int], Parts]] = {
    "retinanet": _retinanet,
    "fcos": _fcos,
    "atss": _atss,
    "mask_rcnn": _mask_rcnn,
    "cascade_rcnn": _cascade_rcnn,
    "cascade_mask_rcnn": _cascade_mask_rcnn,
}
"""Method to `(channels, num_classes, width)`; a new one is a head and a line here."""


def check_parts(method: str, width: int, anchor_scale: float) -> None:
    """Whether there is such a detector.

    Raises:
        UsageError: an unknown method, or values that it cannot have.
    """
    check_known(METHODS, method=method)
    if not 32 <= width <= 8192 or width % 32:
        raise UsageError(f"width={width}; give a positive multiple of 32 channels, 8192 at most")
    if width < 64 and method in ("fcos", "atss"):
        # Of one channel a group norm cannot be taken where a level is a single cell.
        raise UsageError(f"width={width}; {method} has 32 groups of channels, give 64 or more")
    check_positive(1000, anchor_scale=anchor_scale)
    if anchor_scale != 1 and method == "fcos":
        raise UsageError(f"anchor_scale={anchor_scale}, but fcos has no anchors; leave it out")

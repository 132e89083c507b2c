"""Methods of semantic segmentation: the parts that each puts on a backbone."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

from transept.checks import check_known
from transept.errors import UsageError
from transept.heads.fcn import FCNHead
from transept.heads.fpn import FPN
from transept.heads.semantic_fpn import SemanticFPNHead
from transept.heads.upernet import UPerNetHead


class Parts(NamedTuple):
    """The parts that a method puts on a backbone."""

    neck: nn.Module
    decode_head: nn.Module
    auxiliary_head: nn.Module | None


def _semantic_fpn(channels: Sequence[int], strides: Sequence[int], num_classes: int, width: int | None) -> Parts:
    # Levels of one width keep it (XCiT: the embedding's), others get 256 channels. The head has half of that.
    neck_width = width or (channels[0] if len(set(channels)) == 1 else 256)
    neck = FPN(channels, neck_width, len(channels))
    widths = [neck_width] * len(channels)
    return Parts(neck, SemanticFPNHead(widths, strides, num_classes, channels=width // 2 if width else 128), None)


def _upernet(channels: Sequence[int], strides: Sequence[int], num_classes: int, width: int | None) -> Parts:
    width = width or 512
    decode_head = UPerNetHead(channels, num_classes, channels=width)
    return Parts(nn.Identity(), decode_head, FCNHead(channels, num_classes, channels=width // 2))


METHODS: dict[str, Callable[[Sequence[int], Sequence[int], int, int | None], Parts]] = {
    "semantic_fpn": _semantic_fpn,
    "upernet": _upernet,
}
"""Method to `(channels, strides, num_classes, width)`; a new one is a head and a line here."""


def check_parts(method: str, width: int | None) -> None:
    """Whether there is such a segmenter.

    Raises:
        UsageError: an unknown method, or a width that it cannot have.
    """
    check_known(METHODS, method=method)
    if width is not None and (not 2 <= width <= 8192 or width % 2):
        raise UsageError(f"width={width}; give a positive even number of channels, 8192 at most")

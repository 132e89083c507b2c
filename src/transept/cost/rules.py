"""The operations of detectors and segmenters as their authors counted them, to compare with what they printed.

Both used mmcv's counter. To the products of convolutions and linear layers it adds one operation for each output of a
convolution with a bias and of a ReLU; attention, which is no module, it does not see. In CAT it counted two operations
for each element of a norm. In CrossFormer it counted none, and the authors added the products of attention.

Both ran code that computes more than ours for the same outputs: the projections of CAT's cross-patch attention one by
one, and those of CrossFormer's padding.
"""

from collections.abc import Callable
from typing import Any

from transept.cost.count import Cost
from transept.models.cat import CATConfig
from transept.models.crossformer import CrossFormerConfig
from transept.tasks.task import Task


def count_as_published(system: Task, cost: Cost) -> int | None:
    """From the `cost` of a system what its authors' counter shows; None where no such figures were printed.

    Meant for the sizes of published figures, and there equal to 0.03 * 10^9: theirs does not see the RPN's ReLU.
    """
    rule = _RULES.get(type(system.backbone.config))
    return rule(system.backbone.config, cost) if rule else None


def _count_cat(config: CATConfig, cost: Cost) -> int:
    counted = cost.operations
    added = counted.biases + counted.relus + 2 * counted.norms
    return cost.macs - counted.attention + added + _unfolded(config, cost.img_size)


def _count_crossformer(config: CrossFormerConfig, cost: Cost) -> int | None:
    if config.grouping != "legacy":
        return None
    return cost.macs + cost.operations.biases + cost.operations.relus + _projected_padding(config, cost.img_size)


_RULES: dict[type, Callable[[Any, Cost], int | None]] = {
    CATConfig: _count_cat,
    CrossFormerConfig: _count_crossformer,
}
"""By the family's configuration, for families with printed operations of dense models."""


def _unfolded(config: CATConfig, img_size: tuple[int, int]) -> int:
    """Two further products with 49 x 49 weights for each patch and channel, in each unit's cross-patch attention."""
    side, total = config.patch_size, 0
    for stage, (dim, depth) in enumerate(zip(config.dims, config.depths, strict=True)):
        h, w = (_padded(_stage_side(x, stage), side) for x in img_size)
        total += 2 * side**2 * h * w * dim * depth
    return total


def _projected_padding(config: CrossFormerConfig, img_size: tuple[int, int]) -> int:
    """The output projection at the padding: up to multiples of G, and in every second block of I."""
    total = 0
    stages = zip(config.dims, config.depths, config.group_sizes, config.intervals, strict=True)
    for stage, (dim, depth, group_size, interval) in enumerate(stages):
        h, w = (_stage_side(x, stage) for x in img_size)
        for unit in (group_size, interval):
            total += depth // 2 * dim**2 * (_padded(h, unit) * _padded(w, unit) - h * w)
    return total


def _stage_side(side: int, stage: int) -> int:
    return -(-side // (4 * 2**stage))


def _padded(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple

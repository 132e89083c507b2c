"""Parts of a model that keep their weights."""

from collections.abc import Sequence
from typing import Any

from timm.models import group_parameters
from torch import nn

from transept.errors import UsageError, unknown
from transept.models.backbone import Backbone


def freeze(model: Backbone, parts: int | Sequence[str]) -> None:
    """Freeze the stem and the first `parts` stages, or the modules and parameters that `parts` names.

    Stages are those of the model's `group_matcher`, so blocks in XCiT and CaiT, whose class token and positions belong
    to the stem. What is frozen runs as in evaluation: batch norms keep their statistics, and no path is dropped.

    Raises:
        UsageError: the model has fewer stages, or no such part; or nothing would be left to train.
    """
    if not parts:
        return
    names = [name for name, _ in model.named_parameters()]
    title = model.pretrained_cfg["architecture"]
    if isinstance(parts, int):
        stages: Any = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
        heads = [stage for name, stage in stages.items() if name.startswith("head.")]
        last = min(heads, default=max(stages.values()) + 1) - 1
        if not 0 < parts <= last:
            raise UsageError(f"model.freeze={parts}, but {title} has {last} stages; give 0 to {last}")
        frozen = {name for name, stage in stages.items() if stage <= parts}
    else:
        frozen = set()
        for part in parts:
            inside = {name for name in names if name == part or name.startswith(f"{part}.")}
            if not inside:
                modules = {name for name, _ in model.named_modules() if name}
                raise UsageError(f"model.freeze={list(parts)}: {unknown(f'part of {title}', part, modules)}")
            frozen |= inside
    if len(frozen) == len(names):
        raise UsageError(f"model.freeze={parts} leaves nothing to train")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def keep_batch_statistics(task: nn.Module) -> None:
    """Batch norms run as in evaluation, but learn their scale and shift. Lightning keeps each module's mode."""
    for module in task.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()

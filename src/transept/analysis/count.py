"""Parameters, multiply-accumulates and activations, counted without computing anything."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from transept.models.backbone import native_size


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one image."""

    parameters: int
    macs: int
    """Multiply-accumulates of convolutions and matrix products, attention included: what most vision papers
    print as FLOPs, and half of what those print that count additions apart."""
    activations: int
    """Elements that these operations write."""
    img_size: tuple[int, int]
    modules: dict[str, tuple[int, int]]
    """Module name to its parameters and multiply-accumulates, children included."""


def count(model: nn.Module, img_size: int | Sequence[int] | None = None) -> Cost:
    """The cost of `model` for one image of `img_size` (an int or height and width; default: the model's own).

    Runs on the meta device, where the counter sees fused attention that it misses on a CPU. The model given is
    neither changed nor run.
    """
    in_chans, *native = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    height, width = native_size(native if img_size is None else img_size)
    meta = _on_meta(model).eval()
    image = torch.empty(1, in_chans, height, width, device="meta")
    counter, activations = FlopCounterMode(display=False), _ActivationCounter()
    with torch.no_grad(), activations, counter:
        meta(image)
    flops = counter.get_flop_counts()
    root = type(meta).__name__
    macs = {name: sum(flops.get(f"{root}.{name}", {}).values()) // 2 for name, _ in meta.named_modules() if name}
    for name, module in reversed(list(meta.named_modules())):
        if name:  # a part may run outside the call of the part that holds it, and lists are never called
            macs[name] = max(macs[name], sum(macs[f"{name}.{child}"] for child, _ in module.named_children()))
    modules = {name: (_parameters(module), macs[name]) for name, module in meta.named_modules() if name}
    return Cost(_parameters(meta), counter.get_total_flops() // 2, activations.total, (height, width), modules)


class _ActivationCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            first = out[0] if isinstance(out, tuple | list) else out
            self.total += first.numel()
        return out


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy that shares nothing and holds nothing: each tensor is replaced before it would be copied.

    Parameters become constants, because the counter cannot follow a view of a parameter under `no_grad`.
    """
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {id(t): t.detach().to("meta") for t in tensors}
    memo |= {id(p): nn.Parameter(memo[id(p)], requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())

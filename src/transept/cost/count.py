"""Parameters, multiply-accumulates and activations, counted without computing anything."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from transept.models.backbone import native_size

aten = torch.ops.aten
# On the meta device fused attention is one of these, whichever kernel will run.
_PRODUCTS = [packet for packet in flop_registry if "scaled_dot_product" in str(packet)] + [aten.bmm, aten.baddbmm]
_NORMS = (aten.native_layer_norm, aten.native_group_norm)


@dataclass(slots=True)
class Operations:
    """Operations that other conventions count apart."""

    attention: int = 0
    """Multiply-accumulates, in `macs`, of products of two activations."""
    biases: int = 0
    """Additions of the biases of convolutions. No `macs`, as all that follows."""
    norms: int = 0
    """Elements of layer norms and group norms."""
    relus: int = 0
    """Elements."""


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
    operations: Operations = field(default_factory=Operations, compare=False)


def count(model: nn.Module, img_size: int | Sequence[int] | None = None) -> Cost:
    """The cost of `model` for one image of `img_size` (an int or height and width; default: the model's own).

    Runs on the meta device, where the counter sees fused attention that it misses on a CPU. The model given is
    neither changed nor run.
    """
    in_chans, *native = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    height, width = native_size(native if img_size is None else img_size)
    meta = _on_meta(model).eval()
    image = torch.empty(1, in_chans, height, width, device="meta")
    counter, others = FlopCounterMode(display=False), _OtherCounter()
    with torch.no_grad(), others, counter:
        getattr(meta, "run_layers", meta)(image)  # a detector's second stage waits for proposals
    flops = counter.get_flop_counts()
    root = type(meta).__name__
    macs = {name: sum(flops.get(f"{root}.{name}", {}).values()) // 2 for name, _ in meta.named_modules() if name}
    for name, module in reversed(list(meta.named_modules())):
        if name:  # a part may run outside the call of the part that holds it, and lists are never called
            macs[name] = max(macs[name], sum(macs[f"{name}.{child}"] for child, _ in module.named_children()))
    modules = {name: (_parameters(module), macs[name]) for name, module in meta.named_modules() if name}
    others.operations.attention = sum(flops["Global"].get(packet, 0) for packet in _PRODUCTS) // 2
    return Cost(
        parameters=_parameters(meta),
        macs=counter.get_total_flops() // 2,
        activations=others.activations,
        img_size=(height, width),
        modules=modules,
        operations=others.operations,
    )


class _OtherCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.activations = 0
        self.operations = Operations()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        out = _as_the_first(packet, args)
        if out is None:
            out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, tuple | list) else out
        if packet in flop_registry:
            self.activations += first.numel()
        if packet is aten.convolution and args[2] is not None:
            self.operations.biases += first.numel()
        elif packet in _NORMS:
            self.operations.norms += first.numel()
        elif packet in (aten.relu, aten.relu_):
            self.operations.relus += first.numel()
        return out


def _as_the_first(packet: Any, args: Any) -> Any:
    """What operations give whose output is laid out as their first argument; None for all others.

    On the meta device torch works that out in dozens of steps of Python, and models consist of such operations.
    """
    if packet not in (aten.add, aten.mul, aten.gelu, aten.relu, aten.native_layer_norm):
        return None
    first, *rest = args
    if packet is aten.native_layer_norm:
        kept = first.new_empty((*first.shape[: first.ndim - len(rest[0])], *[1] * len(rest[0])))
        return torch.empty_like(first), kept, kept
    others = [other for other in rest if isinstance(other, torch.Tensor)]
    if any(o.dtype != first.dtype or torch.broadcast_shapes(o.shape, first.shape) != first.shape for o in others):
        return None
    return torch.empty_like(first) if first.is_floating_point() else None


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

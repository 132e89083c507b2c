"""Linear layers whose float32 products are those of the library that is quick on this processor.

PyTorch gives float32 matrices to MKL, which does not use the 512-bit units of AMD's processors (torch 2.15 with MKL
2024.2): on Zen 5 a product takes twice the time of oneDNN's, which is in PyTorch as well. There oneDNN computes what
the layers compute, forward and backward. Zen 4, which halves those operations, gains a tenth in inference, where oneDNN
adds the bias as it goes. Elsewhere, and in all other dtypes, layers are PyTorch's own.
"""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import mm_flop, register_flop_formula

_WORTH = 2_000_000
"""Multiply-accumulates, some 20 microseconds: in less, finding out costs more than it saves."""
_LARGE = 384 * 384
"""Weights of a layer from which Zen 4 gains: 0.9 of the time. Smaller ones take 0.9 to 1.2."""


class Linear(nn.Linear):
    """`nn.Linear`, by `linear`."""

    def forward(self, input: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        return linear(input, self.weight, self.bias)


def linear(
    x: Float[Tensor, "*n c"], weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None = None
) -> Float[Tensor, "*n d"]:
    """`torch.nn.functional.linear` up to rounding, with its gradients."""
    gradients = torch.is_grad_enabled()
    if not _by_onednn(x, weight, gradients=gradients):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias) if gradients else _onednn(x, weight, bias)


def product(x: Float[Tensor, "*n c"], weight: Float[Tensor, "d c"], bias: Tensor | None = None) -> Tensor:
    """`linear` inside of an `autograd.Function`, whose own gradient it is. Both may be transposed views."""
    # with gradients of gradients, autograd has to see it
    plain = torch.is_grad_enabled() or not _by_onednn(x, weight, gradients=True)
    return F.linear(x, weight, bias) if plain else _onednn(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _by_onednn(x: Tensor, weight: Tensor, *, gradients: bool) -> bool:
    return (
        not torch.compiler.is_compiling()
        and (mkl_is_slow() or (not gradients and weight.numel() >= _LARGE and mkl_is_narrow()))
        and not torch.jit.is_tracing()
        and x.dtype == torch.float32 == weight.dtype
        and x.device.type == "cpu" == weight.device.type
        and x.numel() * weight.shape[0] >= _WORTH
        and type(x) is Tensor  # not a stand-in
        and type(weight) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
    )


@cache
def mkl_is_slow() -> bool:
    """Whether this is an AMD processor from Zen 5 on: those before halve 512-bit operations, and MKL loses little."""
    return mkl_is_narrow() and bool(torch.cpu.get_capabilities().get("avx_vnni"))  # Zen 4 lacks it


@cache
def mkl_is_narrow() -> bool:
    """Whether MKL leaves 512-bit operations unused that oneDNN uses: on AMD processors from Zen 4 on."""
    found = torch.cpu.get_capabilities()
    return (
        bool(found.get("avx512_f"))
        and str(found.get("cpu_name", "")).startswith("AMD")
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
    )


class _Linear(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        flat = grad.flatten(0, -2)
        return (
            product(grad, weight.t()) if needs_x else None,
            product(flat.t(), x.flatten(0, -2).t()) if needs_weight else None,
            flat.sum(dim=0) if needs_bias else None,
        )


def _operations(x: torch.Size, weight: torch.Size, *rest: Any, **known: Any) -> int:
    return mm_flop((x.numel() // x[-1], x[-1]), (weight[1], weight[0]))


if torch.backends.mkldnn.is_available():  # `torch.utils.flop_counter` knows PyTorch's own products alone
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_operations)

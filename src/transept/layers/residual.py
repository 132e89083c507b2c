"""Branches of a residual block, with LayerScale where it costs least.

In inference `torch.addcmul` scales a branch and adds it in one pass. In training the scale is put into the branch's
last weights, which is the same function: the backward pass then needs no unscaled output, and the scale's own
gradient is read off the weights'. The activations in front of those weights are recomputed, and not kept.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from transept.layers.linear import Linear, product


def add_branch(
    x: Float[Tensor, "*n c"],
    branch: nn.Module,
    *inputs: object,
    scale: Float[Tensor, " c"] | None,
    drop_path: nn.Module | None = None,
) -> Float[Tensor, "*n c"]:
    """`x + drop_path(scale * branch(*inputs))`.

    `branch` takes `scale=` and returns what is scaled already. The scale has one number per channel of the last axis;
    it is None where it has become a part of the branch's weights.
    """
    if scale is None:
        y = branch(*inputs)
    elif torch.is_grad_enabled() or (drop_path is not None and drop_path.training):
        y = branch(*inputs, scale=scale)
    else:
        return torch.addcmul(x, scale, branch(*inputs))
    return x + (y if drop_path is None else drop_path(y))


def scaled_linear(
    layer: nn.Module, x: Float[Tensor, "*n c"], scale: Float[Tensor, " d"] | None
) -> Float[Tensor, "*n d"]:
    """`scale * layer(x)`."""
    if scale is None:
        return layer(x)
    # Not for adapters and quantised layers; a compiler decides itself what to keep.
    if torch.compiler.is_compiling() or type(layer) is not Linear or layer.bias is None:
        return scale * layer(x)
    return _ScaledLinear.apply(x, layer.weight, layer.bias, scale, False)


class Mlp(nn.Module):
    """timm's MLP (linear, GELU, linear), but what the GELU gives is not kept for the backward pass."""

    def __init__(self, dim: int, hidden_features: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_features)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden_features, dim)

    def forward(self, x: Float[Tensor, "*n c"], scale: Float[Tensor, " c"] | None = None) -> Float[Tensor, "*n c"]:
        x = self.fc1(x)
        plain = type(self.fc2) is Linear and type(self.act) is nn.GELU
        if plain and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _ScaledLinear.apply(x, self.fc2.weight, self.fc2.bias, scale, True)
        return scaled_linear(self.fc2, self.act(x), scale)


class _ScaledLinear(torch.autograd.Function):
    """`scale * linear(activation(x), weight, bias)`, keeping `x` alone; the activation is GELU or none."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, activate: bool) -> Tensor:
        if scale is not None:
            weight, bias = weight * scale[:, None], bias * scale
        return product(gelu(x) if activate else x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.activate = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight, bias, scale = ctx.saved_tensors
        scaled = (weight if scale is None else weight * scale[:, None]).to(grad.dtype)
        grad_x = product(grad, scaled.t())
        if ctx.activate:
            grad_x = torch.ops.aten.gelu_backward(grad_x, x)
            x = gelu(x)
        flat = grad.flatten(0, -2)
        grad_weight = product(flat.t(), x.flatten(0, -2).to(grad.dtype).t())
        grad_bias = flat.sum(dim=0)
        if scale is None:
            return grad_x, grad_weight, grad_bias, None, None
        grad_scale = (grad_weight * weight).sum(dim=1) + grad_bias * bias
        return grad_x, grad_weight * scale[:, None], grad_bias * scale, grad_scale, None

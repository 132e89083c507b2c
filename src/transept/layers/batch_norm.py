"""BatchNorm and GELU in training that keep one map where PyTorch keeps two or three: the others are computed again."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import batch_norm, gelu


def recomputes(norm: nn.Module, act: nn.Module, x: Tensor) -> bool:
    """Whether a backward pass may follow, and both layers are the plain ones that it can compute again."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()  # a compiler decides itself what to keep
        and not x.is_meta
        and type(norm) is nn.BatchNorm2d
        and type(act) is nn.GELU
        and act.approximate == "none"
        and norm.affine
        and norm.training
        and norm.track_running_stats
        and norm.momentum is not None
    )


def next_statistics(norm: nn.BatchNorm2d) -> tuple[Any, ...]:
    """What `batch_norm` takes behind the weight and bias; the batch is counted, as the layer does."""
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    return norm.eps, norm.running_mean, norm.running_var, norm.momentum


def norm_act(norm: nn.Module, act: nn.Module, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """`act(norm(x))`; of BatchNorm and GELU in training, `x` alone is kept."""
    if not recomputes(norm, act, x):
        return act(norm(x))
    assert isinstance(norm, nn.BatchNorm2d)
    return _NormAct.apply(x, norm.weight, norm.bias, *next_statistics(norm))


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, gamma: Tensor, beta: Tensor, eps: float, mean: Tensor, var: Tensor, momentum: float
    ) -> Tensor:
        return gelu(batch_norm(x, mean, var, gamma, beta, training=True, momentum=momentum, eps=eps))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.eps = inputs[3]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta = ctx.saved_tensors
        normed, mean, invstd = torch.native_batch_norm(x, gamma, beta, None, None, True, 0.0, ctx.eps)
        grad = torch.ops.aten.gelu_backward(grads[0], normed)
        grad, grad_gamma, grad_beta = torch.ops.aten.native_batch_norm_backward(
            grad, x, gamma, None, None, mean, invstd, True, ctx.eps, [True] * 3
        )
        return grad, grad_gamma, grad_beta, None, None, None, None

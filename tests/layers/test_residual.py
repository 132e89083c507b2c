"""Branches with LayerScale in their weights are the same functions, with the same gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from transept.layers.residual import Mlp, add_branch, scaled_linear
from transept.models.cait import TalkingHeadsAttention, talking_heads


class Twice(nn.Linear):
    """A layer that is more than its weight, as adapters are."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def gradients(module: nn.Module, x: Tensor, scale: Tensor, out: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return list(torch.autograd.grad((out * weights).sum(), [x, scale, *module.parameters()]))


@pytest.mark.parametrize("scaled", [True, False])
def test_mlp(scaled: bool):
    mlp = Mlp(6, hidden_features=10).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    scale = torch.rand(6, dtype=torch.float64, requires_grad=True)
    out = mlp(x, scale) if scaled else scale * mlp(x)
    expected = scale * mlp.fc2(gelu(mlp.fc1(x)))
    torch.testing.assert_close(out, expected)
    for a, b in zip(gradients(mlp, x, scale, out), gradients(mlp, x, scale, expected), strict=True):
        torch.testing.assert_close(a, b)
    inputs = [x.detach()[:1, :2].requires_grad_(), scale]
    assert torch.autograd.gradgradcheck(lambda x, scale: mlp(x, scale), inputs)  # gradient penalties


def test_gradients_of_each_sample():
    mlp, x, scale = Mlp(6, 10), torch.randn(3, 5, 6), torch.rand(6)
    parameters = dict(mlp.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(mlp, parameters, (x, scale)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    whole = torch.func.grad(loss)(parameters, x)
    for name, gradient in whole.items():
        torch.testing.assert_close(each[name].sum(dim=0), gradient, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_in_inference_one_pass_adds():
    mlp, scale, x = Mlp(6, 10), torch.rand(6), torch.randn(2, 5, 6)
    torch.testing.assert_close(add_branch(x, mlp, x, scale=scale), x + scale * mlp(x))
    assert torch.equal(add_branch(x, mlp, x, scale=None), x + mlp(x))


def test_layers_that_are_more_than_their_weight_are_called():
    layer, x, scale = Twice(6, 4), torch.randn(2, 6), torch.rand(4)
    torch.testing.assert_close(scaled_linear(layer, x, scale), scale * 2 * linear(x, layer.weight, layer.bias))
    mlp = Mlp(6, 10)
    mlp.fc2 = Twice(10, 6)
    torch.testing.assert_close(mlp(x), mlp.fc2(gelu(mlp.fc1(x))))


def test_talking_heads_keep_one_map():
    attn: Any = TalkingHeadsAttention(12, num_heads=3).double().train()
    for parameter in attn.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True)
    scale = torch.rand(12, dtype=torch.float64, requires_grad=True)
    out = attn(x, scale)
    qkv = attn.qkv(x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
    # as in the paper: both mixes with their biases, on the maps
    maps = torch.einsum("hg,bgqk->bhqk", attn.proj_l.weight, qkv[0] @ qkv[1].mT * attn.scale)
    maps = (maps + attn.proj_l.bias.view(-1, 1, 1)).softmax(dim=-1)
    maps = torch.einsum("hg,bgqk->bhqk", attn.proj_w.weight, maps) + attn.proj_w.bias.view(-1, 1, 1)
    expected = scale * attn.proj((maps @ qkv[2]).transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, expected)
    for a, b in zip(gradients(attn, x, scale, out), gradients(attn, x, scale, expected), strict=True):
        torch.testing.assert_close(a, b)
    plain, _ = talking_heads(qkv, attn.proj_l.weight * attn.scale, attn.proj_w.weight, attn.proj_w.bias)
    torch.testing.assert_close(scale * attn.proj(plain.transpose(1, 2).flatten(2)), expected)


@pytest.mark.parametrize("kind", [lambda dim: Mlp(dim, 20), lambda dim: TalkingHeadsAttention(dim, num_heads=3)])
def test_mixed_precision(kind: Any):
    module = kind(12)
    x, scale = torch.randn(2, 7, 12, requires_grad=True), torch.rand(12, requires_grad=True)
    expected = gradients(module, x, scale, module(x, scale))
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x, scale)
    for a, b in zip(gradients(module, x, scale, out.float()), expected, strict=True):
        assert a.dtype == b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.05 * float(b.abs().max()) + 1e-6)

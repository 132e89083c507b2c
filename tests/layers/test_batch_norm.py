"""Maps that are computed again, and not kept, change nothing else."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

import transept
from transept.layers.batch_norm import norm_act
from transept.layers.patch_embedding import ConvPatchEmbed
from transept.models.xcit import LocalPatchInteraction


def gradients(out: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).to(out.dtype).view_as(out)).sum(), inputs)


def statistics(module: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in module.buffers()]


@pytest.mark.parametrize("channels_last", [True, False])
def test_norm_and_activation(channels_last: bool):
    norm, act = nn.BatchNorm2d(6).double(), nn.GELU()
    nn.init.uniform_(norm.weight)
    plain = copy.deepcopy(norm)
    x = torch.randn(3, 6, 5, 4, dtype=torch.float64)
    x = (x.contiguous(memory_format=torch.channels_last) if channels_last else x).requires_grad_()
    out, expected = norm_act(norm, act, x), act(plain(x))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients(out, x, *norm.parameters()), gradients(expected, x, *plain.parameters()))
    torch.testing.assert_close(statistics(norm), statistics(plain))


@pytest.mark.parametrize(
    ("norm", "act"),
    [
        (nn.BatchNorm2d(6).eval(), nn.GELU()),
        (nn.BatchNorm2d(6), nn.GELU(approximate="tanh")),
        (nn.BatchNorm2d(6), nn.ReLU()),
        (nn.BatchNorm2d(6, momentum=None), nn.GELU()),
        (nn.Identity(), nn.GELU()),
    ],
)
def test_other_layers_are_called(norm: nn.Module, act: nn.Module):
    plain, x = copy.deepcopy(norm), torch.randn(3, 6, 5, 4, requires_grad=True)
    torch.testing.assert_close(norm_act(norm, act, x), act(plain(x)))
    torch.testing.assert_close(statistics(norm), statistics(plain))


def test_patches():
    embed = ConvPatchEmbed(3, 16, 8).double()
    plain = copy.deepcopy(embed)
    x = torch.randn(2, 3, 32, 24, dtype=torch.float64)
    out, expected = embed(x), plain.proj(x)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients(out, *embed.parameters()), gradients(expected, *plain.parameters()))
    torch.testing.assert_close(statistics(embed), statistics(plain))


def test_local_patch_interaction_under_autocast(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    layer = LocalPatchInteraction(16)
    plain = copy.deepcopy(layer)
    plain.act = nn.GELU(approximate="tanh")  # another function, by 1e-3, that is not computed again
    x, scale = torch.randn(2, 35, 16), torch.rand(16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = layer(x, (5, 7), scale), plain(x, (5, 7), scale)
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, rtol=0.03, atol=0.03)
    ours, theirs = gradients(out, scale, *layer.parameters()), gradients(expected, scale, *plain.parameters())
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.03 * b.norm() + 0.05


def kept(model: nn.Module, image: Tensor, dtype: torch.dtype) -> int:
    """Bytes that the forward pass keeps for the backward pass, beside the weights."""
    storages = {parameter.untyped_storage().data_ptr(): 0 for parameter in model.parameters()}
    held = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            storages[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # its address is not given away again
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        model(image)
    return sum(storages.values())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("xcit_nano_12_p16_224", torch.float32),
        ("xcit_nano_12_p16_224", torch.bfloat16),
        ("cait_xxs24_224", torch.bfloat16),
        pytest.param("cait_xxs24_224", torch.float32, marks=pytest.mark.slow),
    ],
)
def test_a_step_keeps_less_than_timms(name: str, dtype: torch.dtype):
    image = torch.randn(4, 3, 224, 224)
    ours = kept(transept.create_model(name).train(), image, dtype)
    assert ours < 0.6 * kept(timm.create_model(name).train(), image, dtype)

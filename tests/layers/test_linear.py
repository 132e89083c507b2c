"""Linear layers are `nn.Linear`, whichever library computes them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import transept
from transept.layers import linear as subject
from transept.layers.linear import Linear, linear

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch is without oneDNN")


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch):
    """As on a processor where oneDNN is the quicker one."""
    monkeypatch.setattr(subject, "mkl_is_slow", lambda: True)


def gradients(out: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), inputs)


def operators(work) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    return {event.key for event in profile.key_averages()}


@needs_onednn
@pytest.mark.parametrize("shape", [(64, 192), (2, 49, 192), (2, 5, 7, 192)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_same_with_gradients(onednn, shape: tuple[int, ...], bias: bool):
    layer, x = Linear(192, 320, bias=bias), torch.randn(shape, requires_grad=True)
    out, expected = layer(x), F.linear(x, layer.weight, layer.bias)
    assert type(out.grad_fn).__name__ == "_LinearBackward"
    torch.testing.assert_close(out, expected)
    inputs = x, *layer.parameters()
    torch.testing.assert_close(gradients(out, *inputs), gradients(expected, *inputs), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(linear(x.transpose(0, -2), layer.weight), F.linear(x.transpose(0, -2), layer.weight))


@needs_onednn
def test_what_is_not_asked_for_is_not_computed(onednn):
    layer, x = Linear(192, 320).requires_grad_(False), torch.randn(64, 192)
    assert not layer(x).requires_grad
    layer.weight.requires_grad_()
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert layer.bias.grad is None


@needs_onednn
def test_gradients_of_gradients(onednn):
    layer, x = Linear(192, 320), torch.randn(64, 192, requires_grad=True)

    def penalty(out: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), layer.weight)[0]

    expected = penalty(F.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(penalty(layer(x)), expected, rtol=1e-4, atol=1e-2)


@needs_onednn
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # said by torch.func where it knows no batches
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_gradients_of_each_sample(onednn):
    layer, x = Linear(192, 320), torch.randn(3, 64, 192)

    def loss(weight: Tensor, x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (x,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(layer.weight.detach(), x)
    expected = [torch.func.grad(loss)(layer.weight.detach(), some) for some in x]
    torch.testing.assert_close(each, torch.stack(expected), rtol=1e-4, atol=1e-3)


@needs_onednn
def test_operations_are_counted(onednn):
    layer, x = Linear(192, 320), torch.randn(64, 192, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 64 * 192 * 320


@needs_onednn
@pytest.mark.filterwarnings("ignore:`torch.jit.:FutureWarning", "ignore:TF32 acceleration")
def test_other_dtypes_autocast_captured_graphs_and_little_work_are_torchs_own(onednn):
    layer, x = Linear(192, 320), torch.randn(64, 192)
    for run in (
        lambda: layer.bfloat16()(x.bfloat16()),
        lambda: layer.double()(x.double()),
        lambda: layer.float()(x[:2]),
        lambda: torch.jit.trace(layer, x, check_trace=False),
    ):
        assert "mkldnn::_linear_pointwise" not in operators(run)
    with torch.autocast("cpu", torch.bfloat16):
        assert "mkldnn::_linear_pointwise" not in operators(lambda: layer(x))
    assert "mkldnn" not in str(torch.export.export(layer, (x,)).graph)
    with torch.backends.mkldnn.flags(enabled=False):
        assert "mkldnn::_linear_pointwise" not in operators(lambda: layer(x))
    assert "mkldnn::_linear_pointwise" in operators(lambda: layer(x))


@needs_onednn
@pytest.mark.parametrize("name", ["xcit_nano_12_p16_224", pytest.param("crossformer_tiny", marks=pytest.mark.slow)])
def test_a_step_multiplies_weights_by_the_quicker_library_alone(onednn, name: str):
    """What is left to MKL are products of few numbers: below the bound, or of classes."""
    model = transept.create_model(name, num_classes=2).train()
    image = torch.randn(2, 3, 224, 224)

    def step() -> None:
        model(image).sum().backward()

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        step()
    sizes = [[torch.Size(shape) for shape in event.input_shapes if len(shape) == 2] for event in profile.events()]
    products = [shapes for shapes, event in zip(sizes, profile.events(), strict=True) if event.name == "aten::mm"]
    assert all(a.numel() * b[1] < subject._WORTH for a, b in products)
    assert any(event.name == "mkldnn::_linear_pointwise" for event in profile.events())


def test_elsewhere_it_is_torchs_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subject, "mkl_is_slow", lambda: False)
    layer, x = Linear(192, 320), torch.randn(64, 192)
    assert type(layer(x).grad_fn).__name__ == "AddmmBackward0"
    assert isinstance(layer, nn.Linear)


@needs_onednn
def test_on_zen_4_large_layers_in_inference_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subject, "mkl_is_slow", lambda: False)
    monkeypatch.setattr(subject, "mkl_is_narrow", lambda: True)
    for width, expected in ((192, False), (384, True)):
        layer, x = Linear(width, 384), torch.randn(64, width)
        assert type(layer(x).grad_fn).__name__ == "AddmmBackward0"
        with torch.no_grad():
            assert ("mkldnn::_linear_pointwise" in operators(lambda: layer(x))) == expected  # noqa: B023 - called at once
            torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))

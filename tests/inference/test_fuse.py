"""A fused model computes what its model computes."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

import transept
from tests.golden import weights
from tests.golden.recorded import GOLDEN, RECORDED, arrange, build, largest_difference, listed
from tests.helpers import FAMILIES, image, narrow, tiny
from transept.errors import TranseptError, UsageError
from transept.inference.fused import FusedCrossPatch, FusedLocalPatchInteraction
from transept.inference.packed import no_trials, pack, quicker

NAMES = (*FAMILIES, "cabvit_p_l0_cross", "crossformer_pp_small", "xcit_tiny_12_p16_224")
DENSE = ("cat_small_dense_160x224", "crossformer_small_dense_legacy_160x224")
LARGE = ("crossformer_tiny", "cat_small_dense_160x224")
"""Their family's fused layers run in a smaller or a more distinct recording as well."""
TOLERANCE = 1e-5
"""Of outputs, in their standard deviations."""


def varied(model: nn.Module) -> Any:
    """A fresh model's norms and scales are the identity, which hides mistakes: draw them."""
    generator = torch.Generator().manual_seed(2)
    for name, tensor in model.state_dict().items():
        if "running" in name or (tensor.ndim <= 1 and tensor.is_floating_point()):
            tensor.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def error(outputs: Tensor | list[Tensor], expected: Tensor | list[Tensor]) -> float:
    """The largest difference, in standard deviations of the output."""
    pairs = zip(listed(outputs), listed(expected), strict=True)
    return max(float((a.float() - b).abs().max() / b.std()) for a, b in pairs)


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_same_outputs(name: str, features_only: bool):
    model = varied(tiny(name, features_only=features_only))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = transept.fuse(model)
    assert type(fused) is type(model)
    with torch.inference_mode():
        for size in ((64, 64), (75, 53)):  # the native size, and one whose biases are computed anew
            assert error(fused(image(2, *size)), model(image(2, *size))) < TOLERANCE
        if not features_only:
            levels, expected = (m.forward_intermediates(image(), intermediates_only=True) for m in (fused, model))
            assert error(levels, expected) < TOLERANCE
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "the model was changed"
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in LARGE else [])
        for path in GOLDEN
        if path.stem in RECORDED + DENSE
    ],
)
@torch.inference_mode()
def test_outputs_equal_the_official_model(path: Path):
    golden = json.loads(path.read_text())
    fused = transept.fuse(build(golden))
    outputs = listed(fused(torch.from_numpy(weights.image_for(golden["input"]["seed"], golden["input"]["shape"]))))
    for value, recorded in zip(outputs, golden["outputs"].values(), strict=True):
        assert largest_difference(arrange(value, recorded["shape"]), recorded) < 2e-5 * recorded["std"]


def test_for_inference_only():
    fused = transept.fuse(tiny("xcit_nano_12_p16_224"))
    sentence = "a fused or compiled model is for inference; train the model that it was made from, then make it anew"
    with pytest.raises(UsageError, match=sentence):
        fused.train()
    with pytest.raises(UsageError, match=sentence):
        nn.Sequential(fused).train()
    assert not fused.training
    assert fused.eval() is fused
    assert not fused(image()).requires_grad
    with pytest.raises(TranseptError, match="cannot fuse a Linear: it contains no model of transept"):
        transept.fuse(nn.Linear(2, 3))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_copies_and_precision(name: str):
    model = varied(tiny(name))
    fused = transept.fuse(model)
    expected = fused(image())
    assert torch.equal(copy.deepcopy(fused)(image()), expected)
    assert error(transept.fuse(fused)(image()), expected) < TOLERANCE
    last = fused.to(memory_format=torch.channels_last)
    assert error(last(image().contiguous(memory_format=torch.channels_last)), expected) < TOLERANCE
    # bfloat16 has 8 bits: as far from float32 as the model itself, within rounding
    plain = error(copy.deepcopy(model).bfloat16()(image().bfloat16()), expected)
    assert error(fused.bfloat16()(image().bfloat16()), expected) < max(1.5 * plain, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert error(transept.fuse(model)(image()), expected) < max(1.5 * plain, 0.05)


# XCiT has all kinds of fused layers that CaiT has.
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n.startswith("xcit") else [pytest.mark.slow]) for n in FAMILIES]
)
@torch.no_grad()
def test_captured_and_exported(name: str):
    torch.compiler.reset()
    fused = transept.fuse(varied(narrow(name)))
    expected = fused(image())
    captured = torch.compile(fused, backend="eager", fullgraph=True)
    assert error(captured(image()), expected) < TOLERANCE
    batch = torch.export.Dim("b", min=1, max=8)
    program = torch.export.export(fused, (image(),), dynamic_shapes={"x": {0: batch}})
    exported = program.module()
    assert error(exported(image()), expected) < TOLERANCE
    assert error(exported(image(5)), fused(image(5))) < TOLERANCE


@torch.no_grad()
def test_packed_weights_follow_the_plain_ones():
    layer = pack(nn.Linear(48, 32), activate=True)
    layer.requires_grad_(False)
    x = torch.randn(8, 500, 48)

    def plain() -> Tensor:
        return gelu(linear(x, layer.weight, layer.bias))

    def runs_packed() -> bool:
        with torch.profiler.profile() as profiled:
            assert error(layer.multiply(x, packed=True), plain()) < 1e-6
        return any("mkldnn" in event.name for event in profiled.events())

    assert runs_packed()
    layer.weight.mul_(-2)
    assert runs_packed(), "written to"
    layer.load_state_dict({"weight": torch.randn(32, 48), "bias": torch.randn(32)})
    assert runs_packed(), "loaded"
    layer.weight.data = torch.randn(32, 48)
    assert runs_packed(), "replaced"
    assert error(copy.deepcopy(layer)(x), plain()) < 1e-6
    assert error(pickle.loads(pickle.dumps(layer))(x), plain()) < 1e-6
    assert layer(x[:0]).shape == (0, 500, 32)


LINEAR = "aten::addmm", "mkldnn::_linear_pointwise"
"""What multiplies weights: MKL or oneDNN, by processor, and oneDNN with packed weights."""


@torch.no_grad()
def test_both_ways_of_a_product_are_tried_once():
    layer = pack(nn.Linear(64, 96), activate=True)
    x = torch.randn(40, 100, 64)  # 25 million multiply-accumulates
    expected = gelu(linear(x, layer.weight, layer.bias))

    def products() -> list[str]:
        with torch.profiler.profile() as profiled:
            assert error(layer(x), expected) < 1e-6
        return [event.name for event in profiled.events() if event.name in ("aten::gelu", *LINEAR)]

    first = products()
    assert first.count("aten::gelu") >= 3, "the plain way"
    assert sum(first.count(name) for name in LINEAR) >= 6
    then = products()
    assert products() == then
    assert sum(then.count(name) for name in LINEAR) == 1
    assert layer.is_packed == ("aten::gelu" not in then), "weights are held twice for nothing"
    assert not quicker(("a kind",), lambda: None, lambda: sum(range(100_000)))
    assert quicker(("another",), lambda: sum(range(100_000)), lambda: None)
    tried = []
    with no_trials():
        assert quicker(("another",), lambda: None, lambda: None), "it was tried before"
        assert not quicker(("a third",), lambda: tried.append(1), lambda: tried.append(2))
    assert not tried
    assert error(layer(x[:1]), gelu(linear(x[:1], layer.weight, layer.bias))) < 1e-6, "too small to be worth it"
    assert error(layer(x.mT.contiguous().mT), expected) < 1e-6
    with torch.enable_grad():
        inputs = x.clone().requires_grad_()
        layer(inputs).sum().backward()
    assert inputs.grad is not None
    assert layer.double()(x.double()).dtype == torch.float64


def test_inside_a_detector():
    detector = transept.create_detector("retinanet", backbone="xcit_nano_12_p16", num_classes=3, depth=2)
    fused = transept.fuse(detector)
    kinds = [type(module) for module in fused.modules()]
    assert kinds.count(FusedLocalPatchInteraction) == 2
    assert FusedCrossPatch not in kinds
    with pytest.raises(UsageError, match="a fused or compiled model is for inference"):
        fused.train()

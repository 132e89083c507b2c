"""What every registered variant promises, at a small size of its own shape."""

from functools import cache

import pytest
import torch
from torch import nn

import transept

NAMES = transept.list_models()
SMALL = dict(depth=2, img_size=64, num_classes=7)
# 224 and 384 are the same modules; what is slow runs once for each shape.
SHAPES = sorted({name.rsplit("_", 1)[0]: name for name in NAMES}.values())
FAMILIES = ("cait_xxs24_224", "xcit_nano_12_p8_224", "xcit_tiny_12_p16_224")


@cache
@torch.inference_mode(False)  # kept for tests that train
def model_of(name: str, features_only: bool = False) -> nn.Module:
    torch.manual_seed(0)
    options = {key: value for key, value in SMALL.items() if not (features_only and key == "num_classes")}
    model = transept.create_model(name, features_only=features_only, **options)
    return _lively(model).eval()


def _lively(model: nn.Module) -> nn.Module:
    """LayerScale starts at 1e-5 in deep models: at 1, errors in any branch show in the output."""
    for key, parameter in model.named_parameters():
        if "gamma" in key:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def image(batch: int = 2, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_forward_of_any_size_and_batch(name: str):
    model = model_of(name)
    whole = model(image())
    assert whole.shape == (2, 7)
    assert torch.allclose(whole[1:], model(image()[1:]), atol=1e-5), "an image's logits depend on its neighbours"
    for height, width in ((64, 96), (75, 53), (17, 33)):
        assert model(image(1, height, width)).isfinite().all()
    assert torch.equal(model(image()), whole), "other sizes in between left a trace"


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name: str):
    model = transept.create_model(name, drop_path_rate=0.1, **SMALL).train()
    _lively(model)(image(4)).square().mean().backward()
    assert not [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    # proj_l's bias cancels in the softmax: its gradient is zero in exact arithmetic
    silent = [key for key, p in model.named_parameters() if not p.grad.any() and not key.endswith("proj_l.bias")]
    assert not silent


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_head(name: str):
    model = transept.create_model(name, **SMALL).eval()
    features = model.forward_features(image())
    assert torch.equal(model.forward_head(features), model(image()))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.num_features)
    model.reset_classifier(3)
    assert model(image()).shape == (2, 3)
    assert model.get_classifier().out_features == model.num_classes == 3
    model.reset_classifier(0)
    assert torch.equal(model(image()), pooled)
    model.reset_classifier(5, global_pool="avg")
    assert model(image()).shape == (2, 5)
    assert not torch.allclose(model.forward_head(features, pre_logits=True), pooled)
    with pytest.raises(ValueError, match="'max'"):
        model.reset_classifier(5, global_pool="max")


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_pyramid(name: str):
    model = model_of(name, features_only=True)
    for height, width in ((64, 96), (70, 107), (16, 16)):
        levels = model(image(2, height, width))
        assert [level.shape[1] for level in levels] == model.feature_info.channels()
        for level, stride in zip(levels, model.feature_info.reduction(), strict=True):
            slack = max(1, model.stride / stride)  # the grid is rounded up to whole patches, then doubled or halved
            assert abs(level.shape[2] - height / stride) < slack
            assert abs(level.shape[3] - width / stride) < slack
    both = transept.create_model(name, features_only=True, depth=2, img_size=64, out_indices=(1, 3)).eval()
    both.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(both(image()), model(image())[1::2], strict=True))
    assert both.feature_info.reduction() == [8, 32]


@pytest.mark.parametrize("name", SHAPES)
@torch.inference_mode()
def test_intermediates(name: str):
    model = model_of(name)
    final, maps = model.forward_intermediates(image(1, 64, 96))
    assert torch.equal(final, model.forward_features(image(1, 64, 96)))
    stride = model.feature_info[-1]["reduction"]
    assert [tuple(m.shape) for m in maps] == [(1, model.num_features, 64 // stride, 96 // stride)] * 2
    (tokens,) = model.forward_intermediates(image(1, 64, 96), indices=[-1], output_fmt="NLC", intermediates_only=True)
    assert torch.equal(tokens.transpose(1, 2).reshape(maps[1].shape), maps[1])
    with pytest.raises(ValueError, match="indices=5"):
        model.forward_intermediates(image(), indices=5)


@pytest.mark.parametrize("name", SHAPES)
def test_gradient_checkpointing_changes_nothing(name: str):
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = _lively(transept.create_model(name, drop_path_rate=0.2, **SMALL)).train()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(1)
        model(image(4)).square().sum().backward()
        state = {key: value.clone() for key, value in model.state_dict().items()}
        results.append(({key: p.grad for key, p in model.named_parameters()}, state))
    (plain, plain_state), (saved, saved_state) = results
    for key, gradient in plain.items():
        assert torch.allclose(gradient, saved[key], rtol=1e-4, atol=1e-6), key
    for key, value in plain_state.items():  # BatchNorm's running statistics among them
        assert torch.equal(value, saved_state[key]), key


@pytest.mark.parametrize("name", SHAPES)
@torch.inference_mode()
def test_other_channels_and_precision(name: str):
    grey = transept.create_model(name, in_chans=1, **SMALL).eval()
    assert grey(image()[:, :1]).shape == (2, 7)
    model = model_of(name)
    expected = model(image())
    half = transept.create_model(name, **SMALL).eval()
    half.load_state_dict(model.state_dict())
    assert torch.allclose(half.bfloat16()(image().bfloat16()).float(), expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name", SHAPES)
def test_captured_whole_and_exported(name: str):
    torch.compiler.reset()
    model = model_of(name)
    expected = model(image()).detach()
    captured = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(captured(image()), expected, atol=1e-6)
    program = torch.export.export(model, (image(),), dynamic_shapes={"x": {0: torch.export.Dim("b", min=1, max=8)}})
    assert torch.allclose(program.module()(image()), expected, atol=1e-6)
    assert torch.allclose(program.module()(image(5))[:1], model(image(5))[:1], atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_compiled(name: str):
    torch.compiler.reset()
    model = model_of(name)
    compiled = torch.compile(model, fullgraph=True)
    assert torch.allclose(compiled(image()), model(image()), atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_learns(name: str):
    model = transept.create_model(name, **SMALL).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    labels = torch.tensor([0, 1, 2, 3])
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(image(4)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]

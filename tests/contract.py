"""What every variant of every family promises, as checks that take its name; at a small size of its own shape.

`make` builds it: `tiny` of its own widths, `slim` of few channels, which none of these promises is about.
"""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import transept
from tests.helpers import image, lively, narrow, slim, tiny

Make = Callable[..., Any]


@cache
@torch.inference_mode(False)  # kept for tests that train
def model_of(name: str, make: Make, features_only: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return lively(make(name, features_only=features_only)).eval()


@torch.inference_mode()
def check_forward_of_any_size_and_batch(name: str, make: Make = tiny) -> None:
    model = model_of(name, make)
    whole = model(image())
    assert whole.shape == (2, 7)
    assert torch.allclose(whole[1:], model(image()[1:]), atol=1e-5), "an image's logits depend on its neighbours"
    for height, width in ((64, 96), (75, 53), (17, 33)):
        assert model(image(1, height, width)).isfinite().all()
    assert torch.equal(model(image()), whole), "other sizes in between left a trace"


def check_gradients_reach_every_parameter(name: str) -> None:
    model = tiny(name, drop_path_rate=0.1).train()
    lively(model)(image(4)).square().mean().backward()
    assert not [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    # proj_l's bias cancels in the softmax: its gradient is zero in exact arithmetic
    silent = [key for key, p in model.named_parameters() if not p.grad.any() and not key.endswith("proj_l.bias")]
    assert not silent


@torch.inference_mode()
def check_head(name: str, make: Make = tiny) -> None:
    model: Any = copy.deepcopy(model_of(name, make))
    features = model.forward_features(image())
    assert torch.equal(model.forward_head(features), model(image()))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.num_features)
    model.reset_classifier(3)
    assert model(image()).shape == (2, 3)
    assert model.get_classifier().out_features == model.num_classes == 3
    model.reset_classifier(0)
    assert torch.equal(model(image()), pooled)
    usual = model.global_pool
    model.reset_classifier(5, global_pool="avg")
    assert model(image()).shape == (2, 5)
    assert torch.allclose(model.forward_head(features, pre_logits=True), pooled) == (usual == "avg")
    with pytest.raises(ValueError, match="'max'"):
        model.reset_classifier(5, global_pool="max")


@torch.inference_mode()
def check_pyramid(name: str, make: Make = tiny) -> None:
    model = model_of(name, make, features_only=True)
    for height, width in ((64, 96), (70, 107), (16, 16)):
        levels = model(image(2, height, width))
        assert [level.shape[1] for level in levels] == model.feature_info.channels()
        for level, stride in zip(levels, model.feature_info.reduction(), strict=True):
            slack = max(1, 16 / stride)  # a grid of whole patches may be rounded up, then doubled or halved
            assert abs(level.shape[2] - height / stride) < slack
            assert abs(level.shape[3] - width / stride) < slack
    both = make(name, features_only=True, out_indices=(1, 3)).eval()
    both.load_state_dict(model.state_dict(), strict=False)
    assert all(torch.equal(a, b) for a, b in zip(both(image()), model(image())[1::2], strict=True))
    assert both.feature_info.reduction() == [8, 32]


@torch.inference_mode()
def check_intermediates(name: str, make: Make = tiny) -> None:
    model = model_of(name, make)
    final, maps = model.forward_intermediates(image(1, 64, 96))
    torch.testing.assert_close(final, model.forward_features(image(1, 64, 96)), rtol=0, atol=0)
    wanted = [(lv["num_chs"], round(64 / lv["reduction"]), round(96 / lv["reduction"])) for lv in model.feature_info]
    assert [tuple(m.shape[1:]) for m in maps] == wanted
    (tokens,) = model.forward_intermediates(image(1, 64, 96), indices=[-1], output_fmt="NLC", intermediates_only=True)
    assert torch.equal(tokens.transpose(1, 2).reshape(maps[-1].shape), maps[-1])
    with pytest.raises(ValueError, match="indices=50"):
        model.forward_intermediates(image(), indices=50)


def check_gradient_checkpointing_changes_nothing(name: str) -> None:
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = lively(slim(name, drop_path_rate=0.2)).train()
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


def check_what_evaluation_keeps_follows_the_parameters(name: str) -> None:
    """Position biases are kept from one evaluation to the next, and must not outlive their parameters."""
    model = lively(slim(name)).eval()
    with torch.inference_mode():
        first = model(image())
        assert torch.equal(model(image()), first)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
        changed = model(image())
    fresh = slim(name).eval()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(changed, fresh(image()))
        assert torch.equal(changed, copy.deepcopy(model)(image()))
    assert not torch.allclose(changed, first, atol=1e-3)
    model(image()).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.endswith("proj_l.bias"))


@torch.inference_mode()
def check_other_channels_and_precision(name: str) -> None:
    grey = slim(name, in_chans=1).eval()
    assert grey(image()[:, :1]).shape == (2, 7)
    model = model_of(name, slim)
    expected = model(image())
    half = copy.deepcopy(model)
    assert torch.allclose(half.bfloat16()(image().bfloat16()).float(), expected, atol=0.1, rtol=0.1)


def check_captured_whole_and_exported(name: str) -> None:
    torch.compiler.reset()
    model = lively(narrow(name)).eval()  # graphs do not see widths
    expected = model(image()).detach()
    captured = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(captured(image()), expected, atol=1e-6)
    program = torch.export.export(model, (image(),), dynamic_shapes={"x": {0: torch.export.Dim("b", min=1, max=8)}})
    exported = program.module()
    assert torch.allclose(exported(image()), expected, atol=1e-6)
    assert torch.allclose(exported(image(5))[:1], model(image(5))[:1], atol=1e-5)


@torch.inference_mode()
def check_compiled(name: str) -> None:
    torch.compiler.reset()
    model = lively(narrow(name)).eval()
    compiled = torch.compile(model, fullgraph=True)
    assert torch.allclose(compiled(image()), model(image()), atol=1e-5)


def check_learns(name: str) -> None:
    model = narrow(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    labels = torch.tensor([0, 1, 2, 3])
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(image(4)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@torch.inference_mode()
def check_full_size(name: str) -> None:
    model = transept.create_model(name).eval()
    height, width = model.pretrained_cfg["input_size"][1:]
    assert model(image(1, height, width)).isfinite().all()
    del model
    pyramid = transept.create_model(name, features_only=True).eval()
    strides = pyramid.feature_info.reduction()
    assert [tuple(m.shape[2:]) for m in pyramid(image(1, 256, 320))] == [(256 // s, 320 // s) for s in strides]

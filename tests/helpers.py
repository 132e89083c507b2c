"""What tests of several rooms share: small models, what a command says, and what two runs have in common."""

import csv
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

import transept
from transept.cli.main import main
from transept.models import registry
from transept.models.undrawn import UndrawnWeights

SMALL: dict[str, dict[str, Any]] = {
    "bixt_ti_l64_p16": dict(depth=3, embed_dim=48, num_latents=5),
    "cabvit_h_l1": dict(depths=(1, 1, 3, 2), embed_dims=(8, 16, 32, 48), num_heads=(2, 3), pyramid_dims=None),
    "cabvit_p_l0": dict(depth=4, embed_dim=24),
    "cabvit_p_l0_cross": dict(depth=4, embed_dim=24),
    "cait_xxs24_224": dict(depth=2, embed_dim=48),
    "cat_tiny": dict(depths=(1, 1, 2, 1), embed_dim=16, num_heads=(1, 2, 4, 8), pad=True),
    "crossformer_tiny": dict(depths=(2, 2, 2, 1), embed_dim=16, num_heads=(1, 2, 4, 8), pad=True),
    "crossvit_tiny_240": dict(depth=1, embed_dims=(24, 48), squash=False),
    "xcit_nano_12_p8_224": dict(depth=3, embed_dim=32),
}
"""One model of each kind of network, with few blocks and channels: built in a moment, and run in another."""
NAMES = tuple(SMALL)
STAGES = dict(img_size=64, depths=(1, 1, 2, 1))
TINY = {
    "CAT": STAGES | dict(pad=True),
    "CabViT": STAGES,
    "CrossFormer": STAGES | dict(pad=True),
    "XCiT": dict(img_size=64, depth=2),
    "CaiT": dict(img_size=64, depth=2),
    "CrossViT": dict(img_size=64, depth=1, squash=False),
    "BiXT": dict(img_size=64, depth=3),
}
"""Options that leave a variant its own widths and kinds of layers, and few blocks."""
LEAST: dict[str, dict[str, Any]] = {
    "bixt_ti_l64_p16": dict(depth=2, embed_dim=48, num_latents=5),
    "bixt_ti_cnv_l64_d13_p8": dict(depth=2, embed_dim=48, num_latents=5, init_scale=1.0),
    "cabvit_h_l1": SMALL["cabvit_h_l1"] | dict(depths=(1, 1, 2, 1)),
    "cabvit_p_l0": SMALL["cabvit_p_l0"],
    "cabvit_p_l0_cross": SMALL["cabvit_p_l0_cross"],
    "cait_xxs24_224": dict(depth=1, embed_dim=48),
    "cait_xxs24_384": dict(depth=1, embed_dim=48),
    "cat_tiny": dict(depths=(1, 0, 0, 1), embed_dim=16, num_heads=(1, 2, 4, 8), pad=True),
    "crossformer_tiny": dict(depths=(1, 1, 2, 1), embed_dim=16, num_heads=(1, 2, 4, 8), pad=True),
    "crossformer_pp_small": dict(depths=(1, 1, 3, 1), embed_dim=16, num_heads=(1, 2, 4, 8), pad=True),
    "crossvit_tiny_240": dict(depth=1, embed_dims=(24, 48), squash=False),
    "crossvit_9_dagger_240": dict(depth=1, embed_dims=(32, 64), squash=False),
    "xcit_nano_12_p8_224": dict(depth=1, embed_dim=32),
    "xcit_nano_12_p8_384": dict(depth=1, embed_dim=32),
    "xcit_nano_12_p16_384": dict(depth=1, embed_dim=32),
    "xcit_tiny_12_p8_384": dict(depth=1, embed_dim=32),
}
"""What has all kinds of layers of a variant, and nothing twice that a graph would hold twice."""
FAMILIES = ("bixt_ti_l64_p16", "cabvit_h_l1", "cabvit_p_l0", "cait_xxs24_224", "cat_tiny", "crossformer_tiny",
            "crossvit_tiny_240", "xcit_nano_12_p8_224")  # fmt: skip
BACKBONES = {
    "cat_tiny": dict(depths=(1, 1, 1, 1)),
    "cabvit_h_l1": dict(depths=(1, 1, 2, 1)),
    "crossformer_tiny": dict(depths=(1, 1, 2, 1)),
    "crossformer_pp_small": dict(depths=(1, 1, 3, 1)),
    "xcit_nano_12_p16": dict(depth=1),
    "xcit_nano_12_p8": dict(depth=1),
    "cait_xxs24": dict(depth=1),
    "crossvit_tiny": dict(depth=1),
    "bixt_ti_l64_p16": dict(depth=2),
}
"""Backbones of one block for each level: of every family, and of both of its kinds where it has two."""
NARROW = {
    "cabvit_h_l1": dict(embed_dims=(16, 16, 16, 16), depths=(1, 1, 1, 1), num_heads=(2, 2)),
    "cabvit_p_l0": dict(depth=2, embed_dim=32, num_heads=2),
    "cait_xxs24_224": dict(depth=2, embed_dim=32, num_heads=2),
    "cat_tiny": dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)),
    "crossformer_tiny": dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)),
}
"""Backbones of few blocks and channels for detectors."""


def build(name: str, features_only: bool = False) -> Any:
    """For images of 64 pixels and 7 classes, or a pyramid."""
    options = dict(features_only=True) if features_only else dict(num_classes=7)
    return lively(transept.create_model(name, img_size=64, **SMALL[name], **options)).eval()


def tiny(name: str, **options: Any) -> Any:
    """The variant with few blocks, for small images; its widths and kinds of layers are its own."""
    _, family = registry.find_model(name)
    small = dict(TINY.get(family.name, dict(img_size=64)))
    if name.startswith("cabvit_p"):
        small = dict(img_size=64, depth=4)
    if not options.get("features_only"):
        options = {"num_classes": 7} | options
    return transept.create_model(name, **small | options)


def slim(name: str, **options: Any) -> Any:
    """`tiny` with few channels, too, where the kind of network is listed: several times as fast."""
    widths = {key: value for key, value in LEAST.get(name, {}).items() if not key.startswith("depth")}
    return tiny(name, **widths | options)


def narrow(name: str) -> Any:
    """With the layers of the variant's kind, each once or twice and of few channels; what is not listed is `tiny`."""
    small = LEAST.get(name)
    return tiny(name) if small is None else transept.create_model(name, img_size=64, num_classes=7, **small)


def noisy(name: str, std: float, **options: Any) -> Any:
    """A model whose matrices are noise of one deviation, so that what each branch says shows in the output."""
    torch.manual_seed(0)
    model = transept.create_model(name, **options).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=std)
    return model


def blank(name: str, **options: Any) -> Any:
    """A model to load weights into: each value that they do not give is not a number, and so are then the outputs."""
    with UndrawnWeights():
        model = transept.create_model(name, **options)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(torch.nan if value.is_floating_point() else 0)
    return model


def lively(model: nn.Module) -> nn.Module:
    """LayerScale starts at 1e-5 in deep models, BiXT's head at 0: so that errors in any branch show in the output."""
    for key, parameter in model.named_parameters():
        if key == "head.weight" and not parameter.any():
            nn.init.trunc_normal_(parameter, std=0.02)
        if "gamma" in key or "layer_scale" in key:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def image(batch: int = 2, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def fails(capsys: pytest.CaptureFixture[str], argv: list[str], code: int = 1) -> str:
    """The one line that the command says when it ends with this code."""
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("transept: ")
    return lines[0]


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv."""
    return list(csv.DictReader((folder / "metrics.csv").open()))


def rows(folder: Path) -> list[dict[str, str]]:
    """Without what a clock says: equal in runs that do the same."""
    return [row | dict(seconds="", images_per_second="") for row in metrics(folder)]


def assert_same(folder: Path, other: Path) -> None:
    assert rows(folder) == rows(other)
    for name in ("best.safetensors", "last.safetensors"):
        ours, theirs = load_file(folder / name), load_file(other / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), name


@contextmanager
def ctrl_c(kind: type[nn.Module], call: int, *, training: bool = True) -> Iterator[None]:
    """Sends the signal at the start of a forward pass of `kind` in training, or else in use, counted from 1."""
    calls = 0

    def look(module: nn.Module, inputs: Any) -> None:
        nonlocal calls
        if isinstance(module, kind) and module.training == training:
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGINT)

    hook = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()

"""What docs/interop.md and docs/coming-from.md say of other libraries beyond their blocks of code, run with those."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork

import transept
from tests.helpers import NAMES, SMALL
from transept.tasks.detect_methods import METHODS as DETECTORS
from transept.tasks.load import _system_checkpoint
from transept.tasks.registry import TASKS
from transept.tasks.segment_methods import METHODS as SEGMENTERS
from transept.training.options.pages import recipe_names

COMING_FROM = Path(__file__).parents[2] / "docs" / "coming-from.md"


@pytest.mark.parametrize("family", ["xcit", "cait"])
def test_published_weights_of_timm_are_among_ours(family: str):
    ours, theirs = transept.list_models(f"{family}*", tag=True), timm.list_pretrained(f"{family}*")
    assert theirs
    assert set(theirs) <= set(ours)


def pyramid_of(name: str) -> Any:
    return transept.create_model(name, features_only=True, out_indices=(1, 2, 3), img_size=64, **SMALL[name])


@pytest.mark.parametrize("name", NAMES)
def test_levels_have_the_same_strides_in_every_family(name: str):
    pyramid = pyramid_of(name)
    assert pyramid.feature_info.reduction() == [8, 16, 32]
    with torch.no_grad():
        maps = pyramid(torch.randn(1, 3, 96, 64))
    assert [tuple(m.shape[2:]) for m in maps] == [(12, 8), (6, 4), (3, 2)]


@pytest.mark.parametrize("name", ["xcit_nano_12_p16_224", "cait_xxs24_224"])
@torch.no_grad()
def test_the_methods_of_timm_give_the_same(name: str, tmp_path: Path):
    """With the same weights, which timm's own `load_checkpoint` takes from a file of ours in its names."""
    torch.manual_seed(0)
    theirs = timm.create_model(name, depth=3, num_classes=5).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = transept.create_model(name, depth=3, num_classes=5, weights=tmp_path / "theirs.pth").eval()
    images = torch.randn(2, 3, 224, 224)

    def same(mine: Tensor, other: Tensor) -> bool:
        return mine.shape == other.shape and torch.allclose(mine, other, atol=1e-4, rtol=1e-4)

    features, others = ours.forward_features(images), theirs.forward_features(images)
    assert same(features, others)
    for pre_logits in (False, True):
        assert same(ours.forward_head(features, pre_logits), theirs.forward_head(others, pre_logits))
    maps, others = (m.forward_intermediates(images, indices=2, intermediates_only=True) for m in (ours, theirs))
    assert len(maps) == len(others) == 2
    assert all(same(mine, other) for mine, other in zip(maps, others, strict=True))
    for model in (ours, theirs):
        model.set_grad_checkpointing(True)
        model.reset_classifier(0)
    assert same(ours(images), theirs(images))


@pytest.mark.parametrize("name", ["crossformer_tiny", "xcit_nano_12_p8_224"])
def test_a_detector_of_torchvision_on_our_pyramid(name: str):
    class Levels(nn.Module):
        out_channels = 8

        def __init__(self) -> None:
            super().__init__()
            self.pyramid = pyramid_of(name)
            self.neck = FeaturePyramidNetwork(self.pyramid.feature_info.channels(), self.out_channels)

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return self.neck(dict(zip("012", self.pyramid(images), strict=True)))

    anchors = AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3)
    detector = RetinaNet(Levels(), 3, min_size=64, max_size=96, anchor_generator=anchors)
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    losses = detector.train()([torch.rand(3, 64, 80)], [target])
    sum(losses.values()).backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in detector.backbone.pyramid.patch_embed.parameters()
    )
    (found,) = detector.eval()([torch.rand(3, 64, 80)])
    assert found.keys() == {"boxes", "labels", "scores"}


def test_the_auxiliary_head_of_upernet_and_folders_of_auto_backbone(tmp_path: Path):
    transformers: Any = pytest.importorskip("transformers", reason="needs the extra 'transformers'")
    from transept.interop.transformers import TranseptBackbone, TranseptConfig

    config = TranseptConfig(name="crossformer_tiny", img_size=64, options=SMALL["crossformer_tiny"])
    images, labels = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.long)

    def network(**more: Any) -> Any:
        options = transformers.UperNetConfig(backbone_config=config, hidden_size=16, num_labels=2, **more)
        return transformers.UperNetForSemanticSegmentation(options).train()

    channels = TranseptBackbone(config).channels[2]
    for more in ({}, {"auxiliary_in_channels": channels}):
        model = network(**more)
        assert model.auxiliary_head.in_channels == channels
        model(images, labels=labels).loss.backward()
        assert all(p.grad is not None for p in model.auxiliary_head.parameters())

    TranseptBackbone(config).save_pretrained(tmp_path)
    with pytest.raises((ValueError, OSError)):
        transformers.AutoBackbone.from_pretrained(tmp_path)
    assert TranseptBackbone.from_pretrained(tmp_path).channels[2] == channels


@pytest.mark.slow  # a process of its own imports transformers anew
@pytest.mark.parametrize("name", ["xcit_nano_12_p16_224", "cait_xxs24_224"])
def test_timm_and_transformers_read_our_folders_without_us(name: str, tmp_path: Path):
    pytest.importorskip("transformers", reason="needs the extra 'transformers'")
    torch.manual_seed(0)
    model = transept.create_model(name, num_classes=3).eval()
    transept.save_pretrained(model, tmp_path)
    code = f"""
import json, sys, timm, torch
from transformers import AutoModelForImageClassification
x = torch.linspace(-1, 1, 3 * 224 * 224).view(1, 3, 224, 224)
with torch.no_grad():
    theirs = timm.create_model("local-dir:{tmp_path}", pretrained=True).eval()(x)
    wrapped = AutoModelForImageClassification.from_pretrained({str(tmp_path)!r}).eval()(x).logits
print(json.dumps([theirs.tolist(), wrapped.tolist(), "transept" in sys.modules]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    theirs, wrapped, ours = json.loads(run.stdout.splitlines()[-1])
    with torch.no_grad():
        expected = model(torch.linspace(-1, 1, 3 * 224 * 224).view(1, 3, 224, 224))
    assert not ours
    assert torch.allclose(torch.tensor(theirs), expected, atol=1e-4)
    assert torch.allclose(torch.tensor(wrapped), expected, atol=1e-4)


def test_the_names_in_the_tables_exist():
    """Methods, recipes and published systems that docs/coming-from.md names."""
    text = COMING_FROM.read_text(encoding="utf-8")
    words = [word.strip('`|,.()"') for word in text.split()]
    recipes = {word for word in words if word.startswith(("detect/", "segment/"))}
    assert recipes == {"detect/mask_rcnn_cat_small_1x_ms", "segment/upernet_crossformer_small_160k"}
    assert recipes <= set(recipe_names())
    systems = {word for word in words if word.partition("/")[0] in {*DETECTORS, *SEGMENTERS} and "/" in word}
    assert systems == {"mask_rcnn/cat_small", "upernet/crossformer_small"}
    for system in systems:
        method, _, backbone = system.partition("/")
        (kind,) = [kind for kind in TASKS if method in kind.methods]
        assert _system_checkpoint(kind, method, backbone).method == method
    named = {name for name in (*DETECTORS, *SEGMENTERS) if f'"{name}"' in text}
    assert named == {*DETECTORS, *SEGMENTERS}

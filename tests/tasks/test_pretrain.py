"""DINO: the loss by hand, the teacher's averages, every family on crops of two sizes, files."""

import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import transept
from transept.data.classification.transforms import Preprocessing
from transept.errors import TranseptError
from transept.extras import install
from transept.tasks.pretrain import DINO, FeatureExtractor, Pretrainer, Projections

pytest.importorskip("lightly")
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")  # lightly's

STAGES = dict(embed_dim=32, depths=(1, 1, 1, 1), pad=True)
TINY: dict[str, dict[str, Any]] = {
    "cabvit_h_l1": dict(embed_dims=(16, 16, 16, 16), depths=(1, 1, 1, 1), num_heads=(2, 2)),
    "cabvit_p_l0": dict(embed_dim=32, depth=2, num_heads=2),
    "cait_xxs24_224": dict(embed_dim=32, depth=2, num_heads=2),
    "cat_tiny": STAGES,
    "crossformer_tiny": STAGES,
    "xcit_nano_12_p8_224": dict(embed_dim=32, depth=2),
}


def pretrainer(name: str = "xcit_nano_12_p8_224", **options: Any) -> Pretrainer:
    torch.manual_seed(0)
    student, teacher = (
        transept.create_model(name, num_classes=0, img_size=64, drop_path_rate=rate, **TINY[name]) for rate in (0.1, 0)
    )
    small = dict(out_dim=24, hidden_dim=16, bottleneck_dim=8) | options
    return Pretrainer(student, teacher, Preprocessing(img_size=(64, 64)), DINO(**small))


def crops(batch: int = 2) -> list[torch.Tensor]:
    """Two global ones, two local ones whose side no stage divides."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 3, side, side, generator=generator) for side in (64, 64, 40, 40)]


def softmax(values: list[float]) -> list[float]:
    total = sum(map(math.exp, values))
    return [math.exp(value) / total for value in values]


@torch.no_grad()
def test_batch_norm_in_the_projection_tells_near_twins_apart():
    """The features of an untrained backbone: one direction, and a hundredth of it that depends on the picture."""
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(32, generator=generator) + 0.01 * torch.randn(64, 32, generator=generator)
    spread = {}
    for bn_in_head in (False, True):
        head = pretrainer(bn_in_head=bn_in_head).train().teacher.head
        spread[bn_in_head] = float(head(features).std(dim=0).mean())
    assert spread[False] < 0.02  # before the sharpening of teacher_temp=0.04, hardly a preference
    assert spread[True] > 0.1


def test_the_loss_is_equation_3():
    task = pretrainer(out_dim=3, student_temp=0.1, center_momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    teacher = [torch.rand(2, 3, generator=generator) / 5 for _ in range(2)]
    student = [torch.rand(2, 3, generator=generator) / 5 for _ in range(4)]
    center = [0.02, -0.01, 0.05]
    task.criterion.center.copy_(torch.tensor(center))
    task.teacher_temp = 0.05
    by_hand = entropy = 0.0
    for number, view in enumerate(teacher):
        for other, crop in enumerate(student):
            if other == number:  # a crop is not compared with itself
                continue
            for t, s in zip(view.tolist(), crop.tolist(), strict=True):
                target = softmax([(value - c) / 0.05 for value, c in zip(t, center, strict=True)])
                guess = softmax([value / 0.1 for value in s])
                by_hand -= sum(p * math.log(q) for p, q in zip(target, guess, strict=True))
                entropy -= sum(p * math.log(p) for p in target)
    by_hand, entropy = by_hand / 12, entropy / 12  # two views with three crops each, two pictures
    outputs = Projections(teacher, student)
    assert float(task.teacher_entropy(outputs)) == pytest.approx(entropy, rel=1e-5)
    assert float(task.eval().loss(outputs)) == pytest.approx(by_hand, rel=1e-5)
    assert task.criterion.center.flatten().tolist() == pytest.approx(center)  # evaluation does not move it
    assert float(task.train().loss(outputs)) == pytest.approx(by_hand, rel=1e-5)
    mean = torch.cat(teacher).mean(0)
    assert torch.allclose(task.criterion.center.flatten(), 0.9 * torch.tensor(center) + 0.1 * mean)


def test_the_loss_is_taken_in_float32():
    task = pretrainer(out_dim=4096).eval()
    outputs = Projections(*([torch.rand(8, 4096) for _ in range(2)] for _ in range(2)))
    whole = task.loss(outputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(task.loss(outputs), whole)


def test_the_teacher_is_an_average_without_gradients():
    task = pretrainer().train()
    for ours, theirs in zip(task.teacher.parameters(), task.student.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    before = {name: value.clone() for name, value in task.teacher.named_parameters()}
    outputs = task(crops())
    assert len(outputs.teacher) == 2
    assert len(outputs.student) == 4
    assert not any(view.requires_grad for view in outputs.teacher)
    task.loss(outputs).backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in task.teacher.parameters())
    torch.optim.SGD(task.student.parameters(), lr=1.0).step()
    student = dict(task.student.named_parameters())
    assert any(not torch.equal(before[name], value) for name, value in student.items())
    task.update_teacher(0.75)
    for name, value in task.teacher.named_parameters():
        assert torch.allclose(value, 0.75 * before[name] + 0.25 * student[name], atol=1e-6), name
    task.update_teacher(1.0)
    after = {name: value.clone() for name, value in task.teacher.named_parameters()}
    task.update_teacher(1.0)
    assert all(torch.equal(value, after[name]) for name, value in task.teacher.named_parameters())


@pytest.mark.parametrize("name", TINY)
def test_every_family_learns_from_small_crops(name: str):
    task = pretrainer(name).train()
    task.loss(task(crops())).backward()
    for key, parameter in task.student.backbone.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert any(parameter.grad.abs().sum() > 0 for parameter in task.student.backbone.parameters())


def test_prototypes_wait_and_keep_their_length():
    task = pretrainer(freeze_last_layer=1, norm_last_layer=True).train()
    last = task.student.head.last_layer
    assert not last.weight_g.requires_grad
    for epoch, waits in ((0, True), (1, False)):
        task.loss(task(crops())).backward()
        task.cancel_last_layer_gradients(epoch)
        assert (last.weight_v.grad is None) == waits
    assert pretrainer(norm_last_layer=False).student.head.last_layer.weight_g.requires_grad


def test_a_saved_teacher_is_a_backbone(tmp_path: Path):
    task = pretrainer().eval()
    for parameter in task.student.parameters():
        torch.nn.init.normal_(parameter)
    task.save(tmp_path / "best.safetensors")
    images = crops()[0]
    with torch.no_grad():
        features = task.teacher.backbone(images)
        loaded = FeatureExtractor.load(tmp_path / "best.safetensors")
        assert loaded.preprocessing == task.preprocessing
        assert torch.equal(loaded(images), features)
        model = transept.create_model(
            "xcit_nano_12_p8_224", weights=tmp_path / "best.safetensors", num_classes=0, depth=2, embed_dim=32
        )
        assert torch.equal(model.eval()(images), features)
    classifier = transept.create_model("xcit_nano_12_p8_224", num_classes=5, depth=2, embed_dim=32)
    report = transept.load_weights(classifier, tmp_path / "best.safetensors")
    assert report.missing == ["head.weight", "head.bias"]
    pyramid = transept.create_model("xcit_nano_12_p8_224", features_only=True, depth=2, embed_dim=32)
    assert transept.load_weights(pyramid, tmp_path / "best.safetensors").taken


def test_without_lightly_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lightly.loss", None)
    with pytest.raises(TranseptError, match=re.escape(f"needs the package 'lightly': {install('ssl')}")):
        pretrainer()

"""A task in its forms: the same answers, from the same methods, and each form is said."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import transept
from tests.helpers import SMALL, image, lively
from transept.data.classification.transforms import Preprocessing
from transept.data.images import sample_picture
from transept.errors import TranseptError, UsageError
from transept.inference.fused import FusedTalkingHeads
from transept.inference.package import machine_facts, weights_digest
from transept.inference.processor import fast_bfloat16
from transept.labelling.job import plan_job
from transept.labelling.pictures import find_pictures
from transept.tasks.classify import Classifier
from transept.tasks.forms import in_form


def classifier() -> Classifier:
    model = transept.create_model("cait_xxs24_224", num_classes=3, img_size=32, **SMALL["cait_xxs24_224"])
    return Classifier(lively(model), ["a", "b", "c"], Preprocessing(img_size=(32, 32))).eval()


def is_fused(task: nn.Module) -> bool:
    return any(isinstance(module, FusedTalkingHeads) for module in task.modules())


def scores(task: Classifier) -> torch.Tensor:
    return task.predict([sample_picture()])[0].scores


def test_auto_goes_over_to_fused_once_it_has_cost_as_much():
    task, said = classifier(), []
    quick = in_form(task, "auto", "float32", said.append)
    expected = scores(task)
    assert torch.equal(scores(quick), expected)
    assert not said
    assert not is_fused(quick)
    long: Any = in_form(task, "auto", "float32", said.append)
    long._compiled_call_impl.seconds = long._compiled_call_impl.steps[0].after  # as if it had answered many pictures
    torch.testing.assert_close(scores(long), expected, atol=1e-5, rtol=0)
    assert is_fused(long)
    assert said == ["fused in float32: as asked"]
    assert not is_fused(task), "the task itself was changed"
    torch.testing.assert_close(scores(long), expected, atol=1e-5, rtol=0)
    assert len(said) == 1


def test_eager_and_fused():
    task, said = classifier(), []
    assert torch.equal(scores(in_form(task, "eager", report=said.append)), scores(task))
    half = in_form(task, "fused", "bfloat16", said.append)
    torch.testing.assert_close(scores(half), scores(task), atol=0.05, rtol=0)
    assert not torch.equal(scores(half), scores(task))
    assert said == ["fused in bfloat16: as asked"]


@pytest.mark.skipif(fast_bfloat16() is None, reason="this processor multiplies bfloat16 no faster")
def test_bfloat16_is_not_taken_where_it_differs_too_much(tmp_path: Path):
    task, said = classifier(), []
    with torch.no_grad():
        task.model.head.bias.fill_(100)  # bfloat16 knows of it the half: logits differ by less than that
    expected = scores(task)
    fused: Any = in_form(task, "fused", "auto", said.append)
    grown: Any = in_form(task, "auto", "auto", said.append)
    grown._compiled_call_impl.seconds = grown._compiled_call_impl.steps[0].after
    for form in (fused, grown):
        torch.testing.assert_close(scores(form), expected, atol=1e-5, rtol=0)
        assert is_fused(form)
        assert form.model.head.weight.dtype == torch.float32
    pytest.importorskip("pyarrow")
    sample_picture().save(tmp_path / "a.png")
    plan_job(task, find_pictures([str(tmp_path / "a.png")]), tmp_path / "rows", task.inference(), report=said.append)
    assert len(said) == 3
    for sentence in said:
        assert re.fullmatch(r"fused in float32: bfloat16 differs by \S+ of the spread, where 0\.1 is allowed", sentence)


def test_compiled_where_nothing_can_be_compiled():
    from torch._inductor import config

    task, said = classifier(), []
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        form = in_form(task, "compiled", "float32", said.append)
        with pytest.warns(UserWarning, match="the model runs fused in float32: as asked; there is no C\\+\\+ compiler"):
            torch.testing.assert_close(scores(form), scores(task), atol=1e-5, rtol=0)
    assert len(said) == 1
    assert is_fused(form)


@pytest.mark.slow  # the compiler takes half a minute
def test_compiled_and_from_a_package(tmp_path: Path):
    task, said = classifier(), []
    torch.testing.assert_close(
        scores(in_form(task, "compiled", "float32", said.append)), scores(task), atol=1e-5, rtol=0
    )
    assert said[0].startswith("compiled in float32: as asked; outputs differ by ")
    file = task.export(tmp_path, formats=["package"], dtype="float32").files["package"]
    packaged = in_form(task, str(file), report=said.append)
    torch.testing.assert_close(scores(packaged), scores(task), atol=1e-5, rtol=0)
    assert said[1:] == ["package in float32"]
    with pytest.raises(TranseptError, match="was not made of these weights; export it again with --format package"):
        in_form(classifier(), str(file))
    with pytest.raises(UsageError, match="takes 3 channels of 32 x 32, and these images have 3 of 48 x 32"):
        packaged(image(1, 48, 32))


def test_wrong_forms(tmp_path: Path):
    task = classifier()
    with pytest.raises(UsageError, match="no form is called 'fusd'; did you mean 'fused'"):
        in_form(task, "fusd")
    with pytest.raises(TranseptError, match=r"cannot read the package .*model\.pt2'"):
        in_form(task, str(tmp_path / "model.pt2"))


def test_the_digest_is_of_the_weights_alone():
    task = classifier()
    digest = weights_digest(task)
    assert digest == weights_digest(task.to(memory_format=torch.channels_last))
    with torch.no_grad():
        task.model.head.bias.add_(1e-3)
    assert weights_digest(task) != digest
    assert machine_facts()["torch"] == torch.__version__

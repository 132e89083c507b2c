"""Our pyramids as backbones of `transformers`: its Auto classes, its files, and a model of its own on top."""

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import transept
from tests.helpers import SMALL, lively
from transept.data.classification.transforms import Preprocessing
from transept.data.images import sample_picture
from transept.extras import install
from transept.tasks.classify import Classifier
from transept.tasks.labelling import MultiLabel

NAMES = ("cabvit_h_l1", "cat_tiny", "crossformer_tiny", "xcit_nano_12_p8_224")


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "transept.interop.transformers", raising=False)
    with pytest.raises(transept.TranseptError, match=re.escape(install("transformers", upgrade=True))):
        import_module("transept.interop.transformers")


@pytest.fixture
def ours() -> Any:
    pytest.importorskip("transformers", reason="needs the extra 'transformers'")
    return import_module("transept.interop.transformers")


def config_of(ours: Any, name: str, **more: Any) -> Any:
    return ours.TranseptConfig(name=name, img_size=64, options=SMALL[name], **more)


@pytest.mark.parametrize("name", NAMES)
def test_files_give_the_same_maps(ours: Any, name: str, tmp_path: Path):
    """Also what no file holds: CAT's table of positions."""
    from transformers import AutoBackbone

    backbone = AutoBackbone.from_config(config_of(ours, name)).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    backbone.save_pretrained(tmp_path)
    again = ours.TranseptBackbone.from_pretrained(tmp_path)
    assert not again.training
    images = torch.randn(2, 3, 75, 53)
    with torch.no_grad():
        maps, expected = again(images).feature_maps, backbone.model(images)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(maps, expected, strict=True))
    assert [m.shape[1] for m in maps] == backbone.channels == backbone.model.feature_info.channels()
    assert len(maps) == 4


def test_stages_are_chosen(ours: Any, tmp_path: Path):
    from transformers import AutoBackbone

    config = config_of(ours, "crossformer_tiny", num_channels=2, out_features=["stage2", "stage4"])
    backbone = AutoBackbone.from_config(config).eval()
    assert (backbone.out_indices, backbone.channels) == ([1, 3], [32, 128])
    backbone.save_pretrained(tmp_path)
    again = ours.TranseptBackbone.from_pretrained(tmp_path)
    assert again.config.to_dict()["out_features"] == ["stage2", "stage4"]
    with torch.no_grad():
        maps = again(torch.randn(1, 2, 64, 96), return_dict=False)[0]
    assert [m.shape for m in maps] == [(1, 32, 8, 12), (1, 128, 2, 3)]
    last = AutoBackbone.from_config(config_of(ours, "crossformer_tiny", out_indices=[-1]))
    assert last.channels == [128]
    with torch.no_grad():
        assert [m.shape for m in last(torch.randn(1, 3, 64, 96)).feature_maps] == [(1, 128, 2, 3)]


def test_weights_that_a_file_lacks_start_as_we_start_them(ours: Any, tmp_path: Path):
    backbone = ours.TranseptBackbone(config_of(ours, "cat_tiny"))
    state = {key: value for key, value in backbone.state_dict().items() if "norm" not in key}
    assert len(state) < len(backbone.state_dict())
    backbone.save_pretrained(tmp_path, state_dict=state)
    again = ours.TranseptBackbone.from_pretrained(tmp_path)
    for key, value in again.state_dict().items():
        assert torch.equal(value, backbone.state_dict()[key]), key


@pytest.mark.parametrize("name", ["cat_tiny", pytest.param("xcit_nano_12_p8_224", marks=pytest.mark.slow)])
def test_upernet_of_transformers(ours: Any, name: str, tmp_path: Path):
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    torch.manual_seed(0)
    config = UperNetConfig(
        backbone_config=config_of(ours, name), hidden_size=16, num_labels=2, use_auxiliary_head=False
    )
    model = UperNetForSemanticSegmentation(config).train()
    images = torch.randn(2, 3, 64, 96)
    labels = (images[:, 0] > 0).long()
    output = model(images, labels=labels)
    assert output.logits.shape == (2, 2, 64, 96)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.backbone.model.patch_embed.parameters())
    model.eval().save_pretrained(tmp_path)
    again = UperNetForSemanticSegmentation.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.allclose(again(images).logits, model(images).logits, atol=1e-5)


@pytest.mark.parametrize("name", ["cat_tiny", "crossformer_tiny", "cabvit_h_l1"])
def test_the_wrapper_of_timms_models(ours: Any, name: str, tmp_path: Path):
    """It builds on the meta device; what no file holds is made all the same, and we read what it saves."""
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    options = SMALL[name] | {"img_size": 64}
    config = TimmWrapperConfig(architecture=name, num_labels=7, model_args=options)
    model = TimmWrapperForImageClassification(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path)
    again = TimmWrapperForImageClassification.from_pretrained(tmp_path).eval()
    mine = transept.create_model(name, weights=tmp_path / "model.safetensors", num_classes=7, **options).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images).logits
        assert torch.allclose(again(images).logits, expected, atol=1e-5)
        assert torch.allclose(mine(images), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["cait_xxs24_224", "xcit_nano_12_p8_224", "cat_tiny"])
def test_folders_of_ours_in_the_wrapper(ours: Any, name: str, tmp_path: Path):
    from transformers import AutoModelForImageClassification

    model = transept.create_model(name, num_classes=3, img_size=64, **SMALL[name]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    transept.save_pretrained(model, tmp_path)
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(theirs(images).logits, model(images), atol=1e-4)


@pytest.fixture
def of_several_labels(tmp_path: Path) -> Classifier:
    """It is saved in the test's folder."""
    torch.manual_seed(0)
    model = lively(transept.create_model("cait_xxs24_224", num_classes=3, img_size=32, **SMALL["cait_xxs24_224"]))
    labelling = MultiLabel([0.3, 0.5, 0.7])
    classifier = Classifier(model, ["cat", "dog", "bird"], Preprocessing(img_size=(32, 32)), labelling=labelling).eval()
    transept.save_pretrained(classifier, tmp_path)
    return classifier


@pytest.mark.usefixtures("ours")
def test_the_wrapper_knows_several_labels(of_several_labels: Classifier, tmp_path: Path):
    """Their names and thresholds, the kind of the problem, and its loss."""
    from transformers import AutoModelForImageClassification

    theirs = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert theirs.config.problem_type == "multi_label_classification"
    assert theirs.config.id2label == {0: "cat", 1: "dog", 2: "bird"}
    assert theirs.config.thresholds == [0.3, 0.5, 0.7]
    images, truth = torch.randn(2, 3, 32, 32), torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    with torch.no_grad():
        output, logits = theirs(images, labels=truth), of_several_labels.model(images)
    assert torch.allclose(output.logits, logits, atol=1e-5)
    assert float(output.loss) == pytest.approx(float(binary_cross_entropy_with_logits(logits, truth)), abs=1e-5)


@pytest.mark.slow  # all pipelines are imported
@pytest.mark.usefixtures("ours")
def test_scores_of_several_labels_in_the_pipeline(of_several_labels: Classifier, tmp_path: Path):
    from transformers import pipeline

    classify: Any = pipeline("image-classification", model=str(tmp_path))
    answers = classify(sample_picture())
    scores = {answer["label"]: answer["score"] for answer in answers}
    images = of_several_labels.prepare(sample_picture(), (32, 32))[None]
    with torch.no_grad():
        expected = of_several_labels.model(images).sigmoid()[0].tolist()
    assert [scores[name] for name in of_several_labels.classes] == pytest.approx(expected, abs=1e-4)

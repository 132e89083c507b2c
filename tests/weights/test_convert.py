"""Checkpoints in the layout of every code base, filled by the recipe of the recordings: after loading, the outputs are
those of the official models."""

import json
import pickle
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

import transept
from tests.golden import weights
from tests.golden.make import fingerprint
from tests.helpers import blank
from transept.models.registry import FAMILIES, build_skeleton
from transept.weights.convert import converter_of, from_official, to_official
from transept.weights.files.reading import read_checkpoint
from transept.weights.identify import identify

State = dict[str, Tensor]
GOLDEN = Path(__file__).parents[1] / "golden"
SYSTEMS = json.loads((GOLDEN / "systems.json").read_text())
CLASSIFIERS = {
    "CAT": ("cat/cat_tiny", "cat_tiny"),
    "CabViT": ("cabvit/cabvit_h_l1", "cabvit_h_l1"),
    "CrossFormer": ("crossformer/crossformer_tiny", "crossformer_tiny"),
    "XCiT": ("xcit/xcit_nano_12_p16", "xcit_nano_12_p16_224"),
    "CaiT": ("cait/cait_xxs24_224", "cait_xxs24_224"),
    "CrossViT": ("crossvit/crossvit_tiny_240", "crossvit_tiny_240"),
    "BiXT": ("bixt/bixt_ti_l64_p16", "bixt_ti_l64_p16"),
}


def recipe(model: torch.nn.Module) -> State:
    """The weights of the recordings under the official names, counters included."""
    own = model.state_dict()
    values = weights.state_dict_for({key: value.shape for key, value in own.items() if value.is_floating_point()})
    return {
        key: torch.from_numpy(values[key]) if key in values else torch.zeros(value.shape, dtype=value.dtype)
        for key, value in own.items()
    }


def official(family: str) -> State:
    return dict(_official(family))


@cache
def _official(family: str) -> State:
    return recipe(build_skeleton(CLASSIFIERS[family][1]))


@torch.inference_mode()
def error(model: torch.nn.Module, golden: str) -> float:
    """The largest difference from the recorded logits, or from the recorded maps relative to their spread."""
    case = json.loads((GOLDEN / f"{golden}.json").read_text())
    out = model.eval()(torch.from_numpy(weights.image_for(case["input"]["seed"], case["input"]["shape"])))
    outputs = dict(zip(case["outputs"], out if isinstance(out, list) else [out], strict=True))
    return max(
        float(np.abs(np.array(weights.sample(value.numpy())) - np.array(case["outputs"][name]["sample"])).max())
        / (1 if name == "logits" else 2 * case["outputs"][name]["std"])
        for name, value in outputs.items()
    )


def timm_names(state: State, family: str) -> State:
    """Through timm's own model, which converts official files itself."""
    model = timm.create_model(CLASSIFIERS[family][1])
    filtered = timm.models.xcit.checkpoint_filter_fn(dict(state), model) if family == "XCiT" else state
    model.load_state_dict(filtered)
    return dict(model.state_dict())


def passl(state: State, family: str) -> dict[str, np.ndarray]:
    """As PaddlePaddle's state dict of the wrapper that holds backbone and head."""
    out = {}
    for key, value in state.items():
        array = value.numpy()
        if key.endswith("num_batches_tracked"):
            continue
        if array.ndim == 2 and key.endswith(".weight"):
            array = np.ascontiguousarray(array.T)
        name = key.replace("running_mean", "_mean").replace("running_var", "_variance")
        out[f"head.fc_cls.{key[5:]}" if key.startswith("head.") else f"backbone.{name}"] = array
    assert family in ("XCiT", "CaiT")
    return out | {"StructuredToParameterName@@": {key: key for key in out}}  # pyright: ignore


def mmpretrain(state: State, family: str) -> State:
    """As MMPretrain's image classifier names its parts."""
    out = {}
    for key, value in state.items():
        name = re.sub(r"^blocks", "xca_layers", re.sub(r"^cls_attn_blocks", "ca_layers", key))
        if found := re.match(r"patch_embed\.proj\.(\d)\.(\d)\.(\w+)", name):
            unit, part, leaf = found.groups()
            name = f"patch_embed.proj.{int(unit) // 2}.{['conv', 'bn'][int(part)]}.{leaf}"
        name = name.replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1")
        name = name.replace("local_mp.bn", "local_mp.conv1.bn")
        name = re.sub(r"local_mp\.(conv\d)\.(weight|bias)$", r"local_mp.\1.conv.\2", name)
        name = name.replace("pos_embeder.token_projection", "pos_embed.token_projection.conv")
        if name.startswith("ca_layers") and "attn.qkv" in name:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                out["backbone." + name.replace("attn.qkv", f"attn.{part}")] = piece
        else:
            out[f"head.fc.{key[5:]}" if key.startswith("head.") else f"backbone.{name}"] = value
    assert family == "XCiT"
    return out


def first_release(state: State, family: str) -> State:
    """CAT's module names before the publication of the re-trained models."""
    renamed = {"pre_ipsa_blocks": "blocks_pre", "cpsa_blocks": "cross_block", "post_ipsa_blocks": "blocks_post"}
    out = {}
    for key, value in state.items():
        for new, old in renamed.items():
            key = key.replace(f".{new}.", f".{old}.")
        out["absolute_pos_embed" if key == "ape" else key] = value
    assert family == "CAT"
    return out


def with_legacy_buffers(state: State, family: str) -> State:
    """CrossFormer files of 2021 hold two tables in each block; CAT files an index in each inner-patch attention."""
    out = dict(state)
    for key in state:
        if family == "CrossFormer" and key.endswith("attn.qkv.weight"):
            block = key.removesuffix("qkv.weight")
            out |= {
                f"{block}biases": torch.zeros(169, 2),
                f"{block}relative_position_index": torch.zeros(49, 49).long(),
            }
        if family == "CAT" and key.endswith("relative_position_bias_table"):
            out[key.replace("bias_table", "index")] = torch.zeros(49, 49, dtype=torch.long)
    assert len(out) > len(state)
    return out


def self_supervised(state: State, family: str) -> dict[str, State]:
    """A DINO run's file: student and teacher, each a wrapper of backbone and projection."""

    def network(values: State) -> State:
        inner = {f"module.backbone.{key}": value for key, value in values.items() if not key.startswith("head.")}
        head = {"mlp.0.weight": torch.zeros(8, 128), "last_layer.weight_v": torch.zeros(16, 8)}
        return inner | {f"module.head.{key}": value for key, value in head.items()}

    assert family == "XCiT"
    return {"student": network({key: torch.zeros_like(v) for key, v in state.items()}), "teacher": network(state)}


def plain(state: State, family: str) -> State:
    return dict(state)


def in_model(state: State, family: str) -> dict[str, State]:
    prefix = "module." if family == "CaiT" else ""
    return {"model": {prefix + key: value for key, value in state.items()}, "epoch": 300}  # pyright: ignore


def save(content: object, path: Path) -> Path:
    match path.suffix:
        case ".pth":
            torch.save(content, path)
        case ".safetensors":
            save_file({key: value.contiguous() for key, value in content.items()}, path)  # pyright: ignore
        case ".pdparams":
            path.write_bytes(pickle.dumps(content, protocol=4))
    return path


FORMS: list[tuple[str, Callable, str, str]] = [
    # families,                          layout,              suffix,         whose names
    ("CAT CabViT CrossFormer XCiT CaiT", in_model, ".pth", "official"),
    ("CabViT XCiT", plain, ".safetensors", "official"),  # how a file is read does not depend on the family
    ("XCiT", timm_names, ".safetensors", "timm"),
    ("CaiT", timm_names, ".safetensors", "official"),
    ("XCiT CaiT", passl, ".pdparams", "PASSL"),
    ("XCiT", mmpretrain, ".pth", "MMPretrain"),
    ("CAT", first_release, ".pth", "CAT's first release"),
    ("CAT CrossFormer", with_legacy_buffers, ".pth", "official"),
]
# The same states, read without what is around them, are in other cases.
REPEATED = (("CAT", in_model), ("CrossFormer", in_model))
CASES = [
    pytest.param(
        family,
        layout,
        suffix,
        dialect,
        id=f"{family}-{layout.__name__}{suffix}",
        marks=[pytest.mark.slow] if (family, layout) in REPEATED else [],
    )
    for families, layout, suffix, dialect in FORMS
    for family in families.split()
]


@pytest.mark.parametrize(("family", "layout", "suffix", "dialect"), CASES)
def test_every_format_gives_the_official_outputs(
    tmp_path: Path, family: str, layout: Callable, suffix: str, dialect: str
):
    golden, name = CLASSIFIERS[family]
    path = save(layout(official(family), family), tmp_path / f"weights{suffix}")
    model = blank(name)
    report = transept.load_weights(model, path)
    assert error(model, golden) < 1e-5
    assert report.dialect == dialect
    assert not report.unexpected
    assert {key.rsplit(".", 1)[-1] for key in report.missing} <= {"num_batches_tracked"}
    assert len(report.taken) + len(report.missing) == len(model.state_dict())
    identity = identify(read_checkpoint(path))
    assert identity is not None
    assert (identity.model, identity.dialect, identity.form) == (name, dialect, "classifier")


def test_a_self_supervised_file_gives_the_teachers_features(tmp_path: Path):
    state = official("XCiT")
    path = save(self_supervised(state, "XCiT"), tmp_path / "dino.pth")
    model = blank("xcit_nano_12_p16_224", num_classes=0)
    report = transept.load_weights(model, path)
    assert report.wrapper == "teacher"
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert len(report.dropped) == 2
    assert "projection of self-supervised training" in str(report)
    report = transept.load_weights(model, path, wrapper="student")
    assert not model.cls_token.any()
    classifier = blank("xcit_nano_12_p16_224", num_classes=10)
    assert transept.load_weights(classifier, path).missing == ["head.weight", "head.bias"]
    with pytest.warns(UserWarning, match="has no classifier, so that of xcit_nano_12_p16_224 starts fresh"):
        transept.create_model("xcit_nano_12_p16_224", weights=path)


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_dialects_are_read_back_as_they_were_written(family: str):
    state = official(family)
    for dialect in converter_of(family).dialects:
        written = from_official(state, family, dialect.name)
        assert set(written) != set(state) or any(written[key].shape != state[key].shape for key in state)
        back = to_official(written, family, dialect.name)
        lacking = {key for key in state if key.endswith("num_batches_tracked")} if dialect.lacks else set()
        assert set(back) == set(state) - lacking
        assert all(torch.equal(value, state[key]) for key, value in back.items())
    same = from_official(state, family, "official")
    assert set(same) == set(state)
    with pytest.raises(transept.TranseptError, match=f"no form of {family} checkpoints is called 'tim'"):
        from_official(state, family, "tim")


def test_written_dialects_are_what_the_other_code_reads():
    state = official("XCiT")
    timm.create_model("xcit_nano_12_p16_224").load_state_dict(from_official(state, "XCiT", "timm"))
    assert from_official(state, "XCiT", "MMPretrain").keys() == mmpretrain(state, "XCiT").keys()
    written, wanted = from_official(state, "XCiT", "PASSL"), passl(state, "XCiT")
    assert written.keys() == wanted.keys() - {"StructuredToParameterName@@"}
    assert all(np.array_equal(value.numpy(), wanted[key]) for key, value in written.items())


DENSE = [
    ("retinanet", "crossformer_small", "crossformer/crossformer_small_dense_160x224"),
    ("mask_rcnn", "crossformer_small", "crossformer/crossformer_small_dense_160x224"),
    ("upernet", "crossformer_small", "crossformer/crossformer_small_dense_160x224"),
    ("fcos", "cat_small", "cat/cat_small_dense_200x264"),
    ("semantic_fpn.cat_s", "cat_small", "cat/cat_small_dense_160x224"),
    ("mask_rcnn.xcit_s12_p8", "xcit_small_12_p8", "xcit/xcit_small_12_p8_dense_detection"),
]


# Quick: one of each code base and wrapper; identities of the others: `test_the_system_in_a_file_is_recognised`.
QUICK = ("mask_rcnn", "semantic_fpn.cat_s")


@pytest.mark.parametrize(
    ("system", "name", "golden"),
    [pytest.param(*case, id=case[0], marks=[] if case[0] in QUICK else [pytest.mark.slow]) for case in DENSE],
)
def test_the_backbone_of_an_official_detector_or_segmenter(tmp_path: Path, system: str, name: str, golden: str):
    options = {}
    for key, value in json.loads((GOLDEN / f"{golden}.json").read_text())["options"].items():
        options[key] = tuple(value) if isinstance(value, list) else value
    model = blank(name, features_only=True, **options)
    inner = recipe(model)
    shapes = {key: list(value.shape) for key, value in inner.items() if value.is_floating_point()}
    assert fingerprint(shapes) == SYSTEMS[system]["backbone_keys"]
    whole = {f"backbone.{key}": value for key, value in inner.items()}
    whole |= {key: torch.zeros(shape) for key, shape in SYSTEMS[system]["shapes"].items()}
    path = save({"meta": {"CLASSES": ("person",)}, "state_dict": whole}, tmp_path / "system.pth")
    report = transept.load_weights(model, path)
    assert error(model, golden) < 1e-5
    assert set(report.dropped) == set(SYSTEMS[system]["shapes"])
    assert not report.missing
    identity = identify(read_checkpoint(path))
    assert identity is not None
    assert identity.form == system.partition(".")[0]
    assert name in identity.model
    assert identity.num_classes == (150 if "fpn" in system or "uper" in system else 80)


@pytest.mark.parametrize("system", sorted({case[0] for case in DENSE} - set(QUICK)))
def test_the_system_in_a_file_is_recognised(tmp_path: Path, system: str):
    """Names and shapes are enough."""
    ((name, golden),) = ((name, golden) for known, name, golden in DENSE if known == system)
    options = json.loads((GOLDEN / f"{golden}.json").read_text())["options"]
    pyramid = build_skeleton(name, features_only=True, **options)
    shapes = {f"backbone.{key}": list(value.shape) for key, value in pyramid.state_dict().items()}
    shapes |= SYSTEMS[system]["shapes"]
    path = save(
        {"state_dict": {key: torch.zeros(shape, dtype=torch.float16) for key, shape in shapes.items()}},
        tmp_path / "a.pth",
    )
    identity = identify(read_checkpoint(path))
    assert identity is not None
    assert identity.form == system.partition(".")[0]
    assert name in identity.model
    assert identity.num_classes == (150 if "fpn" in system or "uper" in system else 80)


def test_old_names_inside_a_detector(tmp_path: Path):
    model = blank("cat_small", features_only=True)
    state = recipe(model)
    whole = {f"backbone.{key}": value for key, value in first_release(state, "CAT").items()}
    path = save({"state_dict": whole | {"neck.lateral_convs.0.conv.bias": torch.zeros(256)}}, tmp_path / "old.pth")
    report = transept.load_weights(model, path)
    assert report.dialect == "CAT's first release"
    assert error(model, "cat/cat_small_dense_160x224") < 1e-5


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_a_classifiers_file_starts_a_pyramid(tmp_path: Path, family: str):
    """And the maps are those of the classifier where the two share everything up to a level."""
    state = official(family)
    path = save({"model": state}, tmp_path / "classifier.pth")
    name = CLASSIFIERS[family][1]
    pyramid = blank(name, features_only=True)
    report = transept.load_weights(pyramid, path)
    own = pyramid.state_dict()
    assert all(torch.equal(own[key].flatten(), state[key].flatten()) for key in own if key in state and key != "ape")
    assert not report.unexpected
    assert {key.split(".")[0].rstrip("0123456789") for key in report.missing} <= {"fpn", "norm", "out_"}
    assert {key.split(".")[0] for key in report.dropped} <= {
        "head", "norm", "norm_head", "cls_token", "cls_attn_blocks", "blocks_token_only",
        *(("blocks", "fc_norm") if family in ("CrossViT", "BiXT") else ()),  # whose last blocks no map needs
    }  # fmt: skip
    if family == "CAT":
        assert report._names("reshaped") == ["ape"]
        assert torch.equal(own["ape"].flatten(2).transpose(1, 2), state["ape"])
    save({"model": own}, tmp_path / "pyramid.pth")
    with pytest.raises(
        transept.TranseptError,
        match=f"this looks like the pyramid of {name}: .*the file lacks (blocks|norm|cls_token).*features_only=True",
    ):
        transept.load_weights(build_skeleton(name), tmp_path / "pyramid.pth")


def test_sizes_channels_and_classes_are_fitted_and_reported(tmp_path: Path):
    path = save(official("CaiT"), tmp_path / "cait.safetensors")
    model = blank("cait_xxs24_224", img_size=(96, 160), in_chans=1, num_classes=7)
    report = transept.load_weights(model, path)
    assert set(report.resized) == {"pos_embed", "patch_embed.proj.weight"}
    text = str(report)
    assert "resized 14 x 14 to 6 x 10" in text
    assert "resized 3 to 1 image channels" in text
    assert "2 dropped (for 1000 classes; the model has 7): head.weight, head.bias" in text
    assert "2 missing (the file is for other classes: starts fresh): head.weight, head.bias" in text
    gray = torch.randn(1, 1, 96, 160)
    colour = blank("cait_xxs24_224", img_size=(96, 160), num_classes=0)
    transept.load_weights(colour, path)
    with torch.inference_mode():
        a, b = model.eval().forward_features(gray), colour.eval().forward_features(gray.expand(1, 3, 96, 160))
    assert torch.allclose(a, b, atol=1e-4)


def test_cabvit_tables_and_cat_encodings_follow_the_size(tmp_path: Path):
    for family, size in (("CabViT", 256), ("CAT", 448)):
        name = CLASSIFIERS[family][1]
        path = save(official(family), tmp_path / f"{family}.pth")
        options = {} if family == "CabViT" else {"pad": True}
        resized = blank(name, img_size=size, **options)
        report = transept.load_weights(resized, path)
        assert report.resized
        assert f"to {size} x {size}" in str(report) or "resized 56 x 56 to 112 x 112" in str(report)
        native = blank(name, **options)
        transept.load_weights(native, path)
        image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            assert torch.allclose(resized.eval()(image), native.eval()(image), atol=1e-4)


def test_wrong_models_are_recognised(tmp_path: Path):
    path = save(official("CrossFormer"), tmp_path / "weights.pth")
    for name in ("crossformer_small", "cat_tiny", "cait_xxs24_224"):
        with pytest.raises(transept.TranseptError, match=f"do not fit {name}; this looks like crossformer_tiny: "):
            transept.load_weights(build_skeleton(name), path)
    other = save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet.pth")
    assert identify(read_checkpoint(other)) is None
    with pytest.raises(transept.TranseptError, match="the model does not know conv1.weight; the file lacks ape"):
        transept.load_weights(build_skeleton("cat_tiny"), other)


def test_changed_names_are_errors_that_list_them(tmp_path: Path):
    state = official("XCiT")
    state["blocks.3.attn.extra"] = torch.zeros(3)
    del state["blocks.5.norm2.weight"]
    path = save(state, tmp_path / "changed.pth")
    model = blank("xcit_nano_12_p16_224")
    with pytest.raises(
        transept.TranseptError,
        match="the model does not know blocks.3.attn.extra; the file lacks blocks.5.norm2.weight; strict=False loads",
    ):
        transept.load_weights(model, path)
    report = transept.load_weights(model, path, strict=False)
    assert (report.unexpected, report.missing) == (["blocks.3.attn.extra"], ["blocks.5.norm2.weight"])
    assert "for no known reason" in str(report)

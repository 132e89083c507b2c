"""Files that other code bases wrote: read, computed with, named, and written back."""

import json
import lzma
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import transept
from tests.weights.ports.make import HERE, image
from transept.cli.main import main
from transept.models.backbone import Backbone
from transept.models.registry import build_skeleton, family_of
from transept.weights.catalogue.records import CHECKPOINTS
from transept.weights.convert import CONVERTERS, from_official, to_official
from transept.weights.convert.rules import entries_of, tensors_of
from transept.weights.convert.systems import unframed
from transept.weights.files.reading import Contents, read_checkpoint
from transept.weights.identify import identify
from transept.weights.load import find_checkpoint
from transept.weights.report import Reason

PORTS: Mapping[str, Any] = json.loads((HERE / "ports.json").read_text())


def stored(name: str, folder: Path) -> Path:
    """The file as its writer left it."""
    path = folder / name
    path.write_bytes(lzma.decompress((HERE / f"{name}.xz").read_bytes()))
    return path


def model_of(name: str) -> Backbone:
    note = PORTS[name]
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in note["options"].items()}
    return transept.create_model(note["model"], **{"num_classes": 5, **options}).eval()


@torch.inference_mode()
def error(name: str, model: Backbone, network: str = "logits") -> float:
    """The largest difference from the logits that the writer's own model gave, or another `network` in its file."""
    picture = torch.from_numpy(image(PORTS[name]["options"]["img_size"]))
    if PORTS[name]["writer"] == "RobustBench":  # its models take pixels
        mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
        picture = (picture - mean) / std
    return (model(picture) - torch.tensor(PORTS[name][network])).abs().max().item()


@pytest.mark.parametrize("name", sorted(PORTS.keys() - {"easycv_dino.pth"}))
@pytest.mark.filterwarnings("ignore:.*whose outputs differ somewhat")
def test_files_of_other_code_bases(name: str, tmp_path: Path):
    """Every tensor finds its place, and goes back to its name and layout; outputs are those of the writer's model."""
    path, model = stored(name, tmp_path), model_of(name)
    report = transept.load_weights(model, path)
    assert report.dialect == PORTS[name].get("dialect", PORTS[name]["writer"])
    harmless = (Reason.COMPUTED, Reason.PREPROCESSING)
    assert all(key.reason in harmless for key in report.keys if "dropped" in key.actions)
    family = family_of(model)
    assert family is not None
    theirs = tensors_of(unframed(entries_of(read_checkpoint(path).tensors)))
    back = from_official(model.state_dict(), family.name, report.dialect)
    assert back.keys() == theirs.keys() - set(report.dropped)
    assert all(torch.equal(back[key], theirs[key]) for key in back)
    if not name.startswith("mindcv"):
        assert error(name, model) < 3e-6


def test_a_normalization_inside_the_file_becomes_the_preprocessing(tmp_path: Path):
    """As RobustBench builds its models for CIFAR."""
    path, model = stored("robustbench_xcit.pth.tar", tmp_path), model_of("robustbench_xcit.pth.tar")
    report = transept.load_weights(model, path)
    assert report.dropped == ["normalize.mean", "normalize.std"]
    assert model.pretrained_cfg["mean"] == pytest.approx((0.5071, 0.4867, 0.4408))
    assert model.pretrained_cfg["std"] == pytest.approx((0.2675, 0.2565, 0.2761))
    assert transept.transforms_for(model).transforms[-1].mean == pytest.approx((0.5071, 0.4867, 0.4408))


@pytest.mark.parametrize(
    ("tag", "mean", "std"),
    [  # RobustBench 1.1.1 and the configs of its authors
        ("robust_eps4_in1k", (0, 0, 0), (1, 1, 1)),
        ("robust_eps8_in1k", (0, 0, 0), (1, 1, 1)),
        ("robust_flowers102", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("robust_cifar10", (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
        ("robust_cifar100", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    ],
)
def test_robust_models_see_what_they_were_trained_with(tag: str, mean: tuple[float, ...], std: tuple[float, ...]):
    preprocessing = find_checkpoint(f"xcit_small_12_p16.{tag}").preprocessing
    assert (preprocessing.mean, preprocessing.std, preprocessing.crop_pct) == (mean, std, 1)


@pytest.mark.parametrize("size", ["small_12_p16", "small_12_p8", "medium_24_p16", "medium_24_p8"])
def test_a_mirror_wants_the_pictures_of_what_it_mirrors(size: str):
    mirror, original = (find_checkpoint(f"xcit_{size}_224.{tag}") for tag in ("easycv_dino_in1k", "dino_in1k"))
    assert mirror.preprocessing == original.preprocessing


@pytest.mark.parametrize(
    ("frame", "beside"),
    [
        ("model.{}", {"normalize.mean": torch.zeros(1, 3, 1, 1), "normalize.std": torch.ones(1, 3, 1, 1)}),
        ("backbone.model.{}", {"head_0.fc_cls.weight": torch.zeros(10, 128), "head_0.fc_cls.bias": torch.zeros(10)}),
    ],
    ids=["RobustBench", "EasyCV"],
)
def test_frames_are_looked_through(frame: str, beside: dict[str, Tensor]):
    skeleton = build_skeleton("xcit_nano_12_p16_224").state_dict()
    state = {name: torch.zeros(value.shape) for name, value in skeleton.items() if "head" not in name}
    state = from_official(state, "XCiT", "timm")
    framed = {frame.format(name): value for name, value in state.items()} | beside
    identity = identify(Contents(tensors=framed, format="PyTorch"))
    assert identity is not None
    assert (identity.model, identity.dialect, identity.agreement) == ("xcit_nano_12_p16_224", "timm", 1)
    assert identity.num_classes == (10 if "head_0.fc_cls.bias" in beside else None)


def test_easycv_keeps_teacher_and_student_in_one(tmp_path: Path):
    name = "easycv_dino.pth"
    path, model = stored(name, tmp_path), model_of(name)
    report = transept.load_weights(model, path)
    assert report.wrappers == ("state_dict", "teacher", "student")
    assert error(name, model) < 3e-6
    assert {key.reason for key in report.keys if "dropped" in key.actions} == {Reason.BESIDE_BACKBONE}
    transept.load_weights(model, path, wrapper="student")
    assert error(name, model) > 0.1
    assert error(name, model, "student") < 3e-6


def test_the_teacher_of_vissl_lies_with_the_loss(tmp_path: Path):
    name = "vissl_xcit.torch"
    path, model = stored(name, tmp_path), model_of(name)
    report = transept.load_weights(model, path)
    assert report.wrappers == ("classy_state_dict.base_model.model.trunk", "teacher")
    assert error(name, model, "teacher") > 0.1
    assert transept.load_weights(model, path, wrapper="teacher").wrapper == "teacher"
    assert error(name, model, "teacher") < 3e-6


@pytest.mark.parametrize(
    ("name", "model"), [("cait", "cait_xxs24_224"), ("crossvit", "crossvit_9_240"), ("crossformer", "crossformer_tiny")]
)
def test_vit_pytorch_is_refused_by_name(name: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Its class token alone would fit, with strict=False."""
    path = stored(f"lucidrains_{name}.pt", tmp_path)
    for strict in (True, False):
        with pytest.raises(transept.TranseptError, match="is a model of vit-pytorch, which is built otherwise than"):
            transept.load_weights(build_skeleton(model), path, strict=strict)
    assert main(["convert", "--identify", str(path)]) == 1
    assert "is a model of vit-pytorch" in capsys.readouterr().err


def test_mindcv_computes_otherwise(tmp_path: Path):
    """With its GELU and its norms the outputs are MindCV's, so these are the differences that the warning names."""
    name = "mindcv_crossvit.ckpt"
    model = model_of(name)
    with pytest.warns(UserWarning, match="names of MindCV, .*: its GELU is the approximation by tanh, its norms"):
        transept.load_weights(model, stored(name, tmp_path))
    assert error(name, model) > 1e-4
    for inner, module in model.named_modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"
        if isinstance(module, nn.LayerNorm) and inner.rsplit(".", 1)[-1] in ("norm1", "norm2"):
            module.eps = 1e-7
    assert error(name, model) < 3e-6
    name = "mindcv_xcit.ckpt"
    model = model_of(name)
    with pytest.warns(UserWarning, match="names of MindCV, .*: it leaves out the norm of queries and keys"):
        transept.load_weights(model, stored(name, tmp_path))
    assert error(name, model) > 1e-3


def test_convert_says_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    name = "xcit_nano_12_p16_224"
    file = tmp_path / "mindcv.safetensors"
    save_file(from_official(transept.create_model(name).state_dict(), "XCiT", "MindCV"), file)
    assert main(["convert", "--identify", str(file)]) == 0
    assert re.search(r"names +MindCV\n +differs +it leaves out", capsys.readouterr().out)
    assert main(["convert", str(file), str(tmp_path / "ours.pth"), "--model", name]) == 0
    assert "MindCV differs: it leaves out" in capsys.readouterr().out


def test_a_port_of_the_same_computation_brings_no_warning(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transept.load_weights(model_of("keras_cait.weights.h5"), stored("keras_cait.weights.h5", tmp_path))


FULL = {"CaiT": "cait_xxs24_224", "CrossFormer": "crossformer_tiny", "XCiT": "xcit_nano_12_p16_224"} | {
    "CrossViT": "crossvit_9_240",
    "CAT": "cat_tiny",
}
DIALECTS = [(family, dialect.name) for family, converter in CONVERTERS.items() for dialect in converter.dialects]


@pytest.mark.parametrize(("family", "dialect"), DIALECTS)
def test_every_way_to_name_a_model_is_told_apart(family: str, dialect: str):
    """From names and shapes alone, and there and back without a loss."""
    state = {name: torch.zeros(value.shape) for name, value in build_skeleton(FULL[family]).state_dict().items()}
    written = from_official(state, family, dialect)
    form = "PaddlePaddle" if dialect in ("PASSL", "PaddleViT", "ppim") else "PyTorch"
    back = to_official(written, family, dialect)
    assert all(back[name].shape == state[name].shape for name in back)
    assert all(name.endswith("num_batches_tracked") for name in state.keys() - back.keys())
    identity = identify(Contents(tensors=written, format=form))
    assert identity is not None
    if dialect == "DINO's linear evaluation":  # of the names, only the classifier's are other ones
        assert written.keys() - state.keys() == {"linear.weight", "linear.bias"}
        return
    assert (identity.family, identity.dialect, identity.agreement) == (family, dialect, 1)
    assert FULL[family] in (identity.model, *identity.also)


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def self_supervised(model: nn.Module) -> dict[str, Tensor]:
    """A network of DINO's full checkpoint, as its training names it."""
    inner = {f"module.backbone.{name}": value for name, value in model.state_dict().items() if "head" not in name}
    return inner | {"module.head.mlp.0.weight": torch.zeros(4, 4), "module.head.last_layer.weight_v": torch.zeros(4, 4)}


def tiny() -> Backbone:
    return transept.create_model("xcit_nano_12_p16_224", num_classes=0, depth=2, embed_dim=32)


def test_dino_gives_teacher_student_and_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    networks = {"student": tiny(), "teacher": tiny()}
    content = {name: self_supervised(model) for name, model in networks.items()} | {"epoch": 300, "optimizer": {}}
    path = saved(content, tmp_path / "dino_xcit_pretrain_full_checkpoint.pth")
    for wrapper in (None, "teacher", "student"):
        model = tiny()
        report = transept.load_weights(model, path, wrapper=wrapper)
        assert (report.wrapper, report.wrappers) == (wrapper or "teacher", ("teacher", "student"))
        assert torch.equal(model.blocks[0].mlp.fc1.weight, networks[wrapper or "teacher"].blocks[0].mlp.fc1.weight)
        assert len(report.dropped) == 2
    linear = {"module.linear.weight": torch.randn(1000, 32), "module.linear.bias": torch.randn(1000)}
    path = saved({"epoch": 100, "state_dict": linear, "best_acc": 77.0}, tmp_path / "dino_xcit_linearweights.pth")
    model = transept.create_model("xcit_nano_12_p16_224", depth=2, embed_dim=32)
    with pytest.raises(transept.TranseptError, match="the file lacks cls_token.*strict=False loads what fits"):
        transept.load_weights(model, path)
    assert main(["convert", "--identify", str(path)]) == 1
    assert "is a classifier alone, as of DINO's evaluation; load its backbone first" in capsys.readouterr().err
    report = transept.load_weights(model, path, strict=False)
    assert report.taken == ["head.weight", "head.bias"]
    assert torch.equal(model.head.weight, linear["module.linear.weight"])


def test_vissl_keeps_the_backbone_in_the_trunk(tmp_path: Path):
    trained = tiny()
    model = {"trunk": trained.state_dict(), "heads": {"0.projection.weight": torch.zeros(2, 2)}}
    content = {"phase_idx": 250, "classy_state_dict": {"base_model": {"model": model, "meta": {}}, "losses": {}}}
    path = saved(content, tmp_path / "model_phase250.torch")
    loaded = tiny()
    assert transept.load_weights(loaded, path).wrapper == "classy_state_dict.base_model.model.trunk"
    assert torch.equal(loaded.blocks[1].attn.qkv.weight, trained.blocks[1].attn.qkv.weight)


def test_robust_models_have_the_stem_of_larger_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As timm builds them: four convolutions, the first two without stride."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    small = dict(embed_dim=32, num_heads=4)
    theirs: Any = timm.create_model("xcit_small_12_p16_224", depth=2, num_classes=10, **small).eval()
    for i in (0, 2):
        theirs.patch_embed.proj[i][0].stride = (1, 1)
    entry = find_checkpoint("xcit_small_12_p16.robust_cifar10")
    content = {"arch": "xcit_small_12_p16_224", "epoch": 1, "state_dict": theirs.state_dict()}
    saved(content, tmp_path / "hub" / "checkpoints" / entry.file)
    ours = transept.create_model(entry.name, pretrained=True, num_classes=10, depth=2, **small).eval()
    assert (ours.config.img_size, ours.pretrained_cfg["mean"]) == ((32, 32), (0.4914, 0.4822, 0.4465))
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    with pytest.raises(ValueError, match=r"stem_depth=3 must be at least 4 for patch_size=16"):
        replace(ours.config, patch_size=16, stem_depth=3)


def test_what_cannot_be_read_is_refused_by_name(capsys: pytest.CaptureFixture[str]):
    unreadable = [entry for entry in CHECKPOINTS if entry.unreadable]
    assert len(unreadable) == 11
    for entry in unreadable:
        with pytest.raises(transept.TranseptError) as refusal:
            transept.load_weights(tiny(), entry.name)
        assert str(refusal.value) == f"{entry.name} {entry.unreadable}"
        assert len(str(refusal.value)) <= 300
    assert main(["convert", "--identify", "cait_s24_224.sat_in1k"]) == 1
    assert "is a zipped folder of SwissArmyTransformer" in capsys.readouterr().err
    assert main(["info", "cait_s24_224"]) == 0
    assert "is a zipped folder of SwissArmyTransformer" in capsys.readouterr().out


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def other_type(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"Float32", b"Float99"))


def linked(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["layers/dense/vars/0"][...] = 0
        file["layers/dense/vars/2"] = h5py.ExternalLink("/etc/hostname", "/x")


def elsewhere(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.create_dataset("layers/dense/vars/2", (4,), "f4", external=[("/etc/hostname", 0, 16)])


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("mindcv_xcit.ckpt", cut, "truncated or damaged .it breaks off, or is something else, at byte"),
        ("mindcv_xcit.ckpt", other_type, "is no weights file; expected safetensors, .* MindSpore .* or Keras"),
        ("keras_cait.weights.h5", cut, "truncated or damaged"),
        ("keras_cait.weights.h5", linked, "truncated or damaged .layers/dense/vars/2 is a link"),
        ("keras_cait.weights.h5", elsewhere, "truncated or damaged .layers/dense/vars/2 lies in another file"),
    ],
)
def test_damaged_files(name: str, damage: Callable[[Path], None], words: str, tmp_path: Path):
    path = stored(name, tmp_path)
    path.chmod(0o600)
    damage(path)
    with pytest.raises(transept.TranseptError, match=words):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ("model.weights.h5", "is a whole Keras model; unzip it and give its model.weights.h5"),
        ("cait/1/mp_rank_00_model_states.pt", "is a zipped folder of SwissArmyTransformer, .*; take the official"),
        ("cait/saved_model.pb", "is a SavedModel of TensorFlow, a program and not weights; take the official"),
    ],
)
def test_archives_of_other_code_bases(inside: str, words: str, tmp_path: Path):
    path = tmp_path / "weights.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(inside, "something")
    with pytest.raises(transept.TranseptError, match=words):
        read_checkpoint(path)


def test_a_tensor_in_several_parts(tmp_path: Path):
    """As MindSpore writes what is larger than 512 MB."""
    path = stored("mindcv_xcit.ckpt", tmp_path)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(transept.TranseptError, match="comes in several parts, which is not read here"):
        read_checkpoint(path)


def test_without_h5py_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(transept.TranseptError, match=r"is an HDF5 file, .* 'h5py': pip install .*\[keras\]'"):
        read_checkpoint(stored("keras_cait.weights.h5", tmp_path))


def test_a_classifier_of_other_classes_is_said_to_start_fresh(tmp_path: Path):
    """Unless a number of classes was asked for, which a fresh one then serves."""
    name = "birder_cait_xxs24.pt"
    path, options = stored(name, tmp_path), PORTS[name]["options"]
    said = "is for 5 classes; the model has 1000, so that of cait_xxs24_224 starts fresh; num_classes=N takes its N"
    with pytest.warns(UserWarning, match=said):
        transept.create_model("cait_xxs24_224", weights=path, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transept.create_model("cait_xxs24_224", weights=path, num_classes=7, **options)

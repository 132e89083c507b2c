"""Names to models and weights; every message a user may meet."""

import http.server
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import transept
from transept.errors import TranseptError, UsageError
from transept.extras import install
from transept.weights.catalogue.records import CHECKPOINTS
from transept.weights.convert import from_official
from transept.weights.fetch.keeping import local_path
from transept.weights.files.reading import PUBLISHED
from transept.weights.files.writing import write_state_dict
from transept.weights.load import default_checkpoint

TINY = dict(depth=1, img_size=32, num_classes=5)


@pytest.mark.parametrize("ending", [*PUBLISHED, ".PTH"])
def test_files_of_others_are_files_and_no_names(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By their endings, wherever a file or a name may stand."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TranseptError, match=f"there is no weights file 'weights{ending}'"):
        transept.create_model("cait_xxs24_224", weights=f"weights{ending}", **TINY)
    Path(f"weights{ending}").write_bytes(b"anything")
    with pytest.raises(TranseptError, match="is a checkpoint, which does not say what its model is for"):
        transept.load(f"weights{ending}")


@pytest.fixture
def model() -> torch.nn.Module:
    return transept.create_model("cait_xxs24_224", **TINY)


def test_names():
    assert transept.list_models("cait_xxs24*") == ["cait_xxs24_224", "cait_xxs24_384"]
    assert len(transept.list_models("xcit*")) == 28
    ports = ["easycv_dist_in1k", "keras_dist_in1k", "paddlevit_dist_in1k", "ppim_dist_in1k", "sat_in1k"]
    tags = sorted([*ports, "tfhub_dist_in1k", "fb_dist_in1k", "passl_dist_in1k", "timm_fb_dist_in1k"])
    assert transept.list_models("cait_s24_224", tag=True) == [f"cait_s24_224.{tag}" for tag in tags]
    teachers = [checkpoint for checkpoint in CHECKPOINTS if checkpoint.task == "teacher"]
    assert len(transept.list_models(tag=True)) == len(CHECKPOINTS) - len(teachers)
    assert transept.create_model("xcit_nano_12_p16", depth=1).pretrained_cfg["architecture"] == "xcit_nano_12_p16_224"
    assert default_checkpoint("xcit_nano_12_p16").name == "xcit_nano_12_p16_224.fb_in1k"


def test_unknown_names_offer_the_nearest():
    with pytest.raises(
        UsageError, match=r"no model is called 'xcit_nanno_12_p16_224'; did you mean 'xcit_nano_12_p16_224'"
    ):
        transept.create_model("xcit_nanno_12_p16_224")
    with pytest.raises(UsageError, match="'transept models' lists them all"):
        transept.create_model("resnet50")
    with pytest.raises(UsageError, match="did you mean 'cait_s24_224.fb_dist_in1k'"):
        transept.create_model("cait_s24_224.fb_dst_in1k", depth=1)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoint_forms(model, tmp_path: Path, wrapper: str | None, prefix: str):
    state = {prefix + key: value for key, value in model.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "weights.pth")
    fresh = transept.create_model("cait_xxs24_224", weights=tmp_path / "weights.pth", **TINY)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in fresh.state_dict().items())


def test_moving_averages_of_torch(model, tmp_path: Path):
    """As torchvision's training script saves them: a counter beside names that all begin with "module."."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    torch.save({"model": model.state_dict(), "model_ema": average.state_dict()}, tmp_path / "w.pth")
    fresh = transept.create_model("cait_xxs24_224", **TINY)
    report = transept.load_weights(fresh, tmp_path / "w.pth", wrapper="model_ema")
    assert (report.prefix, report.skipped) == ("module.", ("n_averaged (a counter of training)",))
    assert torch.equal(fresh.cls_token, model.cls_token)
    assert not report.dropped + report.missing


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.uint16])
def test_numbers_of_another_kind_are_refused(model, tmp_path: Path, dtype: torch.dtype):
    """A table that is resized among them: nothing is computed of what is not taken."""
    before = model.head.weight.clone()
    other = transept.create_model("cait_xxs24_224", **(TINY | {"img_size": 64})).state_dict()
    save_file(
        other | {name: other[name].to(dtype) for name in ("head.weight", "pos_embed")}, tmp_path / "w.safetensors"
    )
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(
        TranseptError, match=f"pos_embed is {kind} in the file and float32 in the model; head.weight is"
    ):
        transept.load_weights(model, tmp_path / "w.safetensors", strict=False)
    assert torch.equal(model.head.weight, before)


def test_floats_of_any_width_are_taken(model, tmp_path: Path):
    kinds = (torch.float16, torch.float64, torch.float8_e4m3fn)
    state = {name: value.to(kinds[i % 3]) for i, (name, value) in enumerate(model.state_dict().items())}
    save_file(state, tmp_path / "w.safetensors")
    transept.load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(value, state[name].float()) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pickles_of_numpy_in_either_orientation(tmp_path: Path, dtype: torch.dtype):
    """PASSL turns matrices, detectron2 does not; the biases say which, and what has no sign is bfloat16 there."""
    name, options = "xcit_nano_12_p16_224", dict(depth=1, embed_dim=32, num_heads=2, img_size=32, num_classes=3)
    state = {key: value.to(dtype) for key, value in transept.create_model(name, **options).state_dict().items()}
    for file, turned in (("w.pkl", False), ("w.pdparams", True)):
        write_state_dict(tmp_path / "w.pdparams", from_official(state, "XCiT", "PASSL" if turned else "official"))
        (tmp_path / "w.pdparams").rename(tmp_path / file)
        fresh = transept.create_model(name, **options)
        report = transept.load_weights(fresh, tmp_path / file)
        assert bool(report.transposed) == turned
        assert report.dialect == ("PASSL" if turned else "official")
        for key, value in fresh.state_dict().items():
            assert key.endswith("num_batches_tracked") or torch.equal(value, state[key].float()), key


def test_safetensors_and_report(model, tmp_path: Path):
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    other = transept.create_model("cait_xxs24_224", depth=1, img_size=64, num_classes=3)
    head = other.head.weight.clone()
    report = transept.load_weights(other, tmp_path / "w.safetensors")
    assert (report.format, report.resized) == ("safetensors", ["pos_embed"])
    assert report.missing == ["head.weight", "head.bias"]
    assert torch.equal(other.head.weight, head)
    assert torch.equal(other.cls_token, model.cls_token)
    pyramid = transept.create_model("cait_xxs24_224", depth=1, img_size=32, features_only=True)
    report = transept.load_weights(pyramid, tmp_path / "w.safetensors")
    assert {key.partition(".")[0] for key in report.dropped} == {"cls_token", "blocks_token_only", "norm", "head"}
    assert {key.partition(".")[0] for key in report.missing} == {"fpn1", "fpn2"}


@pytest.mark.parametrize("name", ["cait_xxs24_224", pytest.param("xcit_nano_12_p16_224", marks=pytest.mark.slow)])
def test_many_misfits_are_a_short_sentence(tmp_path: Path, name: str):
    state = transept.create_model(name, depth=2).state_dict()
    other = transept.create_model(name, depth=2, embed_dim=64, num_heads=4)
    for broken in (
        state,
        {f"blocks.7.{key}": value for key, value in state.items()},
        {key: value for key, value in other.state_dict().items() if "blocks" not in key},
        {key: value.int() for key, value in other.state_dict().items()},
    ):
        torch.save(broken, tmp_path / "w.pth")
        with pytest.raises(TranseptError) as raised:
            transept.load_weights(other, tmp_path / "w.pth")
        assert len(str(raised.value).replace(str(tmp_path), "")) <= 300


def test_models_larger_than_this_machine_are_refused_before_they_are_made():
    for options in (dict(depth=900, embed_dim=16_384, num_heads=128), dict(num_classes=10**11)):
        start = time.process_time()
        with pytest.raises(transept.TranseptError, match="cait_xxs24_224: its parameters would take more than this"):
            transept.create_model("cait_xxs24_224", **options)
        assert time.process_time() - start < 5


def test_misfits_change_nothing(model, tmp_path: Path):
    other = transept.create_model("cait_xxs24_224", depth=2, img_size=32)
    torch.save(other.state_dict(), tmp_path / "deep.pth")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        transept.TranseptError, match="do not fit cait_xxs24_224: the model does not know blocks.1.gamma_1"
    ):
        transept.load_weights(model, tmp_path / "deep.pth")
    torch.save({"cls_token": torch.zeros(1, 1, 17)}, tmp_path / "odd.pth")
    with pytest.raises(transept.TranseptError, match=r"cls_token is \(1, 1, 17\) in the file and \(1, 1, 192\)"):
        transept.load_weights(model, tmp_path / "odd.pth", strict=False)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    torch.save({"cls_token": torch.ones(1, 1, 192)}, tmp_path / "part.pth")
    assert len(transept.load_weights(model, tmp_path / "part.pth", strict=False).missing) == len(before) - 1
    assert model.cls_token.eq(1).all()


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_unreadable_files(model, tmp_path: Path):
    torch.save({"model": model.state_dict(), "args": Hostile(tmp_path / "owned")}, tmp_path / "hostile.pth")
    torch.save(model.state_dict(), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    save_file(model.state_dict(), tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-100])
    (tmp_path / "empty.pth").touch()
    torch.save([1, 2], tmp_path / "list.pth")
    cases = {
        "hostile.pth": "holds a call of builtins.getattr, which no checkpoint needs; it was not run",
        "cut.pth": "is truncated or damaged",
        "cut.safetensors": "is truncated or damaged",
        "empty.pth": "is empty",
        "list.pth": "holds no state dict",
        "absent.pth": "there is no weights file",
    }
    for name, message in cases.items():
        with pytest.raises(transept.TranseptError, match=message):
            transept.load_weights(model, tmp_path / name)
    assert not (tmp_path / "owned").exists()


@pytest.fixture
def server(tmp_path: Path):
    (tmp_path / "www").mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_download_once(model, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    torch.save(model.state_dict(), tmp_path / "www" / "weights.pth")
    for _ in range(2):
        fresh = transept.create_model("cait_xxs24_224", weights=f"{server}/weights.pth", **TINY)
        assert torch.equal(fresh.cls_token, model.cls_token)
        (tmp_path / "www" / "weights.pth").unlink(missing_ok=True)
    kept = [file for file in (tmp_path / "hub" / "hub" / "checkpoints").iterdir() if not file.name.startswith(".")]
    assert kept == [local_path(f"{server}/weights.pth")]
    with pytest.raises(transept.TranseptError, match="could not download .*absent.pth .*404.*; fetch it by hand to"):
        transept.load_weights(model, f"{server}/absent.pth")


def test_public_names():
    assert sorted(transept.__all__) == [
        "AttentionMap", "Classifier", "Detector", "Recipe", "Segmenter", "TranseptError", "__version__",
        "attention_kinds", "attention_maps", "compile", "count", "create_detector", "create_model", "create_segmenter",
        "evaluate", "from_pretrained", "fuse", "list_models", "load", "load_package", "load_weights", "predict",
        "push_to_hub", "read_image", "save_pretrained", "train", "transforms_for",
    ]  # fmt: skip
    assert all(callable(getattr(transept, name)) for name in transept.__all__ if name != "__version__")
    with pytest.raises(AttributeError, match="no attribute 'creat_model'"):
        transept.creat_model  # noqa: B018


def test_everything_but_training_works_without_the_extras():
    """Modules above `train` must not need Lightning, so a base install labels pictures.

    timm was there first and is told what it lacks; the other order: tests/test_start_up.py. One process for both, since
    each takes seconds to start.
    """
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['lightning', 'torchmetrics', 'tensorboard'])); "
        "import importlib, timm, transept\n"
        "assert {'crossformer_small', 'cat_tiny', 'cabvit_h_l1'} <= set(timm.list_models())\n"
        "assert timm.create_model('xcit_nano_12_p16_224').__module__.startswith('timm')\n"
        "assert type(timm.create_model('crossformer_tiny')).__module__ == 'transept.models.crossformer'\n"
        "for verb in ('models', 'info', 'count', 'eval', 'predict'): importlib.import_module(f'transept.cli.{verb}')\n"
        "from transept.cli.main import main; sys.exit(main(['train', 'digits']))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 2, out.stderr
    assert out.stderr.splitlines()[-1] == f"transept: this needs the package 'lightning': {install('train')}"

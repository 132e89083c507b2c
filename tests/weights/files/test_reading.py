"""Checkpoints in every layout that is about, whole, cut, foreign and hostile."""

import argparse
import datetime
import functools
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import textwrap
import types
import zipfile
from collections import OrderedDict, defaultdict, deque
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from transept.errors import TranseptError, UsageError
from transept.weights.files import unpickling
from transept.weights.files.reading import Contents, read_checkpoint

FORMS = {
    "PyTorch": {},
    "PyTorch (before 1.6)": {"_use_new_zipfile_serialization": False},
}


def state(seed: int = 0, prefix: str = "") -> OrderedDict[str, torch.Tensor]:
    torch.manual_seed(seed)
    named = {
        "cls_token": torch.randn(1, 1, 6),
        "proj.weight": torch.randn(6, 3, 4, 4),
        "proj.bias": torch.randn(6, dtype=torch.float16),
        "norm.weight": torch.randn(6).bfloat16(),
        "norm.num_batches_tracked": torch.tensor(7),
        "turned": torch.randn(3, 5).T,
        "mask": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 3),
    }
    return OrderedDict((prefix + name, value) for name, value in named.items())


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


@pytest.fixture
def yacs():
    """Classes of modules that exist while the file is written, and no longer when it is read."""
    module = types.ModuleType("yacs.config")
    text = """
    import enum
    class CfgNode(dict):
        def __init__(self, items):
            super().__init__(items)
            self.__dict__["__immutable__"] = True
    class Steps(list): pass
    class Mode(enum.Enum): FAST = 1
    class Slotted: __slots__ = ("a",)
    """
    exec(textwrap.dedent(text), module.__dict__)
    sys.modules.update({"yacs": types.ModuleType("yacs"), "yacs.config": module})
    yield module
    for name in ("yacs", "yacs.config"):
        sys.modules.pop(name, None)


# Layouts


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_torch_files(tmp_path: Path, form: str, protocol: int):
    tensors = state()
    tensors["tied"] = tensors["cls_token"]
    tensors["parameter"] = torch.nn.Parameter(torch.randn(2))
    torch.save({"model": tensors, "epoch": 3}, tmp_path / "w.anything", pickle_protocol=protocol, **FORMS[form])
    contents = read_checkpoint(tmp_path / "w.anything")
    assert_same(contents.tensors, tensors)
    assert type(contents.tensors["parameter"]) is torch.Tensor
    assert (contents.format, contents.wrapper, contents.prefix, contents.skipped) == (form, "model", "", ())
    contents.tensors["cls_token"][:] = 5  # writable, still tied, and the file keeps its values
    assert contents.tensors["tied"].eq(5).all()
    assert_same(read_checkpoint(tmp_path / "w.anything").tensors, tensors)
    assert contents.tensors["cls_token"].untyped_storage().nbytes() == 24  # saving it again does not save the file


def test_safetensors(tmp_path: Path):
    tensors = {name: value.contiguous() for name, value in state(prefix="module.backbone.").items()}
    save_file(tensors, tmp_path / "w.pth", {"licence": "MIT"})  # recognised by content
    contents = read_checkpoint(tmp_path / "w.pth")
    names = sorted(state())  # the library's order
    assert_same(contents.tensors, {name: tensors[f"module.backbone.{name}"] for name in names})
    assert contents == Contents(
        tensors=contents.tensors, format="safetensors", prefix="module.backbone.", metadata={"licence": "MIT"}
    )
    assert all(value.is_contiguous() for value in contents.tensors.values())


@pytest.mark.parametrize("protocol", range(6))
def test_paddle_files(tmp_path: Path, protocol: int):
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "backbone.cls_token": rng.standard_normal((1, 1, 600)).astype("f4"),
        "backbone.half": rng.standard_normal(900).astype("f2"),
        "backbone.columns": np.asfortranarray(rng.standard_normal((40, 30))),
        "backbone.counts": np.arange(12).reshape(3, 4),
        "backbone.bfloat16": np.arange(5, dtype="u2"),
        "backbone.turned": rng.standard_normal((50, 40)).astype(">f4"),
        "backbone.scalar": np.array(3.5),
        "backbone.empty": np.zeros((0, 3)),
    }
    table = {"StructuredToParameterName@@": dict.fromkeys(arrays, "linear_0.w_0")}
    (tmp_path / "flat.pdparams").write_bytes(pickle.dumps({**arrays, **table}, protocol))
    training = {"epoch": 3, "state_dict": arrays, "optimizer": {"w_moment1": np.ones(3)}, "lr_scheduler": {"last": 1}}
    (tmp_path / "run.pdparams").write_bytes(pickle.dumps(training, protocol))
    for name, wrapper in (("flat", ""), ("run", "state_dict")):
        contents = read_checkpoint(tmp_path / f"{name}.pdparams")
        assert (contents.format, contents.wrapper, contents.prefix) == ("PaddlePaddle", wrapper, "backbone.")
        assert contents.skipped == ()
        for key, value in contents.tensors.items():
            wanted = arrays[f"backbone.{key}"]
            if wanted.dtype == np.uint16:  # as paddle.load reads it
                assert value.dtype == torch.bfloat16
                value = value.view(torch.uint16)
            assert np.array_equal(value.numpy(), wanted), key
            assert str(value.dtype).removeprefix("torch.") == wanted.dtype.name
            value.zero_()


def test_paddle_tensors_with_names(tmp_path: Path):
    """paddle.save of nested dicts writes a tensor as `tuple((name, array))`."""

    class Named:
        def __reduce__(self):
            return tuple, (("linear_0.w_0", np.arange(3.0)),)

    (tmp_path / "w.pdparams").write_bytes(pickle.dumps({"state_dict": {"w": Named()}}, 4))
    assert read_checkpoint(tmp_path / "w.pdparams").tensors["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_are_passed_over(tmp_path: Path, form: str, protocol: int, yacs):
    """CAT's, CrossFormer's and XCiT's training files, with classes that this process does not have."""
    slotted = yacs.Slotted()
    slotted.a = 1
    content = {
        "model": {"w": torch.arange(3.0), "steps": 3, "note": "x", "none": None, "best": np.float64(1)},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]},
        "max_accuracy": np.float64(81.5),
        "config": yacs.CfgNode({"MODEL": yacs.CfgNode({"DIM": 3})}),
        "args": argparse.Namespace(lr=1e-3, out=PurePosixPath("/x"), device=torch.device("cpu")),
        "amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 12}},
        "steps": yacs.Steps([1, 2]),
        "mode": yacs.Mode.FAST,
        "slotted": slotted,
        "queue": deque([1]),
        "log": defaultdict(list, a=[1]),
        "when": datetime.datetime(2021, 6, 11),
        "call": functools.partial(np.add, 1),
        "out": PurePosixPath("/x"),
        "kinds": {1, 2},
        "rng": np.random.RandomState(0).get_state(),
        "meta": {"cfg": yacs.CfgNode({})},
    }
    torch.save(content, tmp_path / "w.pth", pickle_protocol=protocol, **FORMS[form])
    for name in ("yacs", "yacs.config"):
        del sys.modules[name]
    contents = read_checkpoint(tmp_path / "w.pth")
    assert contents.tensors["w"].tolist() == [0, 1, 2]
    assert (contents.wrapper, len(contents.tensors)) == ("model", 1)
    assert contents.skipped == (
        "steps (int)",
        "note (text)",
        "none (NoneType)",
        "best (numpy scalar)",
        "max_accuracy (numpy scalar)",
        "config (yacs.config.CfgNode)",
        "args (argparse.Namespace)",
        "steps (yacs.config.Steps)",
        "mode (yacs.config.Mode)",
        "slotted (yacs.config.Slotted)",
        "queue (collections.deque)",
        "when (datetime.datetime)",
        "call (functools.partial)",
        "out (pathlib.PurePosixPath)",
        "meta.cfg (yacs.config.CfgNode)",
    )
    assert "yacs" not in sys.modules


def test_numpy_state_dict_in_a_torch_file(tmp_path: Path):
    torch.save({"a": np.arange(6.0).reshape(2, 3), "b": torch.ones(2)}, tmp_path / "w.pth")
    assert_same(
        read_checkpoint(tmp_path / "w.pth").tensors, {"a": torch.arange(6.0).double().view(2, 3), "b": torch.ones(2)}
    )


def test_long_lists_of_skipped_objects_are_cut(tmp_path: Path):
    torch.save(
        {"model": {"w": torch.ones(1)}, "runs": {str(i): argparse.Namespace() for i in range(50)}}, tmp_path / "w"
    )
    skipped = read_checkpoint(tmp_path / "w").skipped
    assert (len(skipped), skipped[0], skipped[-1]) == (21, "runs.0 (argparse.Namespace)", "30 more")


# Wrappers and prefixes


@pytest.mark.parametrize("form", FORMS)
def test_wrappers(tmp_path: Path, form: str):
    entries = {name: state(seed) for seed, name in enumerate(["student", "teacher", "model_ema"])}
    torch.save({**entries, "dino_loss": {"center": torch.ones(1)}}, tmp_path / "w.pth", **FORMS[form])
    contents = read_checkpoint(tmp_path / "w.pth")
    assert (contents.wrapper, contents.wrappers) == ("teacher", ("teacher", "student", "model_ema"))
    for name, tensors in entries.items():
        contents = read_checkpoint(tmp_path / "w.pth", wrapper=name)
        assert contents.wrapper == name
        assert_same(contents.tensors, tensors)
    with pytest.raises(
        UsageError,
        match="has no entry 'studnt' that holds weights; did you mean 'student'. it has: teacher, student, mod",
    ):
        read_checkpoint(tmp_path / "w.pth", wrapper="studnt")


@pytest.mark.parametrize(
    ("content", "wrapper", "wrappers"),
    [
        ({"model": state(), "model_ema": state(1)}, "model", ("model", "model_ema")),
        ({"state_dict": state(), "meta": {}}, "state_dict", ("state_dict",)),
        ({"module": state()}, "module", ("module",)),
        ({"network": state()}, "network", ("network",)),
        ({"model_ema": {"state_dict": state(), "decay": 0.9}}, "model_ema.state_dict", ("model_ema.state_dict",)),
        ({"model": None, "teacher": state()}, "teacher", ("teacher",)),
        ({"generator": state(), "optimizer": {"m": torch.ones(1)}}, "generator", ("generator",)),
        ({"model": state(), "generator": state(1)}, "model", ("model", "generator")),
        (state(), "", ()),
        ({**state(), "epoch": 3}, "", ()),
        (defaultdict(list, model=state()), "model", ("model",)),
    ],
)
def test_default_wrapper(tmp_path: Path, content: dict, wrapper: str, wrappers: tuple[str, ...]):
    torch.save(content, tmp_path / "w.pth")
    contents = read_checkpoint(tmp_path / "w.pth")
    assert (contents.wrapper, contents.wrappers) == (wrapper, wrappers)
    assert_same(contents.tensors, state())
    if wrapper:
        assert read_checkpoint(tmp_path / "w.pth", wrapper=wrapper.split(".")[0]).wrapper == wrapper


def test_wrappers_under_unusual_names_must_be_chosen(tmp_path: Path):
    torch.save({"encoder": state(), "decoder": state(1)}, tmp_path / "w.pth")
    with pytest.raises(
        TranseptError, match="several state dicts, none under a usual name; say with wrapper= .*: encoder, dec"
    ):
        read_checkpoint(tmp_path / "w.pth")
    assert_same(read_checkpoint(tmp_path / "w.pth", wrapper="decoder").tensors, state(1))
    torch.save(state(), tmp_path / "bare.pth")
    with pytest.raises(UsageError, match="no entry 'model' that holds weights; its tensors lie in no entry"):
        read_checkpoint(tmp_path / "bare.pth", wrapper="model")


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "backbone.", "module.backbone.", "module._orig_mod.model."]
)
def test_prefixes(tmp_path: Path, prefix: str):
    torch.save({"model": state(prefix=prefix)}, tmp_path / "w.pth")
    contents = read_checkpoint(tmp_path / "w.pth")
    assert contents.prefix == prefix
    assert_same(contents.tensors, state())


def test_prefixes_that_not_all_names_have_stay(tmp_path: Path):
    teacher = {**state(prefix="module.backbone."), "module.head.mlp.0.weight": torch.ones(2)}  # DINO
    torch.save({"teacher": teacher}, tmp_path / "w.pth")
    contents = read_checkpoint(tmp_path / "w.pth")
    assert (contents.prefix, "backbone.cls_token" in contents.tensors) == ("module.", True)
    assert "head.mlp.0.weight" in contents.tensors


def test_two_networks_of_passl(tmp_path: Path):
    arrays = {f"{who}.backbone.w": np.full(3, value) for value, who in enumerate(["Teacher", "Student"])}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps({"state_dict": arrays, "epoch": 1}, 4))
    contents = read_checkpoint(tmp_path / "w.pdparams")
    assert contents.wrappers == ("state_dict", "Student", "Teacher")
    assert (contents.prefix, contents.tensors["w"].tolist()) == ("Student.backbone.", [1, 1, 1])
    contents = read_checkpoint(tmp_path / "w.pdparams", wrapper="Teacher")
    assert (contents.wrapper, contents.prefix) == ("state_dict", "Teacher.backbone.")
    assert contents.tensors["w"].tolist() == [0, 0, 0]


def test_names_that_are_no_text(tmp_path: Path):
    torch.save({"model": {"w": torch.ones(1), 3: torch.ones(1), (1, (2,)): torch.ones(1)}}, tmp_path / "w.pth")
    contents = read_checkpoint(tmp_path / "w.pth")
    assert list(contents.tensors) == ["w"]
    assert contents.skipped[0] == "3 (its name is no text)"
    assert contents.skipped[1:] == ("? (its name is no text)",)


# Files that are something else


def make_zip(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


FOREIGN = {
    "empty": (b"", "is empty; fetch or save it again"),
    "page": (b"\n<!DOCTYPE html><html>Sign in", "is a web page, not weights; the link leads to a page about the file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a git-lfs pointer, not the weights"),
    "npz": (make_zip({"a.npy": b"x"}), r"is a numpy archive \(.npz\); save its arrays as"),
    "npy": (b"\x93NUMPY\1\0", "is one numpy array without a name"),
    "zip": (make_zip({"readme.txt": b"x"}), "is a zip archive, but not one of PyTorch"),
    "torchscript": (make_zip({"m/data.pkl": b"", "m/constants.pkl": b""}), "is a TorchScript program, not weights"),
    "onnx": (b"\x08\x07\x12\x07pytorch", "is an ONNX model"),
    "h5": (b"\x89HDF\r\n\x1a\n", "is truncated or damaged .Unable to .*open file"),
    "gz": (b"\x1f\x8b\x08\0", "is a gzip archive; unpack it"),
    "json": (b'{"weight_map": {}}', "is JSON text, not weights"),
    "tar": (b"storages".ljust(257, b"\0") + b"ustar\0", "is a tar archive"),
    "text": (b"hello, world\n" * 99, "is no weights file; expected safetensors, PyTorch .*, PaddlePaddle .* or Keras"),
    "noise": (bytes(range(255, 0, -1)) * 9, "is no weights file"),
    "list": (pickle.dumps([1, 2]), "holds no state dict: it is one list"),
    "figures": (pickle.dumps({"epoch": 3, "loss": 0.5}), "holds no state dict: its entries are epoch, loss; expected"),
    "nothing": (pickle.dumps({}), "holds no state dict: it is an empty dict"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files(tmp_path: Path, name: str):
    data, message = FOREIGN[name]
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(TranseptError, match=f"^'.*w.pth' {message}"):
        read_checkpoint(tmp_path / "w.pth")


def test_paths_that_are_no_files(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "link.pth").symlink_to(tmp_path / "gone.pth")
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    for path, message in (
        (tmp_path, "is a folder; give the weights file in it"),
        (tmp_path / "pipe.pth", "is a pipe or device, not a file"),
        (Path("/dev/zero"), "is a pipe or device, not a file"),
        (tmp_path / "link.pth", "is a link to nothing"),
        (tmp_path / "loop.pth", "is a link to nothing"),
        (tmp_path / "absent.pth", "there is no weights file '.*absent.pth'; give the path of a .safetensors"),
        (tmp_path / "a\0b.pth", "there is no weights file"),
        (tmp_path / ("a" * 999), "there is no weights file"),
    ):
        with pytest.raises(TranseptError, match=message):
            read_checkpoint(path)
    torch.save(state(), tmp_path / "real.pth")
    (tmp_path / "good.pth").symlink_to(tmp_path / "real.pth")
    assert_same(read_checkpoint(tmp_path / "good.pth").tensors, state())


def test_a_whole_model(tmp_path: Path):
    torch.save(torch.nn.Linear(2, 3), tmp_path / "w.pth")
    with pytest.raises(TranseptError, match=r"is a whole pickled model \(torch.nn.modules.linear.Linear\)"):
        read_checkpoint(tmp_path / "w.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"w": torch.ones(3)}))
    with pytest.raises(TranseptError, match=r"\(w: it was written by pickle.dump, where torch.save was needed\)"):
        read_checkpoint(tmp_path / "plain.pth")


# Damage


def samples(folder: Path) -> dict[str, bytes]:
    for form, options in FORMS.items():
        torch.save({"model": state(), "args": argparse.Namespace(a=1)}, folder / form, **options)
    save_file({name: value.contiguous() for name, value in state().items()}, folder / "safetensors")
    arrays = {"a": np.arange(900.0), "b": np.arange(3)}
    (folder / "Paddle 2").write_bytes(pickle.dumps(arrays, 2))
    (folder / "Paddle 4").write_bytes(pickle.dumps(arrays, 4))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_cut_anywhere(tmp_path: Path):
    for name, data in samples(tmp_path).items():
        path = tmp_path / ("cut.safetensors" if name == "safetensors" else "cut.pth")
        for end in {*range(0, len(data), max(1, len(data) // 150)), len(data) - 1}:
            path.write_bytes(data[:end])
            with pytest.raises(TranseptError, match=r"truncated or damaged|is empty|is no weights file"):
                read_checkpoint(path)


def test_bytes_changed_anywhere(tmp_path: Path):
    """A changed byte may go unseen (a weight has another value), but nothing other than our error comes of it."""
    rng, refused = np.random.default_rng(0), 0
    for data in samples(tmp_path).values():
        for _ in range(150):
            changed = bytearray(data)
            for place in rng.integers(0, min(len(data), 2500), 3):
                changed[place] = rng.integers(256)
            (tmp_path / "w.pth").write_bytes(changed)
            try:
                assert read_checkpoint(tmp_path / "w.pth").tensors
            except TranseptError:
                refused += 1
    assert refused > 100


# Files that want to harm


class Act:
    """Something whose pickle is a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call: tuple = (function, args)

    def __reduce__(self):
        return self.call


def written(name: str, *args: Any) -> bytes:
    """A pickle, by hand, that calls `name` on `args`."""
    module, _, function = name.rpartition(".")
    return pickle.PROTO + b"\2" + f"c{module}\n{function}\n".encode() + pickle.dumps(args, 2)[2:-1] + b"R."


def with_weights(call: bytes) -> bytes:
    """A file as of PaddlePaddle with good weights, that then makes a call."""
    good = pickle.dumps({"w": np.arange(3.0)}, 2)[:-1]
    return good + pickle.MARK + pickle.dumps("args", 2)[2:-1] + call.removeprefix(pickle.PROTO + b"\2")[:-1] + b"u."


def torch_zip(data: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    return make_zip({"archive/data.pkl": data, "archive/version": b"3\n"}, compression)


def torch_tensor(size: tuple, stride: tuple, count: int, offset: int = 0) -> bytes:
    """A zip file of torch.save with one tensor of 4 floats and any claim about them."""
    file = io.BytesIO()
    torch.save({"w": torch.ones(4)}, file)
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    number, start, *shapes = (pickle.dumps(claim, 2)[2:-1] for claim in (count, offset, size, stride))
    claim = number + b"tQ" + start + b"".join(shapes)
    entries[name], found = re.subn(
        rb"K\x04tq.QK\x00K\x04\x85q.K\x01\x85q.", lambda _: claim, entries[name], flags=re.DOTALL
    )
    assert found == 1
    return make_zip(entries)


def array(shape: Any, kind: str, data: Any) -> bytes:
    """A pickled array that claims `shape` and `kind`."""
    good = np.arange(3.0)
    function, args, state = good.__reduce__()
    claim = Act(function, *args)
    claim.call += ((state[0], shape, np.dtype(kind), False, data),)
    return pickle.dumps({"w": claim}, 4)


ACTING = [
    ("os.system", "touch {}"),
    ("posix.system", "touch {}"),
    ("nt.system", "touch {}"),
    ("os.path.join", "{}", "x"),
    ("subprocess.Popen", ["touch", "{}"]),
    ("subprocess.check_output", ["touch", "{}"]),
    ("sys.exit", 3),
    ("shutil.copy", "/etc/hostname", "{}"),
    ("socket.create_connection", ("127.0.0.1", 9)),
    ("builtins.eval", "open('{}', 'w')"),
    ("builtins.exec", "open('{}', 'w')"),
    ("__builtin__.execfile", "{}"),
    ("builtins.getattr", "{}", "x"),
    ("builtins.open", "{}", "w"),
    ("builtins.__import__", "os"),
    ("builtins.compile", "1", "", "eval"),
    ("builtins.map", "{}", []),
    ("importlib.import_module", "os"),
    ("runpy.run_path", "{}"),
    ("ctypes.CDLL", "{}"),
    ("pickle.loads", b"cos\nsystem\n"),
    ("_pickle.loads", b"x"),
    ("code.interact",),
    ("pty.spawn", "sh"),
    ("webbrowser.open", "file://{}"),
    ("operator.attrgetter", "system"),
    ("operator.methodcaller", "system"),
    ("functools.reduce", "x", []),
    ("types.FunctionType", "x"),
    ("io.open", "{}", "w"),
    ("codecs.open", "{}", "w"),
    ("pathlib.Path.touch", "{}"),
    ("tempfile.mkstemp", "{}"),
    ("multiprocessing.Process", "x"),
    ("timeit.timeit", "open('{}', 'w')"),
    ("cProfile.run", "open('{}', 'w')"),
    ("pip.main", ["install", "x"]),
    ("urllib.request.urlretrieve", "file:///etc/hostname", "{}"),
    ("torch.load", "{}"),
    ("torch.hub.load", "{}", "x"),
    ("torch.jit.load", "{}"),
    ("torch.utils.cpp_extension.load", "x", ["{}"]),
    ("torch.serialization.load", "{}"),
    ("numpy.load", "{}"),
    ("numpy.testing._private.utils.runstring", "open('{}', 'w')", {}),
    ("commands.getoutput", "touch {}"),
]


@pytest.mark.parametrize("form", ["zip", "legacy", "paddle", "bare"])
@pytest.mark.parametrize("call", ACTING, ids=[name for name, *_ in ACTING])
def test_calls_that_act(tmp_path: Path, call: tuple, form: str):
    canary = tmp_path / "canary"
    name, *args = call
    args = [arg.format(canary) if isinstance(arg, str) else arg for arg in args]
    data = written(name, *args)
    if form == "zip":
        data = torch_zip(with_weights(data))
    elif form == "legacy":
        head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        data = head + with_weights(data) + pickle.dumps([], 2)
    elif form == "paddle":
        data = with_weights(data)
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(TranseptError) as caught:
        read_checkpoint(tmp_path / "w.pth")
    shown = {"commands.getoutput": "subprocess.getoutput", "__builtin__.execfile": "builtins.execfile"}.get(name, name)
    assert str(caught.value) == (
        f"{str(tmp_path / 'w.pth')!r} holds a call of {shown}, which no checkpoint needs; it was not run and nothing "
        "was read: do not trust this file, and fetch the weights from their authors"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_calls_that_pickle_writes(tmp_path: Path):
    """The same through pickle itself, where nested classes and methods take other ways."""
    canary = tmp_path / "canary"
    for protocol in range(6):
        for act in (Act(os.system, f"touch {canary}"), Act(eval, "1"), Act(canary.touch), Act(Path.touch, canary)):
            (tmp_path / "w.pth").write_bytes(pickle.dumps({"w": np.arange(3.0), "x": act}, protocol))
            with pytest.raises(TranseptError, match="holds a call of .*; it was not run and nothing was read"):
                read_checkpoint(tmp_path / "w.pth")
            assert not canary.exists()


def test_an_unknown_function_is_named_and_not_run(tmp_path: Path, yacs):
    ran = []
    yacs.act = lambda: ran.append(1)
    yacs.act.__module__, yacs.act.__qualname__ = "yacs.config", "act"
    torch.save({"model": {"w": torch.ones(1)}, "x": Act(yacs.act)}, tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth").skipped == ("x (yacs.config.act)",)
    assert not ran


def memo_bomb() -> bytes:
    """Tuples of ten of the tuple before, forty times over."""
    layer = b"(" + b"h\0" * 10 + b"tq\0"
    return b"\x80\2" + b"Nq\0" + layer * 40


HARD = {
    "huge text": (b"\x80\4\x8d" + struct.pack("<Q", 2**62) + b"abc", "it breaks off at byte"),
    "huge bytes": (b"\x80\4\x8e" + struct.pack("<Q", 2**63) + b"abc", "it breaks off at byte"),
    "huge bytearray": (b"\x80\5\x96" + struct.pack("<Q", 2**40) + b"abc", "it breaks off at byte"),
    "negative length": (b"\x80\2T" + struct.pack("<i", -5) + b"abc", "it breaks off at byte"),
    "huge frame": (b"\x80\4\x95" + struct.pack("<Q", 2**63 - 1) + b"N.", "holds no state dict: it is one NoneType"),
    "huge memo index": (b"\x80\2Nr\xff\xff\xff\xff.", "holds no state dict: it is one NoneType"),
    "huge number": (b"\x80\2\x8b" + struct.pack("<i", 9000) + b"\xff" * 9000 + b".", "holds no state dict"),
    "deep lists": (b"\x80\2" + b"](" * 50_000 + b"e" * 50_000 + b".", "holds no state dict: it is one list"),
    "deep tuples": (b"\x80\2N" + b"\x85" * 100_000 + b".", "holds no state dict: it is one tuple"),
    "deep dicts": (
        b"\x80\2" + b"}U\1a" * 50_000 + b"N" + b"s" * 50_000 + b".",
        "holds no state dict: its entries are",
    ),
    "deep parameters": (
        b"\x80\2ctorch._utils\n_rebuild_parameter\nq\0"
        + b"0}U\1w"
        + b"h\0" * 50_000
        + b"N"
        + b"\x85R" * 50_000
        + b"s.",
        "holds no state dict: its entries are w",
    ),
    "laughs": (memo_bomb() + b".", "holds no state dict: it is one tuple"),
    "laughs as key": (memo_bomb() + b"q\1}h\1Ns.", "holds no state dict: its entries are"),
    "laughs as arguments": (
        b"\x80\2" + memo_bomb()[2:] + b"q\1cyacs\nNode\nh\1R.",
        "holds no state dict: it is one yacs.Node",
    ),
    "itself": (b"\x80\2]q\0h\0a.", "holds no state dict: it is one list"),
    "empty stack": (b"\x80\2R.", "not a pickle"),
    "no mark": (b"\x80\2t.", "not a pickle"),
    "unknown memo": (b"\x80\2h\7.", "not a pickle"),
    "odd entries": (b"\x80\2}(Nu.", "not a pickle"),
    "class whose name is no text": (b"\x80\4NN\x93.", "not a pickle"),
    "outside buffer": (b"\x80\5\x97.", "the instruction NEXT_BUFFER is for data outside the file"),
    "lying shape": (array((10**6, 10**6), "f8", b"1234567812345678"), "w: it claims the shape .*but has 16 bytes"),
    "negative shape": (array((-1, -2), "f8", b"1234567812345678"), "w: it claims the shape .*but has 16 bytes"),
    "shape of text": (array("ab", "f8", b"12345678"), "w: its shape is no row of numbers"),
    "number as bytes": (array((10**9,), "u1", 10**9), "w: it has no bytes"),
    "objects": (array((2,), "O", [1, 2]), "holds no state dict: its entries are w"),
    "structs": (array((2,), "i4,f4", b"1234567812345678"), "holds no state dict: its entries are w"),
    "zip bomb": (
        torch_zip(b"\0" * 10**7, compression=zipfile.ZIP_DEFLATED),
        "its entry 'archive/data.pkl' is compressed",
    ),
    "two pickles": (make_zip({"a/data.pkl": b"N.", "b/data.pkl": b"N."}), "it has no single data.pkl"),
    "size beyond storage": (torch_tensor((5,), (1,), 4), r"w: it claims the shape \(5,\), which is more than"),
    "stride beyond storage": (torch_tensor((4,), (9,), 4), r"w: it claims the shape \(4,\), which is more than"),
    "negative stride": (torch_tensor((4,), (-1,), 4), "w: it claims the impossible shape"),
    "offset beyond storage": (torch_tensor((4,), (1,), 4, 1), r"w: it claims the shape \(4,\), which is more than"),
    "negative offset": (torch_tensor((4,), (1,), 4, -1), "w: it claims the impossible shape"),
    "storage beyond file": (torch_tensor((99,), (1,), 99), "w: its storage '0' is cut short"),
    "negative storage": (torch_tensor((4,), (1,), -4), "w: its storage is of a kind that PyTorch does not have"),
    "endless repetition": (torch_tensor((2**40,), (0,), 4), "w: it claims the shape .*, which repeats 16 bytes"),
    "shape and stride apart": (torch_tensor((2, 2), (1,), 4), "w: it claims the impossible shape"),
    "huge size": (torch_tensor((2**62, 2**62), (1, 1), 4), "w: its shape is no row of numbers"),
    "terminal codes": (
        pickle.dumps({"\x1b[2J\x07evil" + "y" * 200: 1}),
        r"holds no state dict: its entries are \\u001b\[2J\\u0007evily+\.\.\.;",
    ),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.timeout(60)
def test_hard_files(tmp_path: Path, name: str):
    data, message = HARD[name]
    (tmp_path / "w.pdparams").write_bytes(data)
    with pytest.raises(TranseptError, match=message) as caught:
        read_checkpoint(tmp_path / "w.pdparams")
    assert str(caught.value).startswith(repr(str(tmp_path / "w.pdparams")))
    assert len(str(caught.value)) < 400 + len(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_one_byte(tmp_path: Path):
    (tmp_path / "w.pth").write_bytes(b"\x80")
    with pytest.raises(TranseptError, match="is truncated or damaged"):
        read_checkpoint(tmp_path / "w.pth")


def test_a_pickle_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One byte of a file can make a list or dict of a hundred: what was 1 GB would take all memory."""
    monkeypatch.setattr(unpickling, "MAX_INSTRUCTIONS", 5000)
    (tmp_path / "w.pth").write_bytes(b"\x80\2" + b"}" * 6000)
    with pytest.raises(TranseptError, match="it has more than 5000 instructions, far beyond any checkpoint"):
        read_checkpoint(tmp_path / "w.pth")


def test_lying_safetensors(tmp_path: Path):
    def file(header: bytes, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
        return struct.pack("<Q", len(header) if length is None else length) + header + data

    cases = {
        "length": file(b"{}", length=2**40),
        "text": file(b"{'w'"),
        "offsets": file(b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,999]}}'),
        "backwards": file(b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}'),
        "shape": file(b'{"w":{"dtype":"F32","shape":[5],"data_offsets":[0,16]}}'),
        "huge": file(b'{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}}'),
        "dtype": file(b'{"w":{"dtype":"X9","shape":[4],"data_offsets":[0,16]}}'),
        "hole": file(b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}'),
        "deep": file(b'{"w":' + b"[" * 100_000),
    }
    for name, data in cases.items():
        (tmp_path / "w.safetensors").write_bytes(data)
        with pytest.raises(TranseptError, match="w.safetensors' is truncated or damaged"):
            read_checkpoint(tmp_path / "w.safetensors")
        assert name


def test_plain_text_for_messages():
    assert unpickling.plain("a\x1b[31mb\nc") == r"a\u001b[31mb\nc"
    assert len(unpickling.plain("x" * 10**6)) == 80


# Memory


@pytest.mark.slow
def test_memory_is_at_most_twice_the_file(tmp_path: Path):
    big = {f"blocks.{i}.weight": torch.randn(1000, 2500) for i in range(10)}  # 100 MB
    for form, options in FORMS.items():
        torch.save({"model": big, "args": argparse.Namespace()}, tmp_path / form, **options)
    save_file(big, tmp_path / "safetensors")
    arrays = {name: value.numpy() for name, value in big.items()}
    for protocol in (2, 4, 5):
        (tmp_path / f"paddle{protocol}").write_bytes(pickle.dumps(arrays, protocol))
    (tmp_path / "single").write_bytes(pickle.dumps({"w": np.concatenate(list(arrays.values()))}, 2))
    code = """
    import os, resource, sys
    from pathlib import Path
    import torch
    from transept.weights.files.reading import read_checkpoint
    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for path in sorted(Path(sys.argv[1]).iterdir()):
        if not os.fork():
            before = peak()
            total = sum(value.sum().item() for value in read_checkpoint(path).tensors.values())
            print(path.name, (peak() - before) / path.stat().st_size, flush=True)
            os._exit(0)
        os.wait()
    """
    run = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    out = subprocess.run(run, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    times = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in out.stdout.splitlines()}
    assert len(times) == 7
    assert max(times.values()) < 2, times
    assert min(times.values()) > 0.5, times  # it did measure
    print(times)

"""Checkpoint files to state dicts: safetensors, PyTorch old and new, PaddlePaddle, MindSpore, Keras.

Nothing in a file is executed.
"""

import os
import stat
import struct
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from io import BufferedReader
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from transept.errors import TranseptError, UsageError
from transept.weights.files.keras import read_keras
from transept.weights.files.mindspore import is_mindspore, read_mindspore
from transept.weights.files.stored_tensors import StoredTensors, is_array, is_tensor, open_pickle, open_zip
from transept.weights.files.unpickling import ActingGlobalError, Call, Global, OddKey, Span, plain

StateDict = dict[str, Tensor]
PUBLISHED = (".pth", ".pt", ".ckpt", ".bin", ".tar", ".torch", ".pdparams", ".npz", ".h5")
"""Endings of the checkpoints that others publish. What is in a file is found by its contents, not by these."""
PICKLE = "PaddlePaddle"
"""The format of a pickle of NumPy arrays, which is how PaddlePaddle writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The tensors of a checkpoint file, and the choices made in reading it."""

    tensors: StateDict
    """By name, without the wrapper and the prefix. They are views of the file, copied when written to."""
    format: str
    """`safetensors`, `PyTorch`, `PyTorch (before 1.6)`, `PaddlePaddle`, `MindSpore` or `Keras`."""
    wrapper: str = ""
    """The entry of the file that held them, as `model` or `model_ema.state_dict`; empty where there is none."""
    prefix: str = ""
    """The beginning taken off every name, as `module.` or `Student.`."""
    wrappers: tuple[str, ...] = ()
    """All entries that would have served, the default one first."""
    skipped: tuple[str, ...] = ()
    """Objects that were not read, as `config (yacs.config.CfgNode)`."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The free text of a safetensors file."""


WRAPPERS = (  # in the order of preference: DINO's published features are the teacher's; XCiT's scores are of `model`
    "model",
    "state_dict",
    "module",
    "network",
    "teacher",
    "student",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "model_state_dict",
)
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "timm_model.", "_backbone.")
"""Prefixes of DataParallel, torch.compile, Lightning, the dense toolboxes and transformers' two wrappers of timm's
models; taken off where all names have them."""
_VISSL = ("classy_state_dict", "base_model", "model", "trunk")
"""Where VISSL keeps the backbone, beside the heads of training."""
_VISSL_TEACHER = "momentum_teacher.trunk.", "momentum_teacher.module.trunk."
"""How the names of the teacher's backbone begin, which VISSL's DINO keeps with its loss."""
_COUNTERS = ("n_averaged",)
"""Beside the weights in the state dict of torch's AveragedModel."""
_TWINS = ("Student", "Teacher")  # PASSL's distillation keeps two networks in one state dict
_EASYCV_TWINS = ("teacher", "student")  # and so does EasyCV's DINO, with parts of the student again beside them
_TRAINING_STATE = frozenset(
    "optimizer optimizers optimizer_states lr_scheduler lr_schedulers scheduler scaler grad_scaler loss_scaler amp "
    "meta args config epoch dino_loss center loss rng_state callbacks loops hyper_parameters criterion".split()
)
_MOST_NAMED = 20


def read_checkpoint(path: Path, wrapper: str | None = None) -> Contents:
    """The tensors of a checkpoint under their plain names, and an account of what else the file holds.

    The format is recognised by content. Other Python objects in the file (a yacs config, an argparse namespace, an
    optimiser) are passed over without being made. Of several state dicts in a file the first of `WRAPPERS` is taken,
    of PASSL's two networks the student. The tensors are views of the file where its format allows: writing to one
    leaves the file as it is, but overwriting the file in place (rather than replacing it) changes them.

    Args:
        wrapper: take this entry of the file instead, as `model_ema`, or PASSL's `Teacher`.

    Raises:
        UsageError: the file has no such `wrapper`, or is one of Keras and h5py is not installed.
        TranseptError: the file is missing, truncated, of another kind, holds no weights, or names a function that could
            act on the machine.
    """
    path = Path(path)
    check_is_file(path)
    try:
        with path.open("rb") as file:
            source = mmap(file.fileno(), 0, access=ACCESS_COPY)  # closes with the last tensor that is a view of it
            return _read(path, file, source, wrapper)
    except ActingGlobalError as error:
        raise TranseptError(
            f"{str(path)!r} holds a call of {error}, which no checkpoint needs; it was not run and nothing was read: "
            "do not trust this file, and fetch the weights from their authors"
        ) from error
    except OSError as error:
        raise TranseptError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (UnpicklingError, SafetensorError, zipfile.BadZipFile, NotImplementedError) as error:
        raise TranseptError(
            f"{str(path)!r} is truncated or damaged ({plain(error)}); fetch or save it again"
        ) from error


def check_is_file(path: Path) -> None:
    """A pipe would wait for ever, a device never end.

    Raises:
        TranseptError: there is nothing at `path`, or nothing that could hold weights.
    """
    try:
        status = path.stat()
    except (OSError, ValueError, RuntimeError) as error:
        if os.path.islink(path):  # noqa: PTH114  Path.is_symlink raises what stat did
            raise TranseptError(f"{str(path)!r} is a link to nothing; fetch the file it should lead to") from error
        raise TranseptError(
            f"there is no weights file {str(path)!r}; give the path of a .safetensors, .pth, .pt or .pdparams file"
        ) from error
    if stat.S_ISDIR(status.st_mode):
        raise TranseptError(f"{str(path)!r} is a folder; give the weights file in it")
    if not stat.S_ISREG(status.st_mode):
        raise TranseptError(f"{str(path)!r} is a pipe or device, not a file; save its content to a file first")
    if not status.st_size:
        raise TranseptError(f"{str(path)!r} is empty; fetch or save it again")


_FOREIGN = (  # what is often saved or renamed to a weights file by mistake: first bytes, and what to say
    (b"version https://git-lfs", "is a git-lfs pointer, not the weights themselves; run 'git lfs pull' beside it"),
    (b"<", "is a web page, not weights; the link leads to a page about the file: fetch the file itself"),
    (b"\x1f\x8b", "is a gzip archive; unpack it and give the file inside"),
    (b"BZh", "is a bzip2 archive; unpack it and give the file inside"),
    (b"\xfd7zXZ", "is an xz archive; unpack it and give the file inside"),
    (b"7z\xbc\xaf", "is a 7z archive; unpack it and give the file inside"),
    (b"Rar!", "is a rar archive; unpack it and give the file inside"),
    (b"\x93NUMPY", "is one numpy array without a name, not a state dict"),
    (b"{", "is JSON text, not weights; give the weights file that it describes"),
)


def _read(path: Path, file: BufferedReader, source: mmap, wrapper: str | None) -> Contents:
    head = source[:512]
    if _is_safetensors(head):
        return _read_safetensors(path, wrapper)
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return _read_zip(path, file, source, wrapper)
    if head.startswith(b"\x89HDF"):
        return _choose(path, "Keras", read_keras(path), None, wrapper)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for first, what in _FOREIGN:
        if start.startswith(first):
            raise TranseptError(f"{str(path)!r} {what}")
    if head[257:262] == b"ustar":
        raise TranseptError(f"{str(path)!r} is a tar archive; unpack it and give the file inside")
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and head[2:3] == b"\x12"):
        raise TranseptError(f"{str(path)!r} is an ONNX model; give the checkpoint it was exported from")
    if head[:1] == b"\n" and is_mindspore(source):
        return _choose(path, "MindSpore", read_mindspore(source), None, wrapper)
    if path.suffix == ".safetensors" and head[:1] != b"\x80":  # damaged: let safetensors say how
        return _read_safetensors(path, wrapper)
    try:
        content, tensors, legacy = open_pickle(source, file)
    except UnpicklingError:
        if head[:1] == b"\x80" and head[1:2] <= b"\x05":
            raise
        raise TranseptError(
            f"{str(path)!r} is no weights file; expected safetensors, PyTorch (.pth), PaddlePaddle "
            "(.pdparams), MindSpore (.ckpt) or Keras (.weights.h5)"
        ) from None
    return _choose(path, "PyTorch (before 1.6)" if legacy else PICKLE, content, tensors, wrapper)


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000


def _read_safetensors(path: Path, wrapper: str | None) -> Contents:
    with safe_open(path, framework="pt") as file:
        content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
        return _choose(path, "safetensors", content, None, wrapper, file.metadata())


def _read_zip(path: Path, file: BufferedReader, source: mmap, wrapper: str | None) -> Contents:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, OverflowError, EOFError, IndexError, struct.error) as error:
        raise zipfile.BadZipFile("the table of contents at its end is missing or damaged") from error
    with archive:
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise TranseptError(
                f"{str(path)!r} is a TorchScript program, not weights; load it with torch.jit.load where you trust it, "
                "and save its state_dict()"
            )
        if names and all(name.endswith(".npy") for name in names):
            raise TranseptError(f"{str(path)!r} is a numpy archive (.npz); save its arrays as a .safetensors file")
        if "model.weights.h5" in names:
            raise TranseptError(f"{str(path)!r} is a whole Keras model; unzip it and give its model.weights.h5")
        if any(name.endswith("mp_rank_00_model_states.pt") for name in names):
            raise TranseptError(
                f"{str(path)!r} is a zipped folder of SwissArmyTransformer, whose names are none that are known here; "
                "take the official weights"
            )
        if any(name.endswith("saved_model.pb") for name in names):
            raise TranseptError(
                f"{str(path)!r} is a SavedModel of TensorFlow, a program and not weights; take the official weights"
            )
        if not any(name.endswith("data.pkl") for name in names):
            raise TranseptError(f"{str(path)!r} is a zip archive, but not one of PyTorch; unpack it and look inside")
        content, tensors = open_zip(source, file, archive)
    return _choose(path, "PyTorch", content, tensors, wrapper)


def _choose(
    path: Path,
    form: str,
    content: Any,
    stored: StoredTensors | None,
    wanted: str | None,
    metadata: Mapping[str, str] | None = None,
) -> Contents:
    """Find the state dict in `content`, make its tensors, and name what is left."""
    dicts = _state_dicts(content)
    if not dicts:
        raise TranseptError(f"{str(path)!r} {_instead(content)}")
    wrapper, network = _pick(path, dicts, wanted)
    entries, odd = _named(dicts[wrapper], network)
    tensors: StateDict = {}
    for name, value in entries.items():
        if name.rpartition(".")[2] in _COUNTERS:
            odd.append(f"{plain(name)} (a counter of training)")
        elif isinstance(value, Tensor):
            tensors[name] = value
        elif stored is not None and is_tensor(value):
            try:
                tensors[name] = _as_meant(stored.build(value), form)
            except UnpicklingError as error:
                raise UnpicklingError(f"{plain(name)}: {error}") from error
        elif name != "StructuredToParameterName@@":  # Paddle's own table of names
            odd.append(f"{plain(name)} ({_kind(value)})")
    prefix = _common_prefix(tensors, network)
    if wrapper:
        odd += [text for text in _objects(content, dicts[wrapper]) if text not in odd]
    return Contents(
        tensors={name.removeprefix(prefix): value for name, value in tensors.items()},
        format=form,
        wrapper=wrapper,
        prefix=prefix,
        wrappers=(*filter(None, dicts), *_networks(dicts[wrapper])),
        skipped=tuple(odd if len(odd) <= _MOST_NAMED else [*odd[:_MOST_NAMED], f"{len(odd) - _MOST_NAMED} more"]),
        metadata=metadata or {},
    )


def _as_meant(tensor: Tensor, form: str) -> Tensor:
    """NumPy has no bfloat16: in its pickles Paddle and others keep the bits as integers without a sign."""
    return tensor.view(torch.bfloat16) if form == PICKLE and tensor.dtype == torch.uint16 else tensor


def _state_dicts(content: Any) -> dict[str, dict[Any, Any]]:
    """All state dicts of a file by the entry that holds them, the preferred one first; "" where the file is one."""
    top = _mapping(content)
    dicts: dict[str, dict[Any, Any]] = {}
    trunk = top
    for name in _VISSL:
        trunk = _mapping(trunk.get(name))
    if _holds_weights(trunk):
        dicts[".".join(_VISSL)] = trunk
        loss = _mapping(_mapping(top.get(_VISSL[0])).get("loss"))
        teacher = {
            name.removeprefix(start): value
            for start in _VISSL_TEACHER
            for name, value in loss.items()
            if isinstance(name, str) and name.startswith(start)
        }
        if _holds_weights(teacher):
            dicts["teacher"] = teacher
    for name in WRAPPERS:
        inner = _mapping(top.get(name))
        if _holds_weights(inner):
            dicts[name] = inner
            continue
        for second in WRAPPERS:
            if _holds_weights(nested := _mapping(inner.get(second))):
                dicts[f"{name}.{second}"] = nested
                break
    if not dicts and _holds_weights(top):
        return {"": top}
    for name, value in top.items():
        if isinstance(name, str) and name not in _TRAINING_STATE and name not in WRAPPERS:
            inner = value.entries if isinstance(value, Call) else value
            if isinstance(inner, dict) and _holds_weights(inner):
                dicts[name] = inner
    return dicts


def _mapping(value: Any) -> dict[Any, Any]:
    """The entries of a dict or of an object like it; none where it is something else."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, Call):
        return {}
    if value.entries or str(value.function) != "collections.OrderedDict" or not value.args:
        return value.entries
    pairs = value.args[0]  # Python 2 wrote OrderedDict([[key, value], ...])
    pairs = (
        [pair for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2] if isinstance(pairs, list) else []
    )
    return {key: item for key, item in pairs if isinstance(key, str)}


def _holds_weights(entries: dict[Any, Any]) -> bool:
    return any(isinstance(name, str) and _is_weight(value) for name, value in entries.items())


def _is_weight(value: Any) -> bool:
    return isinstance(value, Tensor) or is_tensor(value)


def _pick(path: Path, dicts: Mapping[str, dict[Any, Any]], wanted: str | None) -> tuple[str, str]:
    """The entry to take, and which of PASSL's two networks in it ("" where it has one)."""
    default = next(iter(dicts))
    networks = _networks(dicts[default])
    names = [*filter(None, dicts), *networks]
    if not wanted:
        if default not in ("", *WRAPPERS) and "." not in default and len(dicts) > 1:
            raise TranseptError(
                f"{str(path)!r} holds several state dicts, none under a usual name; "
                f"say with wrapper= which to take: {', '.join(map(plain, names))}"
            )
        return default, networks[0] if networks else ""
    if wanted in networks:
        return default, wanted
    for name in dicts:
        if name and wanted in (name, name.split(".")[0]):
            inner = _networks(dicts[name])
            return name, inner[0] if inner else ""
    near = get_close_matches(wanted, names, n=1)
    advice = f"did you mean {plain(near[0])!r}? " if near else ""
    advice += f"it has: {', '.join(map(plain, names))}" if names else "its tensors lie in no entry: leave wrapper= away"
    raise UsageError(f"{str(path)!r} has no entry {wanted!r} that holds weights; {advice}")


def _networks(entries: dict[Any, Any]) -> tuple[str, ...]:
    """The networks that a distillation saved together, the one first that its authors use."""
    owners = {name.partition(".")[0] for name, value in entries.items() if isinstance(name, str) and _is_weight(value)}
    if owners.issuperset(_EASYCV_TWINS) and owners.issubset((*_EASYCV_TWINS, "backbone", "tneck")):
        return _EASYCV_TWINS
    return tuple(name for name in _TWINS if name in owners) if owners.issubset(_TWINS) else ()


def _named(entries: dict[Any, Any], network: str) -> tuple[dict[str, Any], list[str]]:
    """The entries whose names are text (of one network where there are two), and a word on each other one."""
    named = {name: value for name, value in entries.items() if isinstance(name, str)}
    others = [name for name in entries if not isinstance(name, str)]
    odd = [f"{'?' if isinstance(name, OddKey) else plain(name)} (its name is no text)" for name in others]
    if network:
        named = {name: value for name, value in named.items() if name.startswith(f"{network}.")}
    return named, odd


def _common_prefix(names: Iterable[str], network: str) -> str:
    """The beginning that all names share, of the prefixes that wrappers of models put there."""
    prefix = f"{network}." if network else ""
    while more := next((more for more in PREFIXES if all(name.startswith(prefix + more) for name in names)), ""):
        prefix += more
    return prefix


def _kind(value: Any) -> str:
    """A word on something that is no tensor."""
    if isinstance(value, Global):
        return plain(value)
    if not isinstance(value, Call):
        return "text" if isinstance(value, str | Span) else type(value).__name__
    if is_array(value):
        return "numpy array"
    if str(value.function).endswith("core.multiarray.scalar"):
        return "numpy scalar"
    made = value.function
    if str(made) in ("copyreg._reconstructor", "copyreg.__newobj__") and isinstance(value.args, tuple) and value.args:
        made = value.args[0]
    return plain(made) if isinstance(made, Global) else "object"


def _objects(content: Any, chosen: dict[Any, Any]) -> Iterator[str]:
    """`args (argparse.Namespace)` for the outermost objects in the file, outside of the `chosen` state dict."""
    waiting, seen = deque([("", content, 0)]), {id(chosen)}
    for _ in range(10_000):  # a file can nest without end
        if not waiting:
            return
        name, value, depth = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict) or (isinstance(value, Call) and str(value.function) in _DICTS):
            entries = _mapping(value)
            if depth < 4 and entries is not chosen:
                named = ((plain(key) if isinstance(key, str | int) else "?", item) for key, item in entries.items())
                waiting += [(f"{name}.{key}" if name else key, item, depth + 1) for key, item in named]
        elif isinstance(value, list | tuple):
            waiting += [(name, item, depth + 1) for item in value] if depth < 4 else []
        elif isinstance(value, Call | Global) and not _is_weight(value) and not is_array(value):
            function = value.function if isinstance(value, Call) else value
            if not isinstance(function, Global) or function.module not in ("torch", "builtins", "_codecs"):
                yield f"{name} ({_kind(value)})"


_DICTS = ("collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict")


def _instead(content: Any) -> str:
    """The content of a file without weights, in words."""
    for value in (content, *(_mapping(content).get(name) for name in WRAPPERS)):
        if isinstance(value, Call) and "_modules" in _mapping(value.state):
            return (
                f"is a whole pickled model ({_kind(value)}), which only its own code can load; "
                "load it there and save its state_dict()"
            )
    entries = _mapping(content)
    if entries:
        names = ", ".join(plain(name) if isinstance(name, str) else "?" for name in list(entries)[:6])
        what = f"its entries are {names}{', ...' if len(entries) > 6 else ''}"
    else:
        what = f"it is one {_kind(content)}" if not isinstance(content, dict) else "it is an empty dict"
    return f"holds no state dict: {what}; expected names and tensors, alone or under 'model' or 'state_dict'"

"""Files to state dicts. Nothing in a file is ever executed."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from transept.errors import TranseptError

StateDict = dict[str, Tensor]


def read_state_dict(path: Path) -> tuple[StateDict, str]:
    """The tensors of a checkpoint under their plain names, and a word on the format found.

    Takes safetensors and PyTorch files. Of the latter only tensors and plain containers are read; a `model` or
    `state_dict` wrapper and a `module.` prefix are taken off.

    Raises:
        TranseptError: the file is missing, truncated, of another kind, or holds Python objects.
    """
    if not path.is_file():
        raise TranseptError(
            f"there is no weights file {str(path)!r}; give the path of a .safetensors, .pth or .pt file"
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path), "safetensors"
        except (SafetensorError, OSError) as error:
            raise TranseptError(
                f"{str(path)!r} is no whole safetensors file ({error}); fetch or save it again"
            ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise TranseptError(
            f"{str(path)!r} holds Python objects beside tensors, or is no PyTorch file; it was not opened, because "
            "reading such objects runs code: save its state dict alone"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise TranseptError(f"{str(path)!r} is truncated or no PyTorch file; fetch or save it again") from error
    return _unwrap(content, path)


def _unwrap(content: Any, path: Path) -> tuple[StateDict, str]:
    form = "PyTorch"
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content, form = content[wrapper], f"PyTorch, under {wrapper!r}"
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise TranseptError(f"{str(path)!r} holds no state dict; expected names and tensors, alone or under 'model'")
    prefix = "module."
    if content and all(key.startswith(prefix) for key in content):
        return {key.removeprefix(prefix): value for key, value in content.items()}, f"{form}, prefix {prefix!r}"
    return dict(content), form


def cached(file: str) -> Path:
    """Where the hub cache directory keeps a published file."""
    return Path(torch.hub.get_dir()) / "checkpoints" / file


def fetch(url: str, file: str | None = None) -> Path:
    """The local copy of a published file, downloaded into the hub cache directory (as `file`) on first use."""
    path = cached(file or url.rsplit("/", 1)[-1])
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path))
        except (URLError, OSError) as error:
            raise TranseptError(f"could not download {url} ({error}); fetch it by hand to {str(path)!r}") from error
    return path

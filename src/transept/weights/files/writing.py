"""State dicts to files, in the layout that each code base reads. Written atomically."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from transept.errors import UsageError
from transept.files import write_atomically
from transept.weights.convert.rules import StateDict

SUFFIXES = (".safetensors", ".pth", ".pt", ".pdparams")


def write_state_dict(
    path: Path, state: StateDict, *, prefix: str = "", metadata: Mapping[str, str] | None = None
) -> None:
    """A file of the kind that its suffix says.

    `.pth` and `.pt` hold the state dict under `model`, each name behind `prefix`: what the authors' loaders expect.
    `.pdparams` is a pickle of NumPy arrays, as PaddlePaddle reads it.

    Raises:
        UsageError: another suffix.
        TranseptError: the file cannot be written; what was there before is as it was.
    """
    check_suffix(path)
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    if path.suffix == ".safetensors":
        # Tensors that share memory (views of one) are refused by safetensors.
        copies = {name: value.clone() if _shares(value) else value for name, value in state.items()}
        write_atomically(path, lambda temporary: save_file(copies, temporary, {"format": "pt", **(metadata or {})}))
    elif path.suffix == ".pdparams":
        arrays = {name: _array(value) for name, value in state.items()}
        write_atomically(path, lambda temporary: temporary.write_bytes(pickle.dumps(arrays, protocol=4)))
    else:
        content = {"model": {prefix + name: value for name, value in state.items()}}
        write_atomically(path, lambda temporary: torch.save(content, temporary))


def check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{str(path)!r}: give a name that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")


def _array(value: Tensor) -> Any:
    """NumPy has no bfloat16; Paddle writes its bits as integers."""
    return (value.view(torch.uint16) if value.dtype == torch.bfloat16 else value).numpy()


def _shares(value: Tensor) -> bool:
    return value.untyped_storage().nbytes() != value.numel() * value.element_size()

"""Weights of Keras: groups of an HDF5 file, each with the name of its layer and its arrays in order."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transept.errors import UsageError
from transept.extras import install


def read_keras(path: Path) -> dict[str, Tensor]:
    """The arrays as `LAYER.0`, `LAYER.1`, ...; what hangs below a layer without a name of its own, by its path.

    Raises:
        UsageError: h5py is not installed.
        UnpicklingError: it is damaged, or leads to other files.
    """
    try:
        import h5py  # of the extra `keras`
    except ImportError as error:
        raise UsageError(
            f"{str(path)!r} is an HDF5 file, as of Keras, and needs the package 'h5py': {install('keras')}"
        ) from error
    tensors: dict[str, Tensor] = {}

    def walk(group: Any, place: str) -> None:
        name = group.attrs.get("name", place.removesuffix("/vars"))
        for key in group:
            # A link may lead out of the file, and a data set keep its numbers elsewhere.
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise UnpicklingError(f"{place}/{key} is a link")
            item = group[key]
            if isinstance(item, h5py.Group):
                walk(item, f"{place}/{key}" if place else key)
            elif key.isdecimal():
                if item.is_virtual or item.external:
                    raise UnpicklingError(f"{place}/{key} lies in another file")
                tensors[f"{name}.{key}"] = torch.from_numpy(np.array(item))

    try:
        with h5py.File(path) as file:
            walk(file, "")
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise UnpicklingError(str(error)) from error
    return tensors

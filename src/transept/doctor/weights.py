"""Weights and images that are the same on every machine: what the official models' outputs were recorded with.

They come of NumPy's legacy `RandomState`, whose streams are frozen across releases.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np


def tensor_for(key: str, shape: Sequence[int]) -> np.ndarray:
    """The float32 array that a checkpoint's key of this shape holds; depends on nothing else."""
    return _drawn(key, tuple(shape))


@lru_cache(maxsize=512)  # one model's: drawing them takes longer than running it, and the next case is often its own
def _drawn(key: str, shape: tuple[int, ...]) -> np.ndarray:
    draw = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("running_var"):
        value = 1.0 + 0.2 * np.abs(draw)
    elif key.endswith("running_mean"):
        value = 0.1 * draw
    elif len(shape) <= 1:
        value = 0.05 * draw if key.endswith("bias") else 1.0 + 0.1 * draw
    else:
        value = draw / math.sqrt(math.prod(shape[1:]))
    return np.asarray(value, dtype=np.float32)


def state_dict_for(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """An array for each floating-point entry."""
    return {key: tensor_for(key, shape) for key, shape in shapes.items()}


def image_for(seed: int, shape: Sequence[int]) -> np.ndarray:
    """A float32 batch `b 3 H W` of normalised "images"."""
    return np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32)


def sample(array: np.ndarray, count: int = 64) -> list[float]:
    """`count` evenly spaced values of the flattened array, as plain floats."""
    flat = np.asarray(array, dtype=np.float64).ravel()
    picks = np.linspace(0, flat.size - 1, min(count, flat.size)).round().astype(int)
    return [float(f"{flat[i]:.8g}") for i in picks]

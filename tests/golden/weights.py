"""Deterministic weights and images for reference outputs: same numbers on every machine.

Every figure under this folder was computed with weights from `state_dict_for` and images from
`image_for`.  NumPy's legacy `RandomState` is used because its streams are frozen across releases.
"""

import math
import zlib
from functools import lru_cache

import numpy as np


def tensor_for(key: str, shape) -> np.ndarray:
    """The float32 array that a checkpoint key of this shape holds; depends on nothing else."""
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


def state_dict_for(float_shapes: dict) -> dict:
    """Arrays for every floating-point entry, `{key: shape}` in, `{key: array}` out."""
    return {key: tensor_for(key, shape) for key, shape in float_shapes.items()}


def image_for(seed: int, shape) -> np.ndarray:
    """A float32 batch of already normalised 'images' (N, C, H, W)."""
    return np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32)


def sample(array, count: int = 64) -> list:
    """`count` evenly spaced values of the flattened array, as plain floats."""
    flat = np.asarray(array, dtype=np.float64).ravel()
    picks = np.linspace(0, flat.size - 1, min(count, flat.size)).round().astype(int)
    return [float(f"{flat[i]:.8g}") for i in picks]


def summary(array) -> dict:
    """Shape, mean, standard deviation and 64 samples of an output."""
    array = np.asarray(array, dtype=np.float64)
    return {
        "shape": list(array.shape),
        "mean": float(f"{array.mean():.8g}"),
        "std": float(f"{array.std():.8g}"),
        "sample": sample(array),
    }

"""What was drawn for the recordings of the official models, and how their outputs were kept."""

import numpy as np

from transept.doctor.weights import image_for, sample, state_dict_for, tensor_for

__all__ = ["image_for", "sample", "state_dict_for", "summary", "tensor_for"]


def summary(array) -> dict:
    """Shape, mean, standard deviation and 64 samples of an output."""
    array = np.asarray(array, dtype=np.float64)
    return {
        "shape": list(array.shape),
        "mean": float(f"{array.mean():.8g}"),
        "std": float(f"{array.std():.8g}"),
        "sample": sample(array),
    }

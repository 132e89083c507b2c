"""The recordings of the official models, our models with the same weights, and how far apart they are."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.golden import weights
from tests.golden.make import FAMILIES, fingerprint
from tests.helpers import blank

GOLDEN = sorted(path for name in FAMILIES for path in (Path(__file__).parent / name).glob("*.json"))
RECORDED = ("cat_tiny", "cabvit_h_l1", "crossformer_tiny", "xcit_nano_12_p16", "cait_xxs24_224")
"""One classifier of each family."""


def options_of(golden: dict) -> dict:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in golden["options"].items()}


def shapes_of(model: torch.nn.Module, golden: dict) -> dict[str, list[int]]:
    """Of the model's weights, which are those of the official checkpoint."""
    shapes = {key: list(value.shape) for key, value in model.state_dict().items() if value.is_floating_point()}
    assert fingerprint(shapes) == golden["keys"], "the names or shapes of the official checkpoint differ"
    assert sum(p.numel() for p in model.parameters()) == golden["parameters"]
    return shapes


def build(golden: dict) -> torch.nn.Module:
    model = blank(golden["model"], features_only=golden["dense"], **options_of(golden))
    shapes = shapes_of(model, golden)
    state = {key: torch.from_numpy(value) for key, value in weights.state_dict_for(shapes).items()}
    model.load_state_dict(state, strict=False)
    return model.eval()


def arrange(value: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """Our layout (tokens, `b h w c` or `b c h w`) as the recorded one."""
    if value.ndim == 4 and len(shape) == 3:
        value = value.flatten(1, 2) if value.shape[3] == shape[2] else value.flatten(2).transpose(1, 2)
    elif value.ndim == 4 and list(value.shape) != shape:
        value = value.permute(0, 3, 1, 2)
    elif value.ndim == 3 and len(shape) == 2:  # likewise, recorded once
        value = value[0]
    elif value.ndim == 3 and len(shape) == 4:  # a position encoding, the same for all images
        value = value.expand(shape[0], -1, -1).transpose(1, 2).reshape(shape)
    assert list(value.shape) == shape
    return value


def listed(outputs: Tensor | list[Tensor]) -> list[Tensor]:
    return outputs if isinstance(outputs, list) else [outputs]


def largest_difference(value: torch.Tensor, golden: dict) -> float:
    return float(np.abs(np.array(weights.sample(value.numpy())) - np.array(golden["sample"])).max())

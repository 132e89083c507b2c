"""Checkpoints of CabViT and of its successor FcaFormer, whose names are the same."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from transept.models.cabvit_block import resize_digest_table, resize_offset_table, shrink
from transept.models.cabvit_h import CabViTHConfig
from transept.models.cabvit_p import CabViTPConfig
from transept.ops.interpolation import resize_position_embedding
from transept.weights.convert.rules import Entries, tensors_of
from transept.weights.convert.sizes import side_of


def fit(entries: Entries, model: Any) -> Entries:
    """Tables of positions and digests brought to the model's size. The file's own size is taken to be square."""
    size = _native_size(entries, model)
    if size is None or size == model.config.img_size:
        return entries
    resized = resize_tables(tensors_of(entries), model.config, size)
    step = "resized {} x {} to {} x {}".format(*size, *model.config.img_size)
    return {
        name: entry if resized[name] is entry.tensor else entry.changed(resized[name], step)
        for name, entry in entries.items()
    }


def resize_tables(
    state_dict: dict[str, Tensor], config: CabViTHConfig | CabViTPConfig, img_size: tuple[int, int]
) -> dict[str, Tensor]:
    """The state dict of a model built for `img_size`, for one built from `config`.

    What the new model then computes is what the old one computes at the new size.
    """
    source = replace(config, img_size=img_size)
    stride = config.digest_stride
    resized = dict(state_dict)
    for key, value in state_dict.items():
        stage, name = key.split(".")[0], key.rsplit(".")[-1]
        if stage == "pos_embed":
            patches = resize_position_embedding(value[:, 1:], source.grids["blocks"], config.grids["blocks"])
            resized[key] = torch.cat([value[:, :1], patches], dim=1)
        if stage not in config.grids:
            continue
        grid, new_grid = source.grids[stage], config.grids[stage]
        digest_grid, new_digest_grid = (shrink(g, stride) for g in (grid, new_grid))
        if name == "attention_biases":
            resized[key] = resize_offset_table(value, grid, new_grid)
        elif name == "s_token_bias":
            resized[key] = resize_digest_table(value, digest_grid, new_digest_grid)
        elif name == "s_scale_factors":
            factors = resize_digest_table(value.transpose(1, 2), digest_grid, new_digest_grid)
            resized[key] = factors.transpose(1, 2)
    return resized


def _native_size(entries: Entries, model: Any) -> tuple[int, int] | None:
    """The image size that the file's tables are for, where it has any."""
    state = model.state_dict()
    for key, entry in entries.items():
        table = key.rsplit(".")[-1]
        if key not in state or table not in ("pos_embed", "attention_biases") or entry.tensor.ndim < 2:
            continue
        if state[key].shape == entry.tensor.shape:
            return model.config.img_size
        side = side_of(entry.tensor.shape[1] - (table == "pos_embed"))
        stride = 32 if key.startswith("layer_3.") else getattr(model.config, "patch_size", 16)
        return (side * stride, side * stride) if side else None
    return None

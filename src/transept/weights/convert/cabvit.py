"""Checkpoints of CabViT and of its successor FcaFormer, whose names are the same."""

from typing import Any

from transept.models.cabvit import resize_tables
from transept.weights.convert.rules import Dialect, Entries, tensors_of
from transept.weights.convert.sizes import side_of

DIALECTS: tuple[Dialect, ...] = ()


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


def _native_size(entries: Entries, model: Any) -> tuple[int, int] | None:
    """The image size that the file's tables are for, where it has any."""
    own = model.state_dict()
    for key, entry in entries.items():
        table = key.rsplit(".")[-1]
        if key not in own or table not in ("pos_embed", "attention_biases") or entry.tensor.ndim < 2:
            continue
        if own[key].shape == entry.tensor.shape:
            return model.config.img_size
        side = side_of(entry.tensor.shape[1] - (table == "pos_embed"))
        stride = 32 if key.startswith("layer_3.") else getattr(model.config, "patch_size", 16)
        return (side * stride, side * stride) if side else None
    return None

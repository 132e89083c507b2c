"""Checkpoints of CAT: the published names, and those of the first release."""

from typing import Any

from transept.ops.tokens import to_map, to_tokens
from transept.weights.convert.rules import Dialect, Entries, Names
from transept.weights.convert.sizes import resize_positions

# The authors warn that older files have other names; their dense code of that time, kept in a comment, shows which.
FIRST_RELEASE = Dialect(
    "CAT's first release",
    rules=(
        Names(
            (
                ("ape", "absolute_pos_embed"),
                ("layers.{}.pre_ipsa_blocks.{*}", "layers.{}.blocks_pre.{*}"),
                ("layers.{}.cpsa_blocks.{*}", "layers.{}.cross_block.{*}"),
                ("layers.{}.post_ipsa_blocks.{*}", "layers.{}.blocks_post.{*}"),
            )
        ),
    ),
    marks=("layers.{}.blocks_pre.{*}", "layers.{}.cross_block.{*}", "layers.{}.blocks_post.{*}"),
)

DIALECTS = (FIRST_RELEASE,)


def fit(entries: Entries, model: Any) -> Entries:
    """The position encoding in the shape that the model keeps, and of its size.

    Classifiers keep a sequence `1 (h w) c`, dense models a map `1 c h w`.
    """
    if model.ape is None or "ape" not in entries:
        return entries
    entry = entries["ape"]
    if entry.tensor.ndim == 4:
        rows, cols = entry.tensor.shape[2:]
        entries = entries | {"ape": entry.changed(to_tokens(entry.tensor), "reshaped")}
        entries = resize_positions(entries, "ape", model.grid, (rows, cols))
    else:
        entries = resize_positions(entries, "ape", model.grid)
    value = entries["ape"]
    if model.ape.ndim == 4 and value.tensor.shape[1] == model.grid[0] * model.grid[1]:
        as_map = to_map(value.tensor, model.grid).contiguous()
        # There and back is no change worth telling.
        steps = value.steps[1:] if entry.tensor.ndim == 4 else (*value.steps, "reshaped")
        entries = entries | {"ape": type(value)(as_map, value.file, steps)}
    return entries

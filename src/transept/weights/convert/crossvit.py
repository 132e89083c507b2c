"""Checkpoints of CrossViT: official, timm's and PaddleViT's."""

from typing import Any

from transept.weights.convert.rules import Dialect, Entries, Names, TransposedLinears
from transept.weights.convert.sizes import resize_positions

TIMM = Dialect(
    "timm",
    rules=(Names((("pos_embed.{}", "pos_embed_{}"), ("cls_token.{}", "cls_token_{}"))),),
    marks=("pos_embed_{}", "cls_token_{}"),
)

PADDLEVIT = Dialect(
    "PaddleViT",
    rules=(
        TransposedLinears(),
        Names((("blocks.{}.blocks.{}.{}.attn.proj.{}", "blocks.{}.blocks.{}.{}.attn.out.{}"),)),
    ),
    marks=("blocks.{}.blocks.{}.{}.attn.out.{}",),
    format="PaddlePaddle",
)

DIALECTS = (TIMM, PADDLEVIT)


def fit(entries: Entries, model: Any) -> Entries:
    """The position embeddings brought to the grids of the model's branches; class tokens keep theirs."""
    for b, grid in enumerate(model.grids):
        entries = resize_positions(entries, f"pos_embed.{b}", grid, class_tokens=1)
    return entries

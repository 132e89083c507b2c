"""Checkpoints of CaiT: official (timm uses the same names) and PASSL's."""

from typing import Any

from transept.weights.convert.rules import Dialect, Entries, Names, TransposedLinears
from transept.weights.convert.sizes import resize_positions

PASSL = Dialect(
    "PASSL",
    rules=(TransposedLinears(), Names((("head.{}", "head.fc_cls.{}"), ("{*}", "backbone.{*}")))),
    marks=("head.fc_cls.{}",),
    format="PaddlePaddle",
)

DIALECTS = (PASSL,)


def fit(entries: Entries, model: Any) -> Entries:
    """The position embedding brought to the model's grid."""
    return resize_positions(entries, "pos_embed", model.grid)

"""Checkpoints of CaiT: official (timm uses the same names), PaddlePaddle's three, Keras', birder's."""

from typing import Any

from transept.weights.convert.rules import Dialect, Entries, Names, OutputsLast, TransposedLinears
from transept.weights.convert.sizes import resize_positions

PASSL = Dialect(
    "PASSL",
    rules=(TransposedLinears(), Names((("head.{}", "head.fc_cls.{}"), ("{*}", "backbone.{*}")))),
    marks=("head.fc_cls.{}",),
)
PADDLEVIT = Dialect(
    "PaddleViT",
    rules=(TransposedLinears(), Names((("patch_embed.proj.{}", "patch_embed.patch_embed.{}"),))),
    marks=("patch_embed.patch_embed.{}",),
)
PPIM = Dialect("ppim", rules=(TransposedLinears(),), format="PaddlePaddle")
"""Paddle Image Models: the official names, and what is left of PASSL's in a file without a classifier."""

_LAYERS = {
    "norm1": "layernorm_1",
    "norm2": "layernorm_2",
    "mlp.fc1": "mlp_dense_1",
    "mlp.fc2": "mlp_dense_2",
    **{f"attn.{part}": f"attn_{part}" for part in ("qkv", "q", "k", "v", "proj", "proj_l", "proj_w")},
}
KERAS = Dialect(
    "Keras",
    rules=(
        TransposedLinears(),
        OutputsLast(),
        Names(
            (
                ("pos_embed", "pos_embed.0"),
                ("cls_token", "cls_token.0"),
                # `blocks_{}` would fit the longer name, too, so that comes first.
                *(
                    (f"{blocks}.{{}}.gamma_{i}", f"{blocks}_{{}}_layerscale_{i}.0")
                    for blocks in ("blocks_token_only", "blocks")
                    for i in (1, 2)
                ),
                *(
                    (f"{blocks}.{{}}.{ours}.{leaf}", f"{blocks}_{{}}_{theirs}.{place}")
                    for blocks in ("blocks_token_only", "blocks")
                    for ours, theirs in _LAYERS.items()
                    for place, leaf in enumerate(("weight", "bias"))
                ),
                *(
                    (f"{ours}.{leaf}", f"{theirs}.{place}")
                    for ours, theirs in {
                        "patch_embed.proj": "stem_conv",
                        "norm": "final_layernorm",
                        "head": "predictions",
                    }.items()
                    for place, leaf in enumerate(("weight", "bias"))
                ),
            )
        ),
    ),
    marks=("stem_conv.0",),
)

BIRDER = Dialect(
    "birder",
    rules=(
        Names(
            (
                ("blocks.{}.mlp.fc1.{}", "block1.{}.mlp.0.{}"),
                ("blocks.{}.mlp.fc2.{}", "block1.{}.mlp.3.{}"),
                ("blocks_token_only.{}.mlp.fc1.{}", "block2.{}.mlp.0.{}"),
                ("blocks_token_only.{}.mlp.fc2.{}", "block2.{}.mlp.3.{}"),
                ("blocks_token_only.{}.gamma_1", "block2.{}.gamma1"),
                ("blocks_token_only.{}.gamma_2", "block2.{}.gamma2"),
                ("blocks.{*}", "block1.{*}"),
                ("blocks_token_only.{*}", "block2.{*}"),
                ("head.{}", "classifier.{}"),
            )
        ),
    ),
    marks=("block1.{}.attn.proj_l.{}",),
)

DIALECTS = (PASSL, PADDLEVIT, PPIM, KERAS, BIRDER)


def fit(entries: Entries, model: Any) -> Entries:
    """The position embedding brought to the model's grid."""
    return resize_positions(entries, "pos_embed", model.grid)

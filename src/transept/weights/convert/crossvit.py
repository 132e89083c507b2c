"""Checkpoints of CrossViT: official, timm's, lucid's, PaddleViT's, MindCV's, birder's."""

from typing import Any

from transept.weights.convert.rules import Dialect, Entries, Names, TransposedLinears
from transept.weights.convert.sizes import resize_positions

_TOKENS = ("pos_embed.{}", "pos_embed_{}"), ("cls_token.{}", "cls_token_{}")
TIMM = Dialect("timm", rules=(Names(_TOKENS),), marks=("pos_embed_{}", "cls_token_{}"))
# As its model has them (lucid-dl 3.16.0): timm's names, with `stages` outside.
LUCID = Dialect(
    "lucid", rules=(Names((*_TOKENS, ("blocks.{}.{*}", "stages.{}.{*}"))),), marks=("stages.{}.blocks.{*}",)
)

PADDLEVIT = Dialect(
    "PaddleViT",
    rules=(
        TransposedLinears(),
        Names((("blocks.{}.blocks.{}.{}.attn.proj.{}", "blocks.{}.blocks.{}.{}.attn.out.{}"),)),
    ),
    marks=("blocks.{}.blocks.{}.{}.attn.out.{}",),
    format="PaddlePaddle",
    departs="its last norms of each fusion have eps 1e-5, ours 1e-6",
)

# MindSpore guesses the names of what is appended to a list from the first of its parts.
_MINDCV_STAGES = {"blocks.1.": "0.blocks.0.1.", "blocks.2.": "0.blocks.0.2.", "blocks.0.": "0."}
_GAMMA_BETA = ("weight", "gamma"), ("bias", "beta")
MINDCV = Dialect(
    "MindCV",
    rules=(
        Names(
            (
                *((f"norm.{{}}.{leaf}", f"norm.{{}}.{other}") for leaf, other in _GAMMA_BETA),
                *(
                    (f"{stage}{ours}.{leaf}", f"{named}{theirs}.{other}")
                    for stage, named in _MINDCV_STAGES.items()
                    for ours, theirs in (
                        ("blocks.{}.{}.norm1", "blocks.{}.{}.norm1"),
                        ("blocks.{}.{}.norm2", "blocks.{}.{}.norm2"),
                        ("fusion.{}.norm1", "fusion.{}.0.norm1"),
                        ("projs.{}.0", "projs.{}.0"),
                        ("revert_projs.{}.0", "revert_projs.{}.0"),
                    )
                    for leaf, other in _GAMMA_BETA
                ),
                *(
                    (f"{stage}{ours}.{{*}}", f"{named}{theirs}.{{*}}")
                    for stage, named in _MINDCV_STAGES.items()
                    for ours, theirs in (
                        ("fusion.{}", "fusion.{}.0"),
                        ("blocks", "blocks"),
                        ("projs", "projs"),
                        ("revert_projs", "revert_projs"),
                    )
                ),
            )
        ),
    ),
    marks=("0.blocks.{}.{}.norm1.gamma",),
    departs="its GELU is the approximation by tanh, its norms in the blocks have eps 1e-7, ours 1e-6, and it resizes "
    "the large branch's picture bilinearly",
)

BIRDER = Dialect(
    "birder",
    rules=(
        Names(
            (
                ("blocks.{}.blocks.{}.{}.mlp.fc1.{}", "blocks.{}.blocks.{}.{}.mlp.0.{}"),
                ("blocks.{}.blocks.{}.{}.mlp.fc2.{}", "blocks.{}.blocks.{}.{}.mlp.3.{}"),
                ("head.{}.{}", "classifier.{}.{}"),
            )
        ),
    ),
    marks=("blocks.{}.blocks.{}.{}.mlp.0.{}",),
    departs="both of its branches see the picture in one size, ours a smaller one in the large branch",
)

DIALECTS = (LUCID, TIMM, PADDLEVIT, MINDCV, BIRDER)


def fit(entries: Entries, model: Any) -> Entries:
    """The position embeddings brought to the grids of the model's branches; class tokens keep theirs."""
    for b, grid in enumerate(model.grids):
        entries = resize_positions(entries, f"pos_embed.{b}", grid, class_tokens=1)
    return entries

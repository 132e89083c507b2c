"""Checkpoints of CrossFormer: official, and birder's."""

from transept.weights.convert.rules import Dialect, Names

# The layers of a position network, which birder counts through, activations included.
_POSITIONS = ("pos_proj", "pos1.0", "pos1.2", "pos2.0", "pos2.2", "pos3.0", "pos3.2")
_COUNTED = (0, 1, 3, 4, 6, 7, 9)

BIRDER = Dialect(
    "birder",
    rules=(
        Names(
            (
                # What leads to a stage stands at its beginning there, officially at the end of the one before.
                *((f"layers.{i}.downsample.{{*}}", f"body.stage{i + 2}.downsample.{{*}}") for i in range(3)),
                *(
                    (f"layers.{i}.blocks.{{}}.{ours}.{{}}", f"body.stage{i + 1}.blocks.{{}}.{theirs}.{{}}")
                    for i in range(4)
                    for ours, theirs in {
                        "mlp.fc1": "mlp.0",
                        "mlp.fc2": "mlp.3",
                        **{f"attn.pos.{a}": f"attn.pos.pos.{b}" for a, b in zip(_POSITIONS, _COUNTED, strict=True)},
                    }.items()
                ),
                *((f"layers.{i}.blocks.{{*}}", f"body.stage{i + 1}.blocks.{{*}}") for i in range(4)),
                ("norm.{}", "features.0.{}"),
                ("head.{}", "classifier.{}"),
            )
        ),
    ),
    marks=("body.stage1.blocks.{*}",),
)

DIALECTS = (BIRDER,)

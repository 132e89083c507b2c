"""Checkpoints of XCiT: official, timm's, PASSL's, PaddleViT's, MMPretrain's, MindCV's, birder's, DINO's classifier."""

from transept.weights.convert.rules import Dialect, Names, Parts, Stages, TransposedLinears

_QKV = tuple(f"cls_attn_blocks.{{}}.attn.{part}.{{}}" for part in "qkv")
_SPLIT = Parts("cls_attn_blocks.{}.attn.qkv.{}", _QKV)

TIMM = Dialect(
    "timm",
    rules=(_SPLIT, Names((("pos_embeder.{*}", "pos_embed.{*}"),))),
    marks=("pos_embed.token_projection.{}", *_QKV),
)

_NO_COUNTERS = {"{*}.num_batches_tracked": "a counter of training steps, which evaluation does not read"}
_PADDLE_NORMS = ("{*}.running_mean", "{*}._mean"), ("{*}.running_var", "{*}._variance")

PASSL = Dialect(
    "PASSL",
    rules=(
        TransposedLinears(),
        Names(
            (
                ("head.{}", "head.fc_cls.{}"),
                ("{*}.running_mean", "backbone.{*}._mean"),
                ("{*}.running_var", "backbone.{*}._variance"),
                ("{*}", "backbone.{*}"),
            )
        ),
    ),
    marks=("head.fc_cls.{}",),
    lacks=_NO_COUNTERS,
)
PADDLEVIT = Dialect(
    "PaddleViT",
    rules=(TransposedLinears(), Names(_PADDLE_NORMS)),
    marks=("{*}._variance",),
    format="PaddlePaddle",
    lacks=_NO_COUNTERS,
)

MMPRETRAIN = Dialect(
    "MMPretrain",
    rules=(
        _SPLIT,
        Names(
            (
                ("head.{}", "head.fc.{}"),
                # Its stem counts units of convolution and norm; the official one counts the GELUs in between, too.
                *((f"patch_embed.proj.{2 * i}.0.{{}}", f"backbone.patch_embed.proj.{i}.conv.{{}}") for i in range(4)),
                *((f"patch_embed.proj.{2 * i}.1.{{}}", f"backbone.patch_embed.proj.{i}.bn.{{}}") for i in range(4)),
                ("pos_embeder.token_projection.{}", "backbone.pos_embed.token_projection.conv.{}"),
                ("blocks.{}.local_mp.bn.{}", "backbone.xca_layers.{}.local_mp.conv1.bn.{}"),
                ("blocks.{}.local_mp.{}.{}", "backbone.xca_layers.{}.local_mp.{}.conv.{}"),
                ("blocks.{}.mlp.fc1.{}", "backbone.xca_layers.{}.ffn.layers.0.0.{}"),
                ("blocks.{}.mlp.fc2.{}", "backbone.xca_layers.{}.ffn.layers.1.{}"),
                ("cls_attn_blocks.{}.mlp.fc1.{}", "backbone.ca_layers.{}.ffn.layers.0.0.{}"),
                ("cls_attn_blocks.{}.mlp.fc2.{}", "backbone.ca_layers.{}.ffn.layers.1.{}"),
                ("blocks.{*}", "backbone.xca_layers.{*}"),
                ("cls_attn_blocks.{*}", "backbone.ca_layers.{*}"),
                ("{*}", "backbone.{*}"),
            )
        ),
    ),
    marks=("backbone.xca_layers.{*}", "xca_layers.{*}"),
)

_NORMS = ("{*}.norm1", "{*}.norm2", "{*}.norm3", "norm", "{*}.local_mp.bn", "patch_embed.proj.{}.1")
MINDCV = Dialect(
    "MindCV",
    rules=(
        Names(
            (
                ("{*}.running_mean", "{*}.moving_mean"),
                ("{*}.running_var", "{*}.moving_variance"),
                *(
                    (f"{norm}.{leaf}", f"{norm}.{other}")
                    for norm in _NORMS
                    for leaf, other in (("weight", "gamma"), ("bias", "beta"))
                ),
            )
        ),
    ),
    marks=("{*}.moving_variance",),
    departs="it leaves out the norm of queries and keys over the tokens, and its GELU is the approximation by tanh",
    lacks=_NO_COUNTERS,
)

BIRDER = Dialect(
    "birder",
    rules=(
        _SPLIT,
        Stages("blocks.{}.{*}", "block1.stage{}.{}.{*}", ends=(1 / 3, 1 / 2, 2 / 3)),
        Names(
            (
                # It counts norms and scales in the order of use; officially the convolutions, which came later, have 3.
                ("block1.{}.{}.norm2.{}", "block1.{}.{}.norm3.{}"),
                ("block1.{}.{}.norm3.{}", "block1.{}.{}.norm2.{}"),
                ("block1.{}.{}.gamma2", "block1.{}.{}.gamma3"),
                ("block1.{}.{}.gamma3", "block1.{}.{}.gamma2"),
                ("block1.{}.{}.mlp.fc1.{}", "block1.{}.{}.mlp.0.{}"),
                ("block1.{}.{}.mlp.fc2.{}", "block1.{}.{}.mlp.3.{}"),
                ("cls_attn_blocks.{}.mlp.fc1.{}", "block2.{}.mlp.0.{}"),
                ("cls_attn_blocks.{}.mlp.fc2.{}", "block2.{}.mlp.3.{}"),
                ("norm.{}", "block2.2.{}"),
                ("cls_attn_blocks.{*}", "block2.{*}"),
                ("pos_embeder.{*}", "pos_embed.{*}"),
                ("head.{}", "classifier.{}"),
                *((f"patch_embed.proj.{2 * i}.{{*}}", f"patch_embed.proj.{i}.{{*}}") for i in range(4)),
            )
        ),
    ),
    marks=("block1.stage1.{*}",),
)

LINEAR = Dialect("DINO's linear evaluation", rules=(Names((("head.{}", "linear.{}"),)),), marks=("linear.{}",))
"""The classifier that was trained on DINO's features, in a file of its own."""

DIALECTS = (BIRDER, TIMM, PASSL, PADDLEVIT, MMPRETRAIN, MINDCV, LINEAR)

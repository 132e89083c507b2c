"""Checkpoints of XCiT: official, timm's, PASSL's, MMPretrain's."""

from transept.weights.convert.rules import Dialect, Names, Parts, TransposedLinears

_QKV = tuple(f"cls_attn_blocks.{{}}.attn.{part}.{{}}" for part in "qkv")
_SPLIT = Parts("cls_attn_blocks.{}.attn.qkv.{}", _QKV)

TIMM = Dialect(
    "timm",
    rules=(_SPLIT, Names((("pos_embeder.{*}", "pos_embed.{*}"),))),
    marks=("pos_embed.token_projection.{}", *_QKV),
)

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
    marks=("head.fc_cls.{}", "{*}._variance"),
    format="PaddlePaddle",
    lacks={"{*}.num_batches_tracked": "a counter of training steps, which evaluation does not read"},
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

DIALECTS = (TIMM, PASSL, MMPRETRAIN)

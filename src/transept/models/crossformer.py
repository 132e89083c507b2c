"""CrossFormer (Wang et al., "CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale Attention",
arXiv 2108.00154) and CrossFormer++ (the same authors, arXiv 2303.06908).

CrossFormer, Section 3.1      CrossScaleEmbedding      convolutions of several kernel sizes side by side
                              PatchMerging             the same between stages
CrossFormer, Section 3.2.1    ShortDistanceAttention   among neighbours, in a window
                              LongDistanceAttention    among tokens a fixed interval apart
CrossFormer, Section 3.2.2    DynamicPositionBias      (layers/position_bias.py) offset to bias, for any group size
CrossFormer++, PGS            progressive_group_size   groups that grow with depth
CrossFormer++, ACL            CooledBlock              the activation cooling layer behind every third block
CrossFormer, Table 1          VARIANTS

Module names are those of the official checkpoints, so these load as they are. The dense models were published with

    detection 1x, UPerNet         group_sizes=(7, 7, 7, 7),   intervals=(8, 4, 2, 1), grouping="legacy"
    Semantic FPN, detection 3x    group_sizes=(14, 14, 7, 7), intervals=(16, 8, 2, 1), grouping="legacy"

Departures from the official code, without effect on the outputs at the sizes that it takes:
- nothing remembers the last image: the official dense blocks stay with short-distance attention for ever once they
  have met a map smaller than their group;
- classifier and pyramid share one rule that reads the size from the image, so the classifier takes other sizes than
  its native one, square or not, and follows a progressive rule at each;
- a map with odd sides is padded (after the LayerNorm, at the bottom and right) before its merging in the pyramid,
  and with `pad=True` in the classifier; the official code asserts;
- gradient checkpointing works in the pyramid; logits of padding are masked with a number that half precision holds;
- `grouping="legacy"` is the older dense rule (a fixed interval) in the classifier, too. At 224 all rules agree.

Left out, since no published model has them: absolute positions, and the convolutional position encoding, whose
official code convolves over the wrong axes.

Axes: b batch, h w map (channels last), m heads, n tokens of a group, g groups of an image.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import index
from typing import Any, Literal, NamedTuple, cast

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.nn.functional import pad

from transept.layers.checkpointing import run_block
from transept.layers.linear import Linear
from transept.layers.position_bias import DynamicPositionBias
from transept.layers.residual import Mlp
from transept.models.attention import AttentionWeights, Grid, ShowsAttention, grouped_map, token_weights
from transept.models.backbone import Backbone, Family, ModelConfig, level_indices, pyramid_levels
from transept.ops.attention import softmax_attention
from transept.ops.tokens import merge_heads, split_heads
from transept.ops.windows import Pads, crop_map, from_windows, pad_map, to_windows

Four = tuple[int, int, int, int]

DERIVED_BUFFERS = (r"\.attn\.biases$", r"\.attn\.relative_position_index$")
"""Names in older official checkpoints of tables that we compute."""


SMALL_GROUPS: Mapping[str, Any] = dict(group_sizes=(7, 7, 7, 7), intervals=(8, 4, 2, 1), grouping="legacy")
"""Of the published detectors (1x) and of UPerNet."""
LARGE_GROUPS: Mapping[str, Any] = dict(group_sizes=(14, 14, 7, 7), intervals=(16, 8, 2, 1), grouping="legacy")
"""Of the published Semantic FPN, of the detectors trained three times as long (3x), and of the cascade."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossFormerConfig(ModelConfig):
    """The columns of Table 1, and the options of both papers."""

    embed_dim: int
    """Channels of the first stage; each further stage has twice as many."""
    depths: Four
    num_heads: Four
    group_sizes: Four = (7, 7, 7, 7)
    """G: the side of a group, per stage."""
    intervals: Four = (8, 4, 2, 1)
    """I: the distance of neighbours in a long-distance group, per stage."""
    grouping: Literal["current", "legacy"] = "current"
    """Long-distance groups have a fixed side and tile the map ("current"), or span it, and grow with it ("legacy").

    The published detection and segmentation weights were trained with "legacy".
    """
    group_type: Literal["constant", "7_14", "linear", "linear_div", "alter"] = "constant"
    """How the group size goes with depth; the published CrossFormer++ models have "constant" ones."""
    adaptive_interval: bool = False
    """The least interval with which one tile of long-distance groups covers the map, whatever `intervals` say."""
    activation_cooling: bool = False
    """CrossFormer++: a convolution and a LayerNorm behind every third block of a stage, except its last."""
    patch_sizes: tuple[int, ...] = (4, 8, 16, 32)
    """Kernels of the cross-scale embedding; the first is the stride."""
    merge_sizes: tuple[tuple[int, ...], ...] = ((2, 4), (2, 4), (2, 4))
    """Kernels of the three patch mergings; the first is the stride."""
    mlp_ratio: float = 4.0
    pad_side: Literal["end", "both"] = "end"
    """Where a map that groups do not divide is padded: at the bottom and right, or on all sides."""
    mask_padding: bool = True
    """Attention ignores the padding."""
    pad: bool = False
    """The classifier takes every size, by padding maps with odd sides (the pyramid always does)."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("grouping", ("current", "legacy")),
            ("group_type", ("constant", "7_14", "linear", "linear_div", "alter")),
            ("pad_side", ("end", "both")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}; use one of {', '.join(map(repr, choices))}")
        for name in ("depths", "num_heads", "group_sizes", "intervals"):
            values = getattr(self, name)
            if len(values) != 4 or min(values) < 1:
                raise ValueError(f"{name}={values}; give one positive number for each of the 4 stages")
            object.__setattr__(self, name, tuple(values))
        if self.embed_dim % 16:
            raise ValueError(f"embed_dim={self.embed_dim} must be a multiple of 16, for the position bias network")
        for stage, (dim, heads) in enumerate(zip(self.dims, self.num_heads, strict=True)):
            if dim % heads:
                raise ValueError(f"the {dim} channels of stage {stage} must be a multiple of num_heads={heads}")
        if len(self.merge_sizes) != 3:
            raise ValueError(f"merge_sizes={self.merge_sizes}; give the kernels of each of the 3 mergings")
        for name, kernels, stride in (
            ("patch_sizes", self.patch_sizes, 4),
            *(("merge_sizes", kernels, 2) for kernels in self.merge_sizes),
        ):
            if not kernels or kernels[0] != stride or any(k < stride or (k - stride) % 2 for k in kernels):
                raise ValueError(
                    f"{name} has {tuple(kernels)}; start with {stride}, and go on with larger even numbers"
                )
        if self.grouping == "legacy" and self.adaptive_interval:
            raise ValueError("grouping='legacy' keeps the intervals; leave out adaptive_interval=True")

    @property
    def dims(self) -> Four:
        """Channels of each stage."""
        dim = self.embed_dim
        return dim, 2 * dim, 4 * dim, 8 * dim


def _variant(embed_dim: int, depths: Four, **options: Any) -> CrossFormerConfig:
    heads = embed_dim // 32
    num_heads = (heads, 2 * heads, 4 * heads, 8 * heads)
    return CrossFormerConfig(img_size=(224, 224), embed_dim=embed_dim, depths=depths, num_heads=num_heads, **options)


_PP: dict[str, Any] = dict(group_sizes=(4, 4, 14, 7), intervals=(4, 2, 1, 1), activation_cooling=True)

VARIANTS = {  #                               dim  depths                      parameters
    "crossformer_tiny": _variant(64, (1, 1, 8, 6)),  #                             27.8 M
    "crossformer_small": _variant(96, (2, 2, 6, 2)),  #                            30.7 M
    "crossformer_base": _variant(96, (2, 2, 18, 2)),  #                            52.0 M
    "crossformer_large": _variant(128, (2, 2, 18, 2)),  #                          92.0 M
    "crossformer_pp_small": _variant(64, (2, 2, 18, 2), **_PP),  #                 23.3 M
    "crossformer_pp_base": _variant(96, (2, 2, 18, 2), **_PP),  #                  52.0 M
    "crossformer_pp_large": _variant(128, (2, 2, 18, 2), **_PP),  #                92.0 M
    "crossformer_pp_huge": _variant(128, (6, 6, 18, 2), **_PP),  #                 96.0 M
}


class Grouping(NamedTuple):
    """How a map is cut into groups: padded, then dealt out by `to_groups`."""

    sides: tuple[int, int]
    """Rows and columns of tokens in a group."""
    interval: int
    pads: Pads

    def mask(self, size: tuple[int, int], *, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The addend of the logits of each key, `g 1 1 n`: zero, or for padding a very negative number.

        Not minus infinity: a long-distance group may be all padding, and has no output that matters, but must not
        give NaN. The official -1e6 exceeds half precision.
        """
        left, right, top, bottom = self.pads
        value = max(-1e6, torch.finfo(dtype).min / 4)
        mask = pad(torch.zeros(size, device=device, dtype=dtype), (left, right, top, bottom), value=value)
        return to_windows(mask[None, :, :, None], self.sides, self.interval).view(-1, 1, 1, math.prod(self.sides))


def short_distance_grouping(size: tuple[int, int], group_size: int, config: CrossFormerConfig) -> Grouping:
    """Windows of `group_size` rows and columns. A map no larger is one group ("legacy": a few square ones)."""
    if min(size) <= group_size:
        group_size = min(size) if config.grouping == "legacy" else max(size)
    return Grouping((group_size, group_size), 1, _pads(size, group_size, config))


def long_distance_grouping(
    size: tuple[int, int], group_size: int, interval: int, config: CrossFormerConfig
) -> Grouping:
    """Groups of tokens `interval` rows or columns apart. A map no larger than a group is left to short distance."""
    if min(size) <= group_size:
        return short_distance_grouping(size, group_size, config)
    if config.grouping == "legacy":
        height, width = size
        return Grouping((-(-height // interval), -(-width // interval)), interval, _pads(size, interval, config))
    if config.adaptive_interval:
        interval = -(-max(size) // group_size)
    return Grouping((group_size, group_size), interval, _pads(size, group_size * interval, config))


def _pads(size: tuple[int, int], unit: int, config: CrossFormerConfig) -> Pads:
    """The padding that makes both sides multiples of `unit`."""
    bottom, right = (-side % unit for side in size)
    top, left = (bottom // 2, right // 2) if config.pad_side == "both" else (0, 0)
    return left, right - left, top, bottom - top


def progressive_group_size(config: CrossFormerConfig, *, stage: int, block: int, grid_side: int) -> int:
    """The group size of a block by `config.group_type` (CrossFormer++, progressive group size).

    `block` counts over all stages; `grid_side` is the longer side of the first stage's map.
    """
    match config.group_type:
        case "constant":
            return config.group_sizes[stage]
        case "7_14":
            early = stage == 2 and block - sum(config.depths[:2]) < 4
            return config.group_sizes[stage] // (2 if early else 1)
    side = grid_side // 2**stage
    # From 4 of the first map's rows to the whole map, linearly over all blocks.
    size = side * (4 / grid_side + block * (1 - 4 / grid_side) / sum(config.depths))
    if config.group_type != "linear" and size > side // 2:
        whole = size > 0.75 * side if config.group_type == "linear_div" else block % 2 == 1
        size = side if whole or stage != 2 else side // 2
    return max(4, math.ceil(size))


class GroupAttention(nn.Module, ShowsAttention):
    """Multi-head attention inside groups of a map, with a dynamic position bias. The two kinds differ in the groups."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, dim * 3)
        self.proj = Linear(dim, dim)
        self.pos = DynamicPositionBias(dim, num_heads)

    def grouping(self, size: tuple[int, int], group_size: int, interval: int, config: CrossFormerConfig) -> Grouping:
        raise NotImplementedError

    def forward(self, x: Tensor, grouping: Grouping, mask: Tensor | None = None) -> Tensor:  # b h w c -> b h w c
        sides, interval, pads = grouping
        x = pad_map(x, pads)
        q, k, v = (split_heads(t, self.num_heads) for t in self.qkv(to_windows(x, sides, interval)).chunk(3, dim=-1))
        bias = self.pos(sides).to(q.dtype).unsqueeze(0)  # 1 m n n
        if mask is not None:
            bias = (bias + mask.to(q.dtype)).expand(x.shape[0], -1, -1, -1, -1).flatten(0, 1)  # (b g) m n n
        out = merge_heads(softmax_attention(q, k, v, bias))
        return self.proj(crop_map(from_windows(out, sides, x.shape, interval), pads))

    def attention_weights(
        self, grid: Grid, x: Tensor, grouping: Grouping, mask: Tensor | None = None
    ) -> AttentionWeights:
        sides, interval, pads = grouping
        q, k, _ = self.qkv(to_windows(pad_map(x, pads), sides, interval)).chunk(3, dim=-1)
        q, k = split_heads(q, self.num_heads), split_heads(k, self.num_heads)
        logits = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1) + self.pos(sides)  # (b g) m n n
        if mask is not None:
            logits = logits + mask.repeat(x.shape[0], 1, 1, 1)
        return token_weights(logits.softmax(dim=-1), grouped_map(grid, pads, sides, x, interval))


class ShortDistanceAttention(GroupAttention):
    """SDA: each token attends to the window of G x G neighbours that it lies in (Section 3.2.1)."""

    attention_kind = "short-distance"

    def grouping(self, size: tuple[int, int], group_size: int, interval: int, config: CrossFormerConfig) -> Grouping:
        return short_distance_grouping(size, group_size, config)


class LongDistanceAttention(GroupAttention):
    """LDA: each token attends to those with its row and column modulo the interval I (Section 3.2.1)."""

    attention_kind = "long-distance"

    def grouping(self, size: tuple[int, int], group_size: int, interval: int, config: CrossFormerConfig) -> Grouping:
        return long_distance_grouping(size, group_size, interval, config)


class CrossFormerBlock(nn.Module):
    """Attention and an MLP, each behind its LayerNorm and drop path."""

    def __init__(self, attn: GroupAttention, dim: int, mlp_ratio: float, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, x: Tensor, grouping: Grouping, mask: Tensor | None = None) -> Tensor:  # b h w c -> b h w c
        x = x + self.drop_path(self.attn(self.norm1(x), grouping, mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CooledBlock(CrossFormerBlock):
    """A block with CrossFormer++'s activation cooling layer, which holds down the growth of the residual stream.

    It replaces the stream, unlike everything else in a block: no residual, no drop path.
    """

    def __init__(self, attn: GroupAttention, dim: int, mlp_ratio: float, drop_path_rate: float) -> None:
        super().__init__(attn, dim, mlp_ratio, drop_path_rate)
        self.ex_conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.ex_ln = nn.LayerNorm(dim)

    def forward(self, x: Tensor, grouping: Grouping, mask: Tensor | None = None) -> Tensor:  # b h w c -> b h w c
        x = super().forward(x, grouping, mask)
        return self.ex_ln(_channels_last(self.ex_conv(_channels_first(x))))


class CrossScaleConvolutions(nn.ModuleList):
    """Convolutions of several kernel sizes and one stride, side by side: `b c h w -> b h/s w/s dim`.

    The larger the kernel, the fewer of the channels come from it.
    """

    def __init__(self, dim_in: int, dim: int, kernels: Sequence[int]) -> None:
        stride = kernels[0]
        widths = [dim // 2 ** (i + 1) for i in range(len(kernels) - 1)]
        widths.append(dim // 2 ** len(widths))
        super().__init__(
            nn.Conv2d(dim_in, width, kernel, stride=stride, padding=(kernel - stride) // 2)
            for kernel, width in zip(kernels, widths, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([_channels_last(conv(x)) for conv in self], dim=-1)


class CrossScaleEmbedding(nn.Module):
    """CEL: patches of several sizes around the same centre make one token (Section 3.1): `b 3 H W -> b h w c`."""

    def __init__(self, in_chans: int, dim: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.projs = CrossScaleConvolutions(in_chans, dim, kernels)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if min(height, width) < 4:  # less than one patch
            x = pad(x, (0, max(4 - width, 0), 0, max(4 - height, 0)))
        return self.norm(self.projs(x))


class PatchMerging(nn.Module):
    """The cross-scale embedding layer between stages: half the side, twice the channels (Section 3.1)."""

    def __init__(self, dim: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.reductions = CrossScaleConvolutions(dim, 2 * dim, kernels)

    def forward(self, x: Tensor) -> Tensor:  # b h w c -> b h/2 w/2 2c
        x = self.norm(x)
        return self.reductions(_channels_first(pad_map(x, (0, x.shape[2] % 2, 0, x.shape[1] % 2))))


def _channels_first(x: Tensor) -> Tensor:
    """`b h w c -> b c h w`, a view."""
    return x.permute(0, 3, 1, 2)


def _channels_last(x: Tensor) -> Tensor:
    """`b c h w -> b h w c`, a view."""
    return x.permute(0, 2, 3, 1)


class Stage(nn.Module):
    """Blocks at one resolution, short- and long-distance attention in turn: `b h w c -> b h w c`.

    Each stage but the last also owns the merging that follows it. It runs outside of `forward`, whose output is
    the level of the pyramid.
    """

    def __init__(self, config: CrossFormerConfig, index: int, drop_path_rates: Sequence[float]) -> None:
        super().__init__()
        self.config = config
        self.index = index
        self.first_block = sum(config.depths[:index])
        dim, depth, heads = config.dims[index], config.depths[index], config.num_heads[index]
        blocks: list[nn.Module] = []
        for i, rate in enumerate(drop_path_rates):
            attn = (LongDistanceAttention if i % 2 else ShortDistanceAttention)(dim, heads)
            cooled = config.activation_cooling and i % 3 == 2 and i < depth - 1
            blocks.append((CooledBlock if cooled else CrossFormerBlock)(attn, dim, config.mlp_ratio, rate))
        self.blocks = nn.ModuleList(blocks)
        if index < 3:
            self.downsample = PatchMerging(dim, config.merge_sizes[index])

    def groupings(self, size: tuple[int, int], grid_side: int) -> list[Grouping]:
        """How each block cuts a map of `size`; `grid_side` is the longer side of the first stage's map."""
        result = []
        for i, block in enumerate(self.blocks):
            group_size = progressive_group_size(
                self.config, stage=self.index, block=self.first_block + i, grid_side=grid_side
            )
            attn = cast(CrossFormerBlock, block).attn
            result.append(attn.grouping(size, group_size, self.config.intervals[self.index], self.config))
        return result

    def forward(self, x: Tensor, grid_side: int, *, checkpointing: bool = False) -> Tensor:
        size = (x.shape[1], x.shape[2])
        masks: dict[Grouping, Tensor | None] = {}  # a stage has few groupings: each mask is made once for all blocks
        for block, grouping in zip(self.blocks, self.groupings(size, grid_side), strict=True):
            if grouping not in masks:
                masked = self.config.mask_padding and any(grouping.pads)
                masks[grouping] = grouping.mask(size, device=x.device, dtype=x.dtype) if masked else None
            x = run_block(block, x, grouping, masks[grouping], checkpointing=checkpointing)
        return x


class CrossFormerTrunk(Backbone):
    """Cross-scale embedding and four stages: what classifier and pyramid share."""

    channels_last = True

    def __init__(self, config: CrossFormerConfig, in_chans: int, drop_path_rate: float) -> None:
        super().__init__(config, in_chans=in_chans, num_features=config.dims[-1])
        self.pretrained_cfg["crop_pct"] = 0.875
        self.patch_embed = CrossScaleEmbedding(in_chans, config.embed_dim, config.patch_sizes)
        depth = sum(config.depths)
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        ends = list(accumulate(config.depths))
        self.layers = nn.ModuleList(
            Stage(config, i, rates[end - depth : end])
            for i, (end, depth) in enumerate(zip(ends, config.depths, strict=True))
        )
        self.norm: nn.Module = nn.Identity()
        self.head = nn.Identity()
        self.levels = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"layers.{i}"} for i, dim in enumerate(config.dims)
        ]

    @property
    def feature_info(self) -> Any:
        return self.levels

    def run_stages(self, x: Tensor, last: int | None = None) -> Iterator[Tensor]:
        """Image `b 3 H W` to the output `b h w c` of each stage, as far as the stage `last`."""
        for side in x.shape[-2:]:
            index(side)  # each size has its own groups: makes torch.compile trace per size, symbols take it minutes
        x = self.patch_embed(x)
        grid_side = max(x.shape[1], x.shape[2])
        stages = cast("list[Stage]", list(self.layers))[: None if last is None else last + 1]
        for stage, following in zip(stages, [*stages[1:], None], strict=True):
            x = stage(x, grid_side, checkpointing=self.grad_checkpointing)
            yield x
            if following is not None:
                x = stage.downsample(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Image `b 3 H W` to the normalised map `b h w c` of stride 32."""
        *_, x = self.run_stages(x)
        return self.norm(x)

    def pool(self, x: Tensor) -> Tensor:
        return x.mean(dim=(1, 2)) if self.global_pool == "avg" else x

    @property
    def num_levels(self) -> int:
        return len(self.layers)

    def intermediates(
        self, x: Tensor, take: list[int], *, norm: bool, stop: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """As in `Backbone`, with the four stages as levels. `norm` applies to the last, the only one with its width."""
        maps = []
        for i, x in enumerate(self.run_stages(x, take[-1] if stop else None)):  # noqa: B020
            if i in take:
                maps.append(_channels_first(self.norm(x) if norm and i == 3 else x))
        return (None if stop else self.norm(x)), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last of `indices`, and on request the final norm and the classifier."""
        take = level_indices(indices, len(self.layers))
        self.layers = self.layers[: take[-1] + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return take

    def group_matcher(self, coarse: bool = False) -> dict:
        if coarse:
            return {"stem": r"^patch_embed", "blocks": [(r"^layers\.(\d+)", None), (r"^norm", (99999,))]}
        return {
            "stem": r"^patch_embed",
            "blocks": [
                (r"^layers\.(\d+)\.blocks\.(\d+)", None),
                (r"^layers\.(\d+)\.downsample", (99999,)),
                (r"^norm", (99999,)),
            ],
        }

    def init_weights(self) -> None:
        """Linear layers: normal with std 0.02, biases 0. Convolutions keep PyTorch's default, as officially."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


class CrossFormer(CrossFormerTrunk):
    """The classifier: `b 3 H W -> b num_classes` logits.

    Any height and width that stay even until stride 32: 32 n to 32 n + 3 pixels. With `pad=True`, any at all.
    """

    def __init__(
        self, config: CrossFormerConfig, *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__(config, in_chans, drop_path_rate)
        if not config.pad:
            _check_size(config.img_size)
        self.pad = config.pad
        self.norm = nn.LayerNorm(self.num_features)
        self.reset_classifier(num_classes)
        self.init_weights()

    def run_stages(self, x: Tensor, last: int | None = None) -> Iterator[Tensor]:
        if not self.pad:
            _check_size((x.shape[-2], x.shape[-1]))
        return super().run_stages(x, last)


def _check_size(size: tuple[int, int]) -> None:
    """Both sides must give a number of tokens that can be halved three times."""
    if all(side >= 32 and side % 32 < 4 for side in size):
        return
    height, width = size
    below, above = ([max(side // 32, 1) * 32 for side in size], [-(-side // 32) * 32 for side in size])
    sizes = dict.fromkeys(f"{h}x{w}" for h, w in (below, above))
    raise ValueError(
        f"image is {height}x{width}, and its tokens cannot be halved three times;"
        f" use {' or '.join(sizes)} (sides of 32 n to 32 n + 3), or pad=True"
    )


class CrossFormerPyramid(CrossFormerTrunk):
    """The backbone of the official detection and segmentation models: maps of strides 4, 8, 16, 32.

    They are the outputs of the stages, without a norm. Any height and width: a side of H pixels has floor(H / 4)
    tokens, and each next level half of them, rounded up.
    """

    is_pyramid = True

    def __init__(
        self,
        config: CrossFormerConfig,
        *,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] = (0, 1, 2, 3),
    ) -> None:
        super().__init__(config, in_chans, drop_path_rate)
        self.out_indices = pyramid_levels(out_indices)
        self.init_weights()

    @property
    def feature_info(self) -> FeatureInfo:
        return FeatureInfo(self.levels, self.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [_channels_first(x) for x in self.run_stages(x, max(self.out_indices))]
        return [levels[i] for i in self.out_indices]


_WITH_SMALL_GROUPS = ("retinanet", "fcos", "atss", "mask_rcnn", "cascade_rcnn", "upernet")
_WITH_LARGE_GROUPS = ("cascade_mask_rcnn", "semantic_fpn")

FAMILY = Family(
    name="CrossFormer",
    paper="Wang et al., CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale Attention, arXiv 2108.00154",
    variants=VARIANTS,
    derived_buffers=DERIVED_BUFFERS,
    classifier=CrossFormer,
    pyramid=CrossFormerPyramid,
    any_size={"pad": True},
    # Of Mask R-CNN the 1x rows. What was not published has the groups of its like.
    dense_options={
        (method, f"crossformer_{size}"): LARGE_GROUPS if method in _WITH_LARGE_GROUPS else SMALL_GROUPS
        for method in _WITH_SMALL_GROUPS + _WITH_LARGE_GROUPS
        for size in ("small", "base", "large")
    },
    dense_options_3x={("mask_rcnn", f"crossformer_{size}"): LARGE_GROUPS for size in ("small", "base")},
    dense_preprocessing={
        (method, name): dict(multiple_of=32) for method in ("semantic_fpn", "upernet") for name in VARIANTS
    },
)

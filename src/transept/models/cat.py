"""CAT (Lin et al., "CAT: Cross Attention in Vision Transformer", arXiv 2106.05786).

Section 3    InnerPatchSelfAttention   IPSA: the pixels of one patch attend to each other
Section 3    CrossPatchSelfAttention   CPSA: in each channel by itself, the patches attend to each other
Section 3    CATBlock                  one of the two attentions, then an MLP
Section 3    CATStage                  units of three blocks: IPSA, CPSA, IPSA
Section 3    PatchProjection           half the resolution, twice the channels
Table 1      VARIANTS

A "patch" is a tile of `patch_size` x `patch_size` tokens (7 x 7), not the 4 x 4 pixels that make a token.
Module names are those of the official checkpoints, classification and dense, so these load as they are.

`cat_tiny_v2` is a reconstruction: the authors announced CAT-T-v2 (36M parameters, 3.9G operations, 81.7 % top-1)
and never published its configuration. Ours is the one nearest to these figures (35.8M, 4.0G) that keeps the width
of CAT-T; no released weights fit it.

Departures from the official code, without effect on the outputs:
- cross-patch attention multiplies its query by its key projection and its output by its value projection
  beforehand. Keys and values are then the patches themselves, which halves the work and the memory;
- the position index is computed, not read from the checkpoint (`DERIVED_BUFFERS`).
And where the official code fails:
- any image size: the absolute position encoding is resized, as the dense code does, and classification refuses
  with a sentence what does not divide into patches (the official model accepts one size), or pads with `pad=True`;
- the dense model takes maps with an odd side, as its unused twin class does (the official one raises an error);
- the sliced patch embedding runs, and gradient checkpointing is a choice (officially always on).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models import FeatureInfo
from torch import Tensor, nn

from transept.layers.checkpointing import run_block
from transept.layers.linear import Linear, linear
from transept.layers.position_bias import KeepsBias
from transept.layers.residual import Mlp
from transept.models.attention import AttentionWeights, Grid, ShowsAttention, grouped_map, token_weights, whole_map
from transept.models.backbone import Backbone, Family, ModelConfig, level_indices, pyramid_levels
from transept.ops.attention import softmax_attention
from transept.ops.interpolation import Size, resize_position_embedding
from transept.ops.tokens import merge_heads, split_heads, to_tokens
from transept.ops.windows import (
    from_channel_windows,
    from_windows,
    pad_to_multiple,
    relative_position_index,
    space_to_depth,
    to_channel_windows,
    to_windows,
)

DERIVED_BUFFERS = (r"^layers\.\d+\.(pre|post)_ipsa_blocks\.\d+\.attn\.relative_position_index$",)
"""Keys of official checkpoints that hold no learned value; we compute it."""

Stages = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class CATConfig(ModelConfig):
    """The columns of Table 1, and the switches of the official model."""

    embed_dim: int
    """Channels of the first stage; each later stage has twice as many."""
    depths: Stages
    """Units (IPSA, CPSA, IPSA) per stage; 0 leaves only the patch projection."""
    num_heads: Stages
    """Heads of inner-patch attention per stage. Cross-patch attention has one."""
    patch_size: int = 7
    """Tokens along the side of an attention patch."""
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    ape: bool = True
    """Add a learned absolute position encoding."""
    patch_norm: bool = True
    """LayerNorm after the patch embedding."""
    slice_embed: bool = False
    """Embed by two space-to-depth steps and a 1x1 convolution: the 4x4 convolution with its weights permuted."""
    pad: bool = False
    """Classify any image size by padding maps to whole patches, as the dense model always does."""

    def __post_init__(self) -> None:
        if not len(self.depths) == len(self.num_heads) == 4:
            raise ValueError(
                f"depths={self.depths} and num_heads={self.num_heads} need one number per stage, four each"
            )
        if min(self.depths) < 0 or not any(self.depths):
            raise ValueError(f"depths={self.depths} must not be negative, and one at least must be positive")
        for stage, (dim, num_heads) in enumerate(zip(self.dims, self.num_heads, strict=True)):
            if num_heads < 1 or dim % num_heads:
                raise ValueError(
                    f"num_heads[{stage}]={num_heads} must divide the {dim} channels of stage {stage}"
                    f" (embed_dim={self.embed_dim})"
                )
        if self.patch_size < 1:
            raise ValueError(f"patch_size={self.patch_size} must be positive; published models have 7")
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio={self.mlp_ratio} must be positive; published models have 4")

    @property
    def dims(self) -> list[int]:
        """Channels of each stage."""
        return [self.embed_dim * 2**stage for stage in range(4)]

    @property
    def grid(self) -> Size:
        """Rows and columns of tokens of the first stage at the native size."""
        height, width = self.img_size
        return -(-height // 4), -(-width // 4)


def _variant(embed_dim: int, depths: Stages) -> CATConfig:
    """A published model: 224 pixels, heads of 32 channels."""
    num_heads = tuple(embed_dim * 2**stage // 32 for stage in range(4))
    return CATConfig(img_size=(224, 224), embed_dim=embed_dim, depths=depths, num_heads=num_heads)


VARIANTS = {  # Table 1     dim  depths           parameters
    "cat_tiny": _variant(64, (1, 1, 3, 1)),  #  16.9 M
    "cat_small": _variant(96, (1, 1, 3, 1)),  # 37.3 M
    "cat_base": _variant(96, (1, 1, 6, 1)),  #  51.5 M
    # Not in the paper: our reconstruction of CAT-T-v2, whose configuration was never published.
    "cat_tiny_v2": _variant(64, (1, 1, 4, 3)),  # 35.8 M
}


class InnerPatchSelfAttention(KeepsBias, ShowsAttention):
    """IPSA: multi-head attention among the tokens of one patch, with a learned bias per relative position.

    Sides that are no multiple of the patch are padded with zeros, which take part: there is no mask. Two maps of
    56 x 56 in patches of 7 x 7, `2 56 56 c`, are 2 * 8 * 8 sequences of 49 tokens, `128 49 c`.
    """

    attention_kind = "inner-patch"
    relative_position_index: Tensor

    def __init__(self, dim: int, patch_size: int, num_heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * patch_size - 1) ** 2, num_heads))
        self.register_buffer(
            "relative_position_index", relative_position_index((patch_size, patch_size)), persistent=False
        )
        self.qkv = Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = Linear(dim, dim)

    def init_non_persistent_buffers(self) -> None:
        """What no file holds, for a model that was built on the meta device; timm and transformers call it."""
        self.relative_position_index.copy_(relative_position_index((self.patch_size, self.patch_size)))

    def forward(self, x: Tensor) -> Tensor:  # b h w c -> b h w c
        h, w = x.shape[1:3]
        x = pad_to_multiple(x, self.patch_size)
        out = softmax_attention(*self.qkv_heads(x), self.bias()[None])  # (b n) m t d
        x = from_windows(self.proj(merge_heads(out)), (self.patch_size, self.patch_size), x.shape)
        return x[:, :h, :w]

    def qkv_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `(b n) m t d`: n patches, t tokens in each."""
        q, k, v = self.qkv(to_windows(x, (self.patch_size, self.patch_size))).chunk(3, dim=-1)
        return split_heads(q, self.num_heads), split_heads(k, self.num_heads), split_heads(v, self.num_heads)

    def bias(self) -> Tensor:
        """`m t t`, what each head adds to the logit of (query, key)."""
        return self.keep((), [self.relative_position_bias_table], self.compute_bias)

    def compute_bias(self) -> Tensor:
        # The small table is turned around and not the large result.
        table = self.relative_position_bias_table.t().contiguous()
        return table.index_select(1, self.relative_position_index.flatten()).unflatten(1, (self.patch_size**2, -1))

    def attention(self, x: Tensor) -> Tensor:
        """The weights `b n m t t` on the padded map: n patches in row order, rows sum to one."""
        q, k, _ = self.qkv_heads(pad_to_multiple(x, self.patch_size))
        logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + self.bias()
        return logits.softmax(dim=-1).unflatten(0, (len(x), -1))

    def attention_weights(self, grid: Grid, x: Tensor) -> AttentionWeights:
        side = self.patch_size
        patches = grouped_map(grid, (0, -grid[1] % side, 0, -grid[0] % side), (side, side), x)
        return token_weights(self.attention(x).flatten(0, 1), patches)


class CrossPatchSelfAttention(nn.Module, ShowsAttention):
    """CPSA: in each channel by itself, attention among the patches, each a vector of its `t` token values.

    One head and one set of weights for all channels; a channel's output depends on that channel only. With
    patches X (`n t`), projections W and biases w, it is

        softmax((X Wq + wq) (X Wk + wk)^T / sqrt(t)) (X Wv + wv) Wo + wo
      = softmax((X Wq Wk^T + wq Wk^T) X^T / sqrt(t)) X (Wv Wo) + (wv Wo + wo)

    as terms that are constant along the keys cancel in the softmax, and its rows sum to one. We compute the second
    line: two products of size t x t per patch instead of four, and X itself serves as keys and values. Two maps of
    56 x 56 in patches of 7 x 7, `2 56 56 c`, are 2 * c sequences of 64 patches with 49 values each, `(2 c) 64 49`.
    """

    attention_kind = "cross-patch"

    def __init__(self, patch_size: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.qkv = Linear(patch_size**2, 3 * patch_size**2, bias=qkv_bias)
        self.proj = Linear(patch_size**2, patch_size**2)

    def forward(self, x: Tensor) -> Tensor:  # b h w c -> b h w c
        h, w = x.shape[1:3]
        x = pad_to_multiple(x, self.patch_size)
        patches = to_channel_windows(x, self.patch_size).unsqueeze(1)  # (b c) 1 n t
        out = softmax_attention(linear(patches, *self.query_key()), patches, patches)
        out = linear(out, *self.value_out())
        return from_channel_windows(out, self.patch_size, x.shape)[:, :h, :w]

    def query_key(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the query projection followed by the transposed key projection."""
        query, key, _ = self.qkv.weight.chunk(3)
        if self.qkv.bias is None:
            return key.t() @ query, None
        query_bias, key_bias, _ = self.qkv.bias.chunk(3)
        bias = linear(query_bias, key.t())
        # The softmax cancels the bias of the keys. In training it stays in the graph, with its gradient of zero.
        return key.t() @ query, bias + 0 * key_bias if self.training else bias

    def value_out(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the value projection followed by the output projection."""
        value = self.qkv.weight.chunk(3)[2]
        bias = self.proj.bias
        if self.qkv.bias is not None:
            bias = linear(self.qkv.bias.chunk(3)[2], self.proj.weight, bias)
        return self.proj.weight @ value, bias

    def attention(self, x: Tensor) -> Tensor:
        """The weights `b c n n` on the padded map: n patches in row order, rows sum to one."""
        patches = to_channel_windows(pad_to_multiple(x, self.patch_size), self.patch_size)
        logits = linear(patches, *self.query_key()) @ patches.transpose(-2, -1) / self.patch_size
        return logits.softmax(dim=-1).unflatten(0, (len(x), -1))

    def attention_weights(self, grid: Grid, x: Tensor) -> AttentionWeights:
        """One head with weights of its own in every channel: the axis m runs over channels."""
        patches = whole_map((-(-grid[0] // self.patch_size), -(-grid[1] // self.patch_size)), x)
        return token_weights(self.attention(x), patches, cell=self.patch_size)


class CATBlock(nn.Module):
    """Attention inner or across patches, then an MLP, each behind its LayerNorm and drop path."""

    def __init__(self, dim: int, attn: nn.Module, mlp_ratio: float, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # b h w c -> b h w c
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchProjection(nn.Module):
    """`b h w c -> b ceil(h/2) ceil(w/2) 2c`: squares of 2 x 2 tokens side by side, LayerNorm, linear map."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=1e-5)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(space_to_depth(pad_to_multiple(x, 2))))


class CATStage(nn.Module):
    """Units of three blocks (IPSA, CPSA, IPSA) at one resolution.

    The patch projection to the next stage is kept here, as the checkpoints have it, but the model applies it: what
    a stage returns is its feature level.
    """

    def __init__(
        self, config: CATConfig, stage: int, patch_size: int, drop_path_rates: Sequence[float], *, downsample: bool
    ) -> None:
        super().__init__()
        dim = config.dims[stage]

        def blocks(attention: Callable[[], nn.Module]) -> nn.ModuleList:
            # The three blocks of a unit share its rate.
            return nn.ModuleList(CATBlock(dim, attention(), config.mlp_ratio, rate) for rate in drop_path_rates)

        def inner() -> nn.Module:
            return InnerPatchSelfAttention(dim, patch_size, config.num_heads[stage], qkv_bias=config.qkv_bias)

        def cross() -> nn.Module:
            return CrossPatchSelfAttention(patch_size, qkv_bias=config.qkv_bias)

        self.pre_ipsa_blocks = blocks(inner)
        self.cpsa_blocks = blocks(cross)
        self.post_ipsa_blocks = blocks(inner)
        # The last stage has none, and no key for it.
        self.downsample: nn.Module = PatchProjection(dim) if downsample else nn.Identity()

    def forward(self, x: Tensor, checkpointing: bool = False) -> Tensor:  # b h w c -> b h w c
        for unit in zip(self.pre_ipsa_blocks, self.cpsa_blocks, self.post_ipsa_blocks, strict=True):
            for block in unit:
                x = run_block(block, x, checkpointing=checkpointing)
        return x


class PatchEmbed(nn.Module):
    """Squares of 4 x 4 pixels to tokens: `b 3 H W -> b h w c`, `h = ceil(H / 4)`; zeros complete the last squares."""

    def __init__(self, in_chans: int, dim: int, *, norm: bool, slices: bool) -> None:
        super().__init__()
        self.slices = slices
        self.proj = nn.Conv2d(16 * in_chans, dim, 1) if slices else nn.Conv2d(in_chans, dim, 4, stride=4)
        self.norm = nn.LayerNorm(dim, eps=1e-5) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # Channels last, so that the tokens are a view of what the convolution returns.
        x = pad_to_multiple(x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1), 4)  # b H W 3
        if self.slices:
            x = space_to_depth(space_to_depth(x))  # b h w (phase2 phase1 3)
        return self.norm(self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class CATTrunk(Backbone):
    """Patch embedding, position encoding and stages: what classifier and pyramid share."""

    channels_last = True

    def __init__(
        self,
        config: CATConfig,
        in_chans: int,
        drop_path_rate: float,
        patch_sizes: Sequence[int],
        ape_shape: tuple[int, ...],
    ) -> None:
        super().__init__(config, in_chans=in_chans, num_features=config.dims[-1])
        self.pretrained_cfg["crop_pct"] = 0.875
        self.dims = config.dims
        self.grid = config.grid
        self.patch_embed = PatchEmbed(in_chans, config.embed_dim, norm=config.patch_norm, slices=config.slice_embed)
        self.ape = nn.Parameter(torch.zeros(1, *ape_shape)) if config.ape else None
        # The rate grows from unit to unit through the whole network.
        rates = [drop_path_rate * unit / max(sum(config.depths) - 1, 1) for unit in range(sum(config.depths))]
        starts = [sum(config.depths[:stage]) for stage in range(5)]
        self.layers = nn.ModuleList(
            CATStage(config, stage, patch_sizes[stage], rates[slice(*starts[stage : stage + 2])], downsample=stage < 3)
            for stage in range(4)
        )
        self.norm: nn.Module = nn.Identity()

    def layer_position(self, name: str) -> tuple[int, int]:
        """A unit has three blocks."""
        stage, unit = super().layer_position(name)
        return stage, 3 * unit + ("pre_ipsa" not in name) + ("post_ipsa" in name)

    def position_encoding(self, grid: Size) -> Tensor:
        """The absolute position encoding `1 h w c` on this grid."""
        raise NotImplementedError

    def level_norm(self, level: int) -> nn.Module:
        """The norm that the features of a level leave through, where there is one."""
        raise NotImplementedError

    def check_size(self, size: Size) -> None:
        """Refuse an image that the stages cannot cut into patches."""

    def embed(self, x: Tensor) -> Tensor:
        """Image `b 3 H W` to tokens `b h w c`, positions included."""
        self.check_size((x.shape[-2], x.shape[-1]))
        x = self.patch_embed(x)
        return x if self.ape is None else x + self.position_encoding((x.shape[1], x.shape[2]))

    def levels(self, x: Tensor, last: int) -> list[Tensor]:
        """The maps `b h w c` that the stages up to `last` give for an image, before any norm."""
        x = self.embed(x)
        levels = []
        for stage, layer in zip(range(last + 1), cast("Iterable[CATStage]", self.layers), strict=False):
            x = layer(x, self.grad_checkpointing)
            levels.append(x)
            if stage < last:
                x = run_block(layer.downsample, x, checkpointing=self.grad_checkpointing)
        return levels

    @property
    def feature_info(self) -> Any:
        return [
            {"num_chs": self.dims[i], "reduction": 4 * 2**i, "module": f"layers.{i}"} for i in range(len(self.layers))
        ]

    def forward_features(self, x: Tensor) -> Tensor:
        """Image `b 3 H W` to the normalised map `b h w c` of the last stage."""
        return self.norm(self.levels(x, last=len(self.layers) - 1)[-1])

    def pool(self, x: Tensor) -> Tensor:
        return x.mean(dim=(1, 2)) if self.global_pool else x

    @property
    def num_levels(self) -> int:
        return len(self.layers)

    def intermediates(
        self, x: Tensor, take: list[int], *, norm: bool, stop: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """As `Backbone` says; `norm` applies the norm that a level has (in the classifier only the last has one)."""
        levels = self.levels(x, last=take[-1] if stop else len(self.layers) - 1)
        taken = [self.level_norm(i)(levels[i]) if norm else levels[i] for i in take]
        return (None if stop else self.norm(levels[-1])), [level.permute(0, 3, 1, 2) for level in taken]

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last of `indices` (the final norm goes with the last) and the classifier."""
        take = level_indices(indices, len(self.layers))
        if prune_norm or take[-1] + 1 < len(self.layers):
            self.norm = nn.Identity()
        self.layers = self.layers[: take[-1] + 1]
        self.layers[-1].downsample = nn.Identity()
        self.num_features = self.head_hidden_size = self.dims[take[-1]]
        if prune_head:
            self.reset_classifier(0)
        return take

    def init_weights(self) -> None:
        """Linear layers and position tables: normal with std 0.02, biases 0. The convolution keeps the default."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, InnerPatchSelfAttention):
                trunc_normal_(module.relative_position_bias_table, std=0.02)
        if self.ape is not None:
            trunc_normal_(self.ape, std=0.02)

    def no_weight_decay(self) -> set[str]:
        return {
            name
            for name, _ in self.named_parameters()
            if name == "ape" or name.endswith("relative_position_bias_table")
        }

    def group_matcher(self, coarse: bool = False) -> dict:
        # timm's ordinal 99999 joins the group before: the last block of the stage, or of the network.
        if coarse:
            blocks = [(r"^layers\.(\d+)", None), (r"^norm", (99999,))]
        else:
            blocks = [
                (r"^layers\.(\d+)\.pre_ipsa_blocks\.(\d+)", (0,)),
                (r"^layers\.(\d+)\.cpsa_blocks\.(\d+)", (1,)),
                (r"^layers\.(\d+)\.post_ipsa_blocks\.(\d+)", (2,)),
                (r"^layers\.(\d+)\.downsample", (99999,)),
                (r"^norm", (99999,)),
            ]
        return {"stem": r"^ape|^patch_embed", "blocks": blocks}


class CAT(CATTrunk):
    """The classifier: `b 3 H W -> b num_classes` logits.

    Height and width must divide into patches at every stage (for 7 x 7 patches: multiples of 224), unless `pad`.
    The position encoding has the shape of the native size and is resized to others.
    """

    def __init__(
        self, config: CATConfig, *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.0
    ) -> None:
        patch_sizes = [config.patch_size] * 4 if config.pad else _shrunk_patch_sizes(config, config.img_size)
        if not config.pad and not _divides(config.img_size, patch_sizes, config.depths):
            # Another native size may shrink the patches of the late stages.
            nearest = _nearest_sizes(
                config.img_size,
                config.patch_size,
                lambda size: _divides(size, _shrunk_patch_sizes(config, size), config.depths),
            )
            raise ValueError(_refusal("img_size", config.img_size, config.patch_size, nearest))
        rows, cols = config.grid
        super().__init__(config, in_chans, drop_path_rate, patch_sizes, (rows * cols, config.embed_dim))
        self.patch_sizes, self.depths, self.pad = patch_sizes, config.depths, config.pad
        self.norm = nn.LayerNorm(self.num_features, eps=1e-5)
        self.reset_classifier(num_classes)
        self.init_weights()

    def position_encoding(self, grid: Size) -> Tensor:
        assert self.ape is not None
        return resize_position_embedding(self.ape, self.grid, grid).unflatten(1, grid)

    def level_norm(self, level: int) -> nn.Module:
        return self.norm if level == len(self.layers) - 1 else nn.Identity()

    def check_size(self, size: Size) -> None:
        if not self.pad and not _divides(size, self.patch_sizes, self.depths):
            nearest = _nearest_sizes(
                size, math.lcm(*self.patch_sizes), lambda other: _divides(other, self.patch_sizes, self.depths)
            )
            raise ValueError(_refusal("image", size, self.patch_sizes[0], nearest))


def _shrunk_patch_sizes(config: CATConfig, size: Size) -> list[int]:
    """The patch of each stage for a native size: a map shorter than `patch_size` is one patch wide or high."""
    return [min(config.patch_size, max(min(size) // (4 * 2**stage), 1)) for stage in range(4)]


def _divides(size: Size, patch_sizes: Sequence[int], depths: Sequence[int]) -> bool:
    """Whether every map is whole (the last has stride 32), and divides into patches where its stage has units."""
    units = [
        4 * 2**stage * patch for stage, (patch, depth) in enumerate(zip(patch_sizes, depths, strict=True)) if depth
    ]
    return all(side > 0 and side % math.lcm(32, *units) == 0 for side in size)


def _nearest_sizes(size: Size, reach: int, works: Callable[[Size], bool]) -> list[Size]:
    """The nearest sizes that work, one inside and one around `size`, from multiples of 32 up to `reach` steps away."""
    sides = range(32, max(size) + 32 * reach + 1, 32)
    working = [other for other in product(sides, sides) if works(other)]
    working.sort(key=lambda other: abs(other[0] - size[0]) + abs(other[1] - size[1]))
    inside = [other for other in working if other[0] <= size[0] and other[1] <= size[1]]
    around = [other for other in working if other[0] >= size[0] and other[1] >= size[1]]
    return inside[:1] + around[:1]


def _refusal(what: str, size: Size, patch_size: int, nearest: Sequence[Size]) -> str:
    sizes = " or ".join(f"{height}x{width}" for height, width in nearest)
    return (
        f"{what} is {size[0]}x{size[1]} (height x width), which the stages cannot cut into"
        f" {patch_size}x{patch_size} patches; use {sizes}, or build the model with pad=True"
    )


class CATPyramid(CATTrunk):
    """The backbone of the official detection and segmentation models: maps of strides 4, 8, 16, 32.

    Any height and width: maps are padded with zeros to whole patches inside each attention, without a mask. Each
    level leaves before the patch projection, through a LayerNorm of its own. The position encoding, `1 c h w` with
    the shape of the native (pretraining) size, is resized to the image.
    """

    is_pyramid = True

    def __init__(
        self,
        config: CATConfig,
        *,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] = (0, 1, 2, 3),
    ) -> None:
        patch_sizes = [config.patch_size] * 4
        super().__init__(config, in_chans, drop_path_rate, patch_sizes, (config.embed_dim, *config.grid))
        self.out_indices = pyramid_levels(out_indices)
        for level in sorted(set(self.out_indices)):
            self.add_module(f"norm{level}", nn.LayerNorm(self.dims[level], eps=1e-5))
        self.head = nn.Identity()
        self.init_weights()

    def position_encoding(self, grid: Size) -> Tensor:
        assert self.ape is not None
        return resize_position_embedding(to_tokens(self.ape), self.grid, grid).unflatten(1, grid)

    def level_norm(self, level: int) -> nn.Module:
        return getattr(self, f"norm{level}", nn.Identity())

    @property
    def feature_info(self) -> FeatureInfo:
        levels = [{"num_chs": self.dims[i], "reduction": 4 * 2**i, "module": f"norm{i}"} for i in range(4)]
        return FeatureInfo(levels, self.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = self.levels(x, last=max(self.out_indices))
        return [self.level_norm(level)(levels[level]).permute(0, 3, 1, 2) for level in self.out_indices]


FAMILY = Family(
    name="CAT",
    paper="Lin et al., CAT: Cross Attention in Vision Transformer, arXiv 2106.05786",
    variants=VARIANTS,
    derived_buffers=DERIVED_BUFFERS,
    classifier=CAT,
    pyramid=CATPyramid,
    notes={
        "cat_tiny_v2": "a reconstruction: the configuration of CAT-T-v2 was never published, no released weights fit"
    },
    any_size={"pad": True},
    # CAT-B was published with two numbers of heads, that of the classifier and this one.
    dense_options={(method, "cat_base"): dict(num_heads=(4, 8, 16, 32)) for method in ("mask_rcnn", "fcos", "atss")},
    dense_preprocessing={
        ("fcos", f"cat_{size}"): dict(
            mean=(102.9801 / 255, 115.9465 / 255, 122.7717 / 255), std=(1 / 255, 1 / 255, 1 / 255), bgr=True
        )
        for size in ("small", "base")
    },
)

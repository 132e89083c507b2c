"""CabViT (Zhang et al., "CabViT: Cross Attention among Blocks for Vision Transformer", arXiv 2211.07198).

Published again as FcaFormer (ICCV 2023): the same networks under the same parameter names.

Cross attention among blocks   CrossAttentionAmongBlocks   tokens attend to tokens and to digests of earlier blocks
Token merge and enhancement    CabBlock                    a long-stride convolution makes the digest, a short one mixes
Hybrid model, CabViT-H         CabViTH, ConvStage, CabStage   two convolutional stages, two attentive ones
Plain model, CabViT-P          CabViTP                     DeiT's outline, with a class token
Variants                       VARIANTS

Module names are those of the official code, so its files load as they are.

`cabvit_p_l0` is what the official code computes: plain DeiT-Ti. Its blocks are told their depth and ignore it, so
nothing crosses blocks, against the paper. `cabvit_p_l0_cross` is the model that the paper describes, in **our design**:
the CaB block of CabViT-H on the 14 x 14 patches, 5.87 M parameters (5.9 M published). The class token is a query and a
key like any other, without position bias; convolutions leave it out. In the last block only what it reads is left:
no local convolution, no biases among patches. No weights exist for it.

`features_only=True` runs the attentive stages of CabViT-H in windows of the native grid (14 and 7 at 224 pixels), as
FcaFormer's dense models do. Block by block the map is padded with zeros to whole windows, in turn at the left and top
and at the right and bottom. Where there is padding, a window's digests thus come from shifted places, as trained.

Departures from the official code, all without effect on the outputs of official weights:
- any image size: grids are read from the maps, and biases and scaling factors learned on the native grid are resized;
  officially sides are fixed at construction, and multiples of 32;
- the digests' queries, computed there and thrown away, are not computed;
- `conv_block="cf"`: the scales of its two branches are parameters; officially they are never registered, hence neither
  saved, nor moved to the GPU, nor trained. A file without them is given their initial value, which is what it ran with.
  That file's and the "mb" block's names are ours: no checkpoint of either was published;
- the unused constructor argument `head_init_scale` is gone.

Kept, since the weights were trained so: two LayerNorms before each MLP of a CaB block; no residual around the local
convolution; scaling factors before a LayerNorm, which leaves them little but their sign.

Axes beside the usual ones: s tokens in one digest, i digests so far.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from timm.layers import DropPath, LayerNorm2d, PatchEmbed, trunc_normal_
from timm.layers import Mlp as ConvMlp
from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention

from transept.layers.checkpointing import run_block
from transept.layers.position_bias import KeepsBias
from transept.layers.projection import QueryKeyValue
from transept.layers.residual import Mlp, add_branch
from transept.models.backbone import Backbone, Family, ModelConfig, Pyramid, pyramid_levels
from transept.ops.attention import attend
from transept.ops.interpolation import resize_position_embedding
from transept.ops.tokens import merge_heads, split_heads, to_map, to_tokens
from transept.ops.windows import from_windows, to_windows

DERIVED_BUFFERS: tuple[str, ...] = ()
"""Official keys that are computed here: none, the official code does not save its index tables."""

Grid = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class CabViTHConfig(ModelConfig):
    """CabViT-H: convolutional stages 0 and 1, attentive stages 2 and 3."""

    embed_dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int]
    """Of stages 2 and 3; heads have 32 channels in every published model."""
    conv_block: Literal["convnext", "cf", "mb"] = "convnext"
    """Blocks of stages 0 and 1: ConvNeXt's (published), convolutional token mixing and MLP, or MobileNet's."""
    digest_stride: int = 4
    """Stride of the convolution that makes the digests. With 2, cabvit_h_l2 costs the 3.9 G that the paper states."""
    layer_scale_init: float = 1e-6
    pyramid_dims: tuple[int, int, int, int] | None = (96, 192, 384, 768)
    """Channels of the levels with `features_only=True`, as in FcaFormer's dense models; None: those of the stages."""

    def __post_init__(self) -> None:
        for option, length in (("embed_dims", 4), ("depths", 4), ("num_heads", 2)):
            if len(values := getattr(self, option)) != length or min(values) < 1:
                raise ValueError(f"{option}={values}; give {length} positive numbers, one per stage that has it")
        if self.embed_dims[0] % 2:
            raise ValueError(f"embed_dims[0]={self.embed_dims[0]} must be even: the stem's first half has half of it")
        for dim, num_heads in zip(self.embed_dims[2:], self.num_heads, strict=True):
            _check_heads(dim, num_heads)
        if self.conv_block not in ("convnext", "cf", "mb"):
            raise ValueError(f"conv_block={self.conv_block!r}; use 'convnext' (published), 'cf' or 'mb'")
        if self.pyramid_dims is not None and (len(self.pyramid_dims) != 4 or min(self.pyramid_dims) < 1):
            raise ValueError(f"pyramid_dims={self.pyramid_dims}; give four numbers of channels, or None")
        _check_block(self.digest_stride, self.layer_scale_init)

    @property
    def grids(self) -> dict[str, Grid]:
        """Rows and columns of the attentive stages at the native size."""
        return {"layer_2": _shrink(self.img_size, 16), "layer_3": _shrink(self.img_size, 32)}


@dataclass(frozen=True, kw_only=True, slots=True)
class CabViTPConfig(ModelConfig):
    """CabViT-P: one stage of patches with a class token."""

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int = 16
    cross_blocks: bool
    """Attention reaches the digests of earlier blocks, as in the paper; off, the network is DeiT, as released."""
    digest_stride: int = 4
    """With `cross_blocks`: stride of the convolution that makes the digests."""
    layer_scale_init: float = 1e-6
    """With `cross_blocks`: initial value of the scales of both branches."""

    def __post_init__(self) -> None:
        _check_heads(self.embed_dim, self.num_heads)
        if self.depth < 1:
            raise ValueError(f"depth={self.depth} must be at least 1")
        if self.patch_size not in (4, 8, 16):
            raise ValueError(f"patch_size={self.patch_size}; use 16 (published), 8 or 4")
        if not self.cross_blocks:
            for option, default in (("digest_stride", 4), ("layer_scale_init", 1e-6)):
                if (value := getattr(self, option)) != default:
                    raise ValueError(f"{option}={value} has no effect without cross_blocks; set cross_blocks=True")
        _check_block(self.digest_stride, self.layer_scale_init)

    @property
    def grids(self) -> dict[str, Grid]:
        """Rows and columns of the one stage's patches at the native size."""
        return {"blocks": _shrink(self.img_size, self.patch_size)}


def _shrink(grid: Grid, stride: int) -> Grid:
    """Rows and columns after `stride`, rounded up."""
    return -(-grid[0] // stride), -(-grid[1] // stride)


def _check_heads(dim: int, num_heads: int) -> None:
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"a width of {dim} must be a multiple of its number of heads, {num_heads}")


def _check_block(digest_stride: int, layer_scale_init: float) -> None:
    if digest_stride < 1:
        raise ValueError(f"digest_stride={digest_stride} must be at least 1; 4 is published")
    if layer_scale_init <= 0:
        raise ValueError(f"layer_scale_init={layer_scale_init} must be above 0; 1e-6 is published")


def _hybrid(dims: tuple[int, int, int, int], depths: tuple[int, int, int, int]) -> CabViTHConfig:
    num_heads = (dims[2] // 32, dims[3] // 32)
    return CabViTHConfig(img_size=(224, 224), embed_dims=dims, depths=depths, num_heads=num_heads)


def _plain(*, cross_blocks: bool) -> CabViTPConfig:
    return CabViTPConfig(img_size=(224, 224), embed_dim=192, depth=12, num_heads=3, cross_blocks=cross_blocks)


VARIANTS: dict[str, CabViTHConfig | CabViTPConfig] = {  #          parameters
    "cabvit_h_l1": _hybrid((64, 128, 192, 320), (2, 2, 6, 2)),  #      6.2 M
    "cabvit_h_l2": _hybrid((96, 192, 320, 480), (2, 2, 7, 2)),  #     16.3 M
    "cabvit_h_l3": _hybrid((96, 192, 320, 512), (3, 6, 12, 3)),  #    27.9 M
    "cabvit_h_l4": _hybrid((128, 256, 512, 768), (3, 6, 12, 3)),  #   65.6 M, FcaFormer only
    "cabvit_p_l0": _plain(cross_blocks=False),  #                      5.7 M, as released
    "cabvit_p_l0_cross": _plain(cross_blocks=True),  #                 5.9 M, our design
}


def offset_index(grid: Grid, device: torch.device) -> Tensor:
    """For each query and key of a grid, `(h w) (h w)`: `|rows apart| * w + |columns apart|`."""
    h, w = grid
    rows, columns = (torch.arange(side, device=device) for side in grid)
    rows, columns = (rows[:, None] - rows).abs(), (columns[:, None] - columns).abs()
    return (rows[:, None, :, None] * w + columns[:, None]).view(h * w, h * w)


def resize_offset_table(table: Tensor, grid: Grid, new_grid: Grid) -> Tensor:
    """`m (h w)`, a bias per absolute offset within `grid`, for another grid; unchanged at that grid.

    Bicubic between offset 0 and the largest one, which stay what they are.
    """
    if grid == new_grid:
        return table
    maps = table.float().unflatten(1, grid).unsqueeze(0)
    maps = interpolate(maps, size=new_grid, mode="bicubic", align_corners=True)
    return maps.flatten(2).squeeze(0).to(table.dtype)


def resize_digest_table(table: Tensor, grid: Grid, new_grid: Grid) -> Tensor:
    """`... (i h w)`, a number per token of every digest, for digests of another grid; unchanged at that grid.

    Bicubic with corners not aligned, as for position embeddings.
    """
    if grid == new_grid:
        return table
    maps = table.float().view(1, -1, *grid)
    maps = interpolate(maps, size=new_grid, mode="bicubic", align_corners=False)
    return maps.reshape(*table.shape[:-1], -1).to(table.dtype)


class CrossAttentionAmongBlocks(KeepsBias):
    """Attention of the tokens to themselves and, jointly, to the digests of all earlier blocks of their stage.

    One projection serves tokens and digests; digests ask nothing. A pair of tokens has a bias by its absolute offset, a
    digest's token one for all queries. A learned factor per digest token precedes the digests' LayerNorm. Class
    tokens, if any, come first in the sequence.

    The parameters of a CaB block are flat in the official files, so `CabBlock` extends this class and does not hold it.
    Those for offsets and digests have the native grid's shape.
    """

    def __init__(
        self, dim: int, num_heads: int, grid: Grid, *, index: int, digest_stride: int, offset_bias: bool = True
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.grid = grid
        self.digest_stride = digest_stride
        self.index = index
        """Number of earlier blocks in the stage."""
        h, w = grid
        self.norm1 = nn.LayerNorm(dim)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, h * w)) if offset_bias else None
        self.qkv = QueryKeyValue(dim)
        self.proj = nn.Linear(dim, dim)
        if index > 0:
            h, w = self.digest_grid = _shrink(grid, digest_stride)
            self.s_token_bias = nn.Parameter(torch.zeros(1, num_heads, 1, index * h * w))
            self.s_scale_factors = nn.Parameter(torch.ones(1, index * h * w, 1))
            self.s_norm = nn.LayerNorm(dim)

    def cross_attend(self, x: Tensor, digests: Sequence[Tensor], grid: Grid, offsets: Tensor) -> Tensor:
        """Tokens `b n c` of `grid` and earlier digests `b s c` to what the tokens gather, `b n c`.

        `offsets` is `offset_index(grid)`, which the blocks of a stage share.
        """
        q, k, v = self._project(x, digests, grid)
        return self.proj(merge_heads(scaled_dot_product_attention(q, k, v, attn_mask=self._bias(x, grid, offsets))))

    def attention(self, x: Tensor, digests: Sequence[Tensor], grid: Grid, offsets: Tensor) -> Tensor:
        """The weights `b m n (n + i s)` of `cross_attend`; rows sum to one."""
        q, k, _ = self._project(x, digests, grid)
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1) + self._bias(x, grid, offsets)).softmax(dim=-1)

    def _project(self, x: Tensor, digests: Sequence[Tensor], grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `b m n d`, keys and values `b m (n + i s) d`."""
        x = self.norm1(x)
        if self.index == 0:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            factors = self.s_scale_factors.transpose(1, 2)
            factors = resize_digest_table(factors, self.digest_grid, _shrink(grid, self.digest_stride))
            calibrated = torch.cat(list(digests), dim=1) * factors.transpose(1, 2)
            sources = torch.cat([x, self.s_norm(calibrated)], dim=1)
            q, (k, v) = self.qkv.query(x), self.qkv.key_value(sources)
        return split_heads(q, self.num_heads), split_heads(k, self.num_heads), split_heads(v, self.num_heads)

    def _bias(self, x: Tensor, grid: Grid, offsets: Tensor) -> Tensor:
        """What the logits gain, `b m n (n + i s)`. Four axes: with three, the CPU's fused kernel refuses it."""
        n = x.shape[1]
        tables = [self.attention_biases, self.s_token_bias if self.index > 0 else None]
        present = [table for table in tables if table is not None]
        if present:
            bias = self.keep((*grid, n), present, lambda: self._compute_bias(n, grid, offsets))
        else:
            bias = self._compute_bias(n, grid, offsets)
        return bias.expand(x.shape[0], -1, n, -1)

    def _compute_bias(self, n: int, grid: Grid, offsets: Tensor) -> Tensor:
        """`1 m n (n + i s)`, or with one row where the bias does not depend on the query."""
        if self.attention_biases is None:
            bias = self.qkv.weight.new_zeros(1, self.num_heads, 1, n)
        else:
            table = resize_offset_table(self.attention_biases, self.grid, grid)
            # index_select is five times faster than indexing here.
            bias = table.index_select(1, offsets.flatten()).view(1, -1, *offsets.shape)
            if num_class_tokens := n - offsets.shape[0]:
                bias = pad(bias, (num_class_tokens, 0, num_class_tokens, 0))
        if self.index > 0:
            table = resize_digest_table(self.s_token_bias, self.digest_grid, _shrink(grid, self.digest_stride))
            bias = torch.cat([bias, table.expand(-1, -1, bias.shape[2], -1)], dim=-1)
        return bias


class ConvBN(nn.Sequential):
    """A convolution without bias, then BatchNorm."""

    def __init__(self, dim_in: int, dim_out: int, kernel_size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(
            dim_in, dim_out, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(dim_out)


class NormedMlp(Mlp):
    """An MLP that begins with a LayerNorm of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, hidden_features=4 * dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:  # b n c -> b n c
        return super().forward(self.norm(x), scale)


def _add_scaled(x: Tensor, branch: Tensor, scale: Tensor | None, drop_path: nn.Module) -> Tensor:
    """`x + drop_path(scale * branch)`, in one pass where nothing is dropped."""
    if drop_path.training and isinstance(drop_path, DropPath):
        return x + drop_path(branch if scale is None else scale * branch)
    return x + branch if scale is None else torch.addcmul(x, scale, branch)


class CabBlock(CrossAttentionAmongBlocks):
    """Cross attention among blocks, token merge and enhancement, MLP.

    The digest, for later blocks, is taken before the local convolution, which replaces the tokens that it mixes.
    `for_class_token`: without the parts that only patches see, which no gradient would reach.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        *,
        index: int,
        digests: bool,
        for_class_token: bool,
        digest_stride: int,
        layer_scale_init: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__(
            dim, num_heads, grid, index=index, digest_stride=digest_stride, offset_bias=not for_class_token
        )
        self.gamma_1: Tensor | None
        self.gamma_2: Tensor | None
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((dim,), float(layer_scale_init))) for _ in range(2))
        self.dw_conv = (
            nn.Conv2d(dim, dim, 7, stride=digest_stride, padding=3, groups=dim, bias=False) if digests else None
        )
        self.local_conv = ConvBN(dim, dim, 3, groups=dim) if not for_class_token else None
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = NormedMlp(dim)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(
        self, x: Tensor, digests: Sequence[Tensor], grid: Grid, offsets: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens `b n c` and earlier digests `b s c` to tokens and this block's digest, if it makes one."""
        x = _add_scaled(x, self.cross_attend(x, digests, grid, offsets), self.gamma_1, self.drop_path)
        num_class_tokens = x.shape[1] - grid[0] * grid[1]
        tokens = to_map(x[:, num_class_tokens:], grid)
        digest = None if self.dw_conv is None else to_tokens(self.dw_conv(tokens))
        if self.local_conv is not None:
            mixed = to_tokens(self.local_conv(tokens))
            x = torch.cat([x[:, :num_class_tokens], mixed], dim=1) if num_class_tokens else mixed
        return add_branch(x, self.mlp, self.norm2(x), scale=self.gamma_2, drop_path=self.drop_path), digest


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7 convolution, LayerNorm, MLP, scale, and one residual around them all."""

    def __init__(self, dim: int, layer_scale_init: float, drop_path_rate: float) -> None:
        super().__init__()
        self.gamma: Tensor | None = nn.Parameter(torch.full((dim,), float(layer_scale_init)))
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # b c h w -> b c h w, channels last in memory
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))  # b h w c
        y = self.pwconv2(self.act(self.pwconv1(y)))
        return _add_scaled(x.permute(0, 2, 3, 1), y, self.gamma, self.drop_path).permute(0, 3, 1, 2)


class CFBlock(nn.Module):
    """A transformer block whose token mixing is a depthwise 3x3 convolution. Not in a published model."""

    def __init__(self, dim: int, layer_scale_init: float, drop_path_rate: float) -> None:
        super().__init__()
        self.layer_scale_init = layer_scale_init
        self.norm1 = LayerNorm2d(dim, eps=1e-6)
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.norm2 = LayerNorm2d(dim, eps=1e-6)
        self.mlp = ConvMlp(dim, hidden_features=4 * dim, use_conv=True)
        self.layer_scale_1: Tensor | None
        self.layer_scale_2: Tensor | None
        self.layer_scale_1, self.layer_scale_2 = (
            nn.Parameter(torch.full((dim,), float(layer_scale_init))) for _ in range(2)
        )
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.register_load_state_dict_pre_hook(self._fill_in_scales)

    def forward(self, x: Tensor) -> Tensor:  # b c h w -> b c h w
        x = self._add(x, self.dwconv(self.norm1(x)), self.layer_scale_1)
        return self._add(x, self.mlp(self.norm2(x)), self.layer_scale_2)

    def _add(self, x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
        x, branch = x.permute(0, 2, 3, 1), branch.permute(0, 2, 3, 1)  # the scale belongs to the last axis
        return _add_scaled(x, branch, scale, self.drop_path).permute(0, 3, 1, 2)

    @staticmethod
    def _fill_in_scales(block: "CFBlock", state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        """A file of the official code lacks the scales: it ran with their initial value throughout."""
        weight = state_dict.get(f"{prefix}norm1.weight")
        if weight is not None:
            for name in ("layer_scale_1", "layer_scale_2"):
                state_dict.setdefault(prefix + name, torch.full_like(weight, block.layer_scale_init))


class MBBlock(nn.Module):
    """MobileNet's inverted bottleneck with GELU, also after the sum. Not in a published model."""

    def __init__(self, dim: int, layer_scale_init: float, drop_path_rate: float) -> None:
        super().__init__()
        self.conv1 = ConvBN(dim, 4 * dim, 1)
        self.conv2 = ConvBN(4 * dim, 4 * dim, 3, groups=4 * dim)
        self.conv3 = ConvBN(4 * dim, dim, 1)
        self.act = nn.GELU()
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        nn.init.zeros_(self.conv3.get_parameter("bn.weight"))

    def forward(self, x: Tensor) -> Tensor:  # b c h w -> b c h w
        y = self.conv3(self.act(self.conv2(self.act(self.conv1(x)))))
        return self.act(x + self.drop_path(y))


_CONV_BLOCKS = {"convnext": ConvNeXtBlock, "cf": CFBlock, "mb": MBBlock}


class ConvStem(nn.Module):
    """Two strided conv-BN with GELU between: `b 3 H W -> b c h w` with `h = ceil(H / 4)`."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvBN(in_chans, dim // 2, 3, stride=2), nn.GELU(), ConvBN(dim // 2, dim, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        # Channels last: the norms, the linear layers and the way to tokens then need no copies.
        return self.seq(x.contiguous(memory_format=torch.channels_last))


class Downsample(nn.Module):
    """Half the height and width, rounded up, and another number of channels: `b c h w -> b c h w`."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(dim_in, dim_out, 1)
        self.conv2 = ConvBN(dim_out, dim_out, 3, stride=2, groups=dim_out)
        self.conv3 = ConvBN(dim_out, dim_out, 1)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.act(self.conv2(self.act(self.conv1(x)))))


class ConvStage(nn.Module):
    """Convolutional blocks, `b c h w -> b c h w`. The trunk calls `downsample`, since levels leave before it."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor, *, checkpointing: bool) -> Tensor:
        for block in self.blocks:
            x = run_block(block, x, checkpointing=checkpointing)
        return x


class CabStage(KeepsBias):
    """CaB blocks, each of which hands its digest to all later ones: `b c h w -> b c h w`.

    `windowed`: every window of the native grid is an image of its own, digests included.
    """

    def __init__(self, blocks: Sequence[CabBlock], downsample: nn.Module | None, grid: Grid, *, windowed: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.grid = grid
        self.windowed = windowed

    def forward(self, x: Tensor, *, checkpointing: bool) -> Tensor:
        size = h, w = x.shape[-2], x.shape[-1]
        window = self.grid if self.windowed else (h, w)
        offsets = self.keep(window, [next(self.parameters())], lambda: offset_index(window, x.device))
        aligned = h % window[0] == 0 and w % window[1] == 0
        x = _cut(x.permute(0, 2, 3, 1), window, lead=True)
        digests: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if i > 0 and not aligned:  # else all blocks have the same windows
                x = _cut(_paste(x, window, size, lead=i % 2 == 1), window, lead=i % 2 == 0)
            x, digest = run_block(block, x, tuple(digests), window, offsets, checkpointing=checkpointing)
            digests.append(digest)
        return _paste(x, window, size, lead=len(self.blocks) % 2 == 1).permute(0, 3, 1, 2)


def _cut(x: Tensor, window: Grid, *, lead: bool) -> Tensor:
    """`b h w c` to windows `(b R S) (g k) c`, padded with zeros at left and top (`lead`) or at right and bottom."""
    rows, columns = -x.shape[1] % window[0], -x.shape[2] % window[1]
    if rows or columns:
        x = pad(x, (0, 0, columns, 0, rows, 0) if lead else (0, 0, 0, columns, 0, rows))
    return to_windows(x, window)


def _paste(x: Tensor, window: Grid, size: Grid, *, lead: bool) -> Tensor:
    """The inverse of `_cut`: windows to the map `b h w c` of `size` `(h, w)`, without the padding."""
    h, w = size
    rows, columns = -h % window[0], -w % window[1]
    x = from_windows(x, window, (-1, h + rows, w + columns, x.shape[-1]))
    return x[:, rows:, columns:] if lead else x[:, :h, :w]


def _init_weights(module: nn.Module) -> None:
    """Weights of linear layers and convolutions, depthwise ones too: normal with std 0.02; their biases: 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _preprocessing(img_size: Grid) -> dict[str, Any]:
    """The successor's evaluation: 224 of 256, and from 384 on the whole picture, pressed into the size."""
    return {"crop_pct": 1.0, "crop_mode": "squash"} if max(img_size) >= 384 else {"crop_pct": 0.875}


def _drop_path_rates(rate: float, depth: int) -> list[float]:
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


def _cab_blocks(
    config: CabViTHConfig | CabViTPConfig, dim: int, num_heads: int, grid: Grid, rates: Sequence[float]
) -> list[CabBlock]:
    """One stage's blocks, with these drop path rates.

    The last one makes no digest. In CabViT-P it serves the class token alone.
    """
    last = len(rates) - 1
    return [
        CabBlock(
            dim,
            num_heads,
            grid,
            index=i,
            digests=i < last,
            for_class_token=i == last and isinstance(config, CabViTPConfig),
            digest_stride=config.digest_stride,
            layer_scale_init=config.layer_scale_init,
            drop_path_rate=rate,
        )
        for i, rate in enumerate(rates)
    ]


class CabViTHTrunk(Backbone):
    """Stem and four stages: what classifier and pyramid share."""

    norm_head: nn.Module

    def __init__(self, config: CabViTHConfig, in_chans: int, drop_path_rate: float, *, windowed: bool) -> None:
        super().__init__(config, in_chans=in_chans, num_features=config.embed_dims[-1])
        self.pretrained_cfg |= _preprocessing(config.img_size)
        dims = self.dims = config.embed_dims
        rates = iter(_drop_path_rates(drop_path_rate, sum(config.depths)))
        stage_rates = [[next(rates) for _ in range(depth)] for depth in config.depths]
        conv_block = _CONV_BLOCKS[config.conv_block]
        self.patch_embed = ConvStem(in_chans, dims[0])
        for s in (0, 1):
            blocks = [conv_block(dims[s], config.layer_scale_init, rate) for rate in stage_rates[s]]
            self.add_module(f"layer_{s}", ConvStage(blocks, Downsample(dims[s], dims[s + 1])))
        for s, num_heads, grid in zip((2, 3), config.num_heads, config.grids.values(), strict=True):
            blocks = _cab_blocks(config, dims[s], num_heads, grid, stage_rates[s])
            downsample = Downsample(dims[2], dims[3]) if s == 2 else None
            self.add_module(f"layer_{s}", CabStage(blocks, downsample, grid, windowed=windowed))

    def run_stages(self, x: Tensor, take: Collection[int], stop: int = 4) -> dict[int, Tensor]:
        """Image `b 3 H W` to the maps `b c h w` of the stages in `take`; only the first `stop` stages are run."""
        x = self.patch_embed(x)
        levels = {}
        for s in range(stop):
            stage = self.get_submodule(f"layer_{s}")
            x = stage(x, checkpointing=self.grad_checkpointing)
            if s in take:
                levels[s] = x
            if s + 1 < stop:
                x = stage.get_submodule("downsample")(x)
        return levels

    @property
    def feature_info(self) -> Any:
        return [{"num_chs": dim, "reduction": 4 * 2**s, "module": f"layer_{s}"} for s, dim in enumerate(self.dims)]

    def forward_features(self, x: Tensor) -> Tensor:
        """Image `b 3 H W` to the last stage's tokens `b (h w) c`; the final LayerNorm follows the pooling."""
        return to_tokens(self.run_stages(x, (3,))[3])

    def pool(self, x: Tensor) -> Tensor:
        return self.norm_head(x.mean(dim=1) if self.global_pool == "avg" else x)

    @property
    def num_levels(self) -> int:
        return 4

    def intermediates(
        self, x: Tensor, take: list[int], *, norm: bool, stop: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Levels are the four stages, before their downsampling. `norm` can only apply to the last one."""
        levels = self.run_stages(x, take, take[-1] + 1) if stop else self.run_stages(x, {*take, 3})
        maps = [levels[s] for s in take]
        if norm and take[-1] == 3:
            maps[-1] = self.norm_head(levels[3].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return (None if stop else to_tokens(levels[3])), maps

    def group_matcher(self, coarse: bool = False) -> dict:
        if coarse:
            return {"stem": r"^patch_embed", "blocks": r"^layer_(\d+)"}
        return {
            "stem": r"^patch_embed",
            "blocks": [
                (r"^layer_(\d+)\.blocks\.(\d+)", None),
                (r"^layer_(\d+)\.downsample", (99999,)),
                (r"^norm_head|^out_\d", (99999,)),
            ],
        }


class CabViTH(CabViTHTrunk):
    """The hybrid classifier: `b 3 H W -> b num_classes` logits, for any height and width."""

    def __init__(
        self, config: CabViTHConfig, *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__(config, in_chans, drop_path_rate, windowed=False)
        self.norm_head = nn.LayerNorm(self.num_features)
        self.reset_classifier(num_classes)
        _init_weights(self)


class CabViTHPyramid(CabViTHTrunk):
    """FcaFormer's dense backbone: maps `b c h w` of strides 4, 8, 16, 32, with `h = ceil(H / stride)`, for any size.

    Each level passes a 1x1 convolution to `pyramid_dims` and a LayerNorm. The names `out_0` to `out_3` are ours.
    """

    def __init__(
        self,
        config: CabViTHConfig,
        *,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] = (0, 1, 2, 3),
    ) -> None:
        super().__init__(config, in_chans, drop_path_rate, windowed=True)
        self.out_indices = pyramid_levels(out_indices)
        self.norm_head = nn.Identity()
        self.out_dims = config.pyramid_dims or self.dims
        for s, (dim, out_dim) in enumerate(zip(self.dims, self.out_dims, strict=True)):
            projection = nn.Conv2d(dim, out_dim, 1, bias=False) if config.pyramid_dims else nn.Identity()
            self.add_module(f"out_{s}", nn.Sequential(projection, LayerNorm2d(out_dim, eps=1e-6)))
        _init_weights(self)

    @property
    def feature_info(self) -> FeatureInfo:
        levels = [{"num_chs": dim, "reduction": 4 * 2**s, "module": f"out_{s}"} for s, dim in enumerate(self.out_dims)]
        return FeatureInfo(levels, self.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = self.run_stages(x, self.out_indices, max(self.out_indices) + 1)
        return [self.get_submodule(f"out_{s}")(levels[s]) for s in self.out_indices]


class Attention(nn.Module):
    """Multi-head self-attention, as in ViT."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # b n c -> b n c
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(attend(q, k, v, self.num_heads))


class DeiTBlock(nn.Module):
    """Attention and an MLP, each behind its LayerNorm and drop path: the released CabViT-P."""

    def __init__(self, dim: int, num_heads: int, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden_features=4 * dim)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # b n c -> b n c
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CabViTPTrunk(Backbone):
    """Patches, class token, positions and blocks: what classifier and pyramid share.

    Any size: zeros at the right and bottom make sides multiples of the patch, positions are resized as DeiT's are.
    """

    norm: nn.Module
    global_pools = ("token", "avg", "")

    def __init__(self, config: CabViTPConfig, in_chans: int, drop_path_rate: float) -> None:
        dim, depth = config.embed_dim, config.depth
        super().__init__(config, in_chans=in_chans, num_features=dim)
        self.pretrained_cfg |= _preprocessing(config.img_size)
        self.global_pool = "token"
        self.embed_dim = dim
        self.stride = config.patch_size
        self.grid = config.grids["blocks"]
        self.patch_embed = PatchEmbed(
            img_size=None,
            patch_size=config.patch_size,
            in_chans=in_chans,
            embed_dim=dim,
            flatten=False,
            dynamic_img_pad=True,
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], dim))
        rates = _drop_path_rates(drop_path_rate, depth)
        self.cross_blocks = config.cross_blocks
        self.dynamic_step = None if config.cross_blocks else config.patch_size
        self.blocks = nn.ModuleList(
            _cab_blocks(config, dim, config.num_heads, self.grid, rates)
            if config.cross_blocks
            else [DeiTBlock(dim, config.num_heads, rate) for rate in rates]
        )
        self.norm: nn.Module = nn.Identity()

    def init_weights(self) -> None:
        for embedding in (self.cls_token, self.pos_embed):
            trunc_normal_(embedding, std=0.02)
        _init_weights(self.blocks)

    def embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Image `b 3 H W` to the sequence `b (1+n) c`, class token first, and the grid of its patches."""
        x = self.patch_embed(x)
        grid = (x.shape[-2], x.shape[-1])
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = to_tokens(x) + resize_position_embedding(self.pos_embed[:, 1:], self.grid, grid)
        return torch.cat([cls_token, x], dim=1), grid

    def run_blocks(self, x: Tensor, take: Collection[int] = (), stop: int | None = None) -> tuple[Tensor, dict]:
        """Image `b 3 H W` to the sequence `b (1+n) c` after the first `stop` blocks, and maps after those in `take`."""
        x, grid = self.embed(x)
        offsets = offset_index(grid, x.device) if self.cross_blocks else None
        digests: list[Tensor] = []
        levels = {}
        for i, block in enumerate(self.blocks[:stop]):
            if self.cross_blocks:
                x, digest = run_block(block, x, tuple(digests), grid, offsets, checkpointing=self.grad_checkpointing)
                digests.append(digest)
            else:
                x = run_block(block, x, checkpointing=self.grad_checkpointing)
            if i in take:
                levels[i] = to_map(x[:, 1:], grid)
        return x, levels

    @property
    def feature_info(self) -> Any:
        return [
            {"num_chs": self.embed_dim, "reduction": self.stride, "module": f"blocks.{i}"}
            for i in range(len(self.blocks))
        ]

    def forward_features(self, x: Tensor) -> Tensor:
        """Image `b 3 H W` to the normalised sequence `b (1+n) c`, class token first."""
        return self.norm(self.run_blocks(x)[0])

    def pool(self, x: Tensor) -> Tensor:
        match self.global_pool:
            case "token":
                return x[:, 0]
            case "avg":
                return x[:, 1:].mean(dim=1)
            case "":
                return x

    @property
    def num_levels(self) -> int:
        return len(self.blocks)

    def intermediates(
        self, x: Tensor, take: list[int], *, norm: bool, stop: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Levels are the blocks; the class token is left out."""
        x, levels = self.run_blocks(x, take, take[-1] + 1 if stop else None)
        maps = [levels[i] for i in take]
        if norm:
            maps = [self.norm(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for level in maps]
        return (None if stop else self.norm(x)), maps

    def group_matcher(self, coarse: bool = False) -> dict:
        return {
            "stem": r"^cls_token|^pos_embed|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm|^fpn", (99999,))],
        }


class CabViTP(CabViTPTrunk):
    """The plain classifier: `b 3 H W -> b num_classes` logits, for any height and width."""

    def __init__(
        self, config: CabViTPConfig, *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__(config, in_chans, drop_path_rate)
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.init_weights()
        self.reset_classifier(num_classes)


class CabViTPPyramid(Pyramid, CabViTPTrunk):
    """Maps of strides 4, 8, 16, 32, by XCiT's up- and down-sampling (CabViT-P has no dense model)."""

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = {level: self.level_blocks[level] for level in self.out_indices}
        _, maps = self.run_blocks(x, taps.values(), max(taps.values()) + 1)
        return [self.get_submodule(f"fpn{level + 1}")(maps[i]) for level, i in taps.items()]


def resize_tables(
    state_dict: dict[str, Tensor], config: CabViTHConfig | CabViTPConfig, img_size: tuple[int, int]
) -> dict[str, Tensor]:
    """The state dict of a model built for `img_size`, for one built from `config`.

    What the new model then computes is what the old one computes at the new size.
    """
    source = replace(config, img_size=img_size)
    stride = config.digest_stride
    resized = dict(state_dict)
    for key, value in state_dict.items():
        stage, name = key.split(".")[0], key.rsplit(".")[-1]
        if stage == "pos_embed":
            patches = resize_position_embedding(value[:, 1:], source.grids["blocks"], config.grids["blocks"])
            resized[key] = torch.cat([value[:, :1], patches], dim=1)
        if stage not in config.grids:
            continue
        grid, new_grid = source.grids[stage], config.grids[stage]
        digest_grid, new_digest_grid = (_shrink(g, stride) for g in (grid, new_grid))
        if name == "attention_biases":
            resized[key] = resize_offset_table(value, grid, new_grid)
        elif name == "s_token_bias":
            resized[key] = resize_digest_table(value, digest_grid, new_digest_grid)
        elif name == "s_scale_factors":
            factors = resize_digest_table(value.transpose(1, 2), digest_grid, new_digest_grid)
            resized[key] = factors.transpose(1, 2)
    return resized


def _classifier(config: CabViTHConfig | CabViTPConfig, **arguments: Any) -> Backbone:
    return CabViTH(config, **arguments) if isinstance(config, CabViTHConfig) else CabViTP(config, **arguments)


def _pyramid(config: CabViTHConfig | CabViTPConfig, **arguments: Any) -> Backbone:
    if isinstance(config, CabViTHConfig):
        return CabViTHPyramid(config, **arguments)
    return CabViTPPyramid(config, **arguments)


FAMILY = Family(
    name="CabViT",
    paper="Zhang et al., CabViT: Cross Attention among Blocks for Vision Transformer, arXiv 2211.07198",
    variants=VARIANTS,
    derived_buffers=DERIVED_BUFFERS,
    classifier=_classifier,
    pyramid=_pyramid,
    notes={
        "cabvit_p_l0_cross": "a design of ours: the paper's attention across blocks, which the released CabViT-P lacks"
    },
)

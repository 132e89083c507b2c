"""The CaB block of CabViT, with which CabViT-H and CabViT-P look at earlier blocks (paper and departures: cabvit.py).

Cross attention among blocks   CrossAttentionAmongBlocks   tokens attend to tokens and to digests of earlier blocks
Token merge and enhancement    CabBlock                    a long-stride convolution makes the digest, a short one mixes

Axes beside the usual ones: s tokens in one digest, i digests so far.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from transept.layers.linear import Linear
from transept.layers.position_bias import KeepsBias
from transept.layers.projection import QueryKeyValue
from transept.layers.residual import Mlp, add_branch
from transept.models.attention import AttentionWeights, Grid, ShowsAttention, grouped_map, whole_map
from transept.ops.attention import softmax_attention
from transept.ops.tokens import merge_heads, split_heads, to_map, to_tokens


def shrink(grid: Grid, stride: int) -> Grid:
    """Rows and columns after `stride`, rounded up."""
    return -(-grid[0] // stride), -(-grid[1] // stride)


def check_heads(dim: int, num_heads: int) -> None:
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"a width of {dim} must be a multiple of its number of heads, {num_heads}")


def check_block(digest_stride: int, layer_scale_init: float) -> None:
    if digest_stride < 1:
        raise ValueError(f"digest_stride={digest_stride} must be at least 1; 4 is published")
    if layer_scale_init <= 0:
        raise ValueError(f"layer_scale_init={layer_scale_init} must be above 0; 1e-6 is published")


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
        self.proj = Linear(dim, dim)
        if index > 0:
            h, w = self.digest_grid = shrink(grid, digest_stride)
            self.s_token_bias = nn.Parameter(torch.zeros(1, num_heads, 1, index * h * w))
            self.s_scale_factors = nn.Parameter(torch.ones(1, index * h * w, 1))
            self.s_norm = nn.LayerNorm(dim)

    def cross_attend(self, x: Tensor, digests: Sequence[Tensor], grid: Grid, offsets: Tensor) -> Tensor:
        """Tokens `b n c` of `grid` and earlier digests `b s c` to what the tokens gather, `b n c`.

        `offsets` is `offset_index(grid)`, which the blocks of a stage share.
        """
        q, k, v = self._project(x, digests, grid)
        return self.proj(merge_heads(softmax_attention(q, k, v, self._bias(x, grid, offsets))))

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
            factors = resize_digest_table(factors, self.digest_grid, shrink(grid, self.digest_stride))
            calibrated = torch.cat(list(digests), dim=1) * factors.transpose(1, 2)
            sources = torch.cat([x, self.s_norm(calibrated)], dim=1)
            q, (k, v) = self.qkv.query(x), self.qkv.key_value(sources)
        return split_heads(q, self.num_heads), split_heads(k, self.num_heads), split_heads(v, self.num_heads)

    def _bias(self, x: Tensor, grid: Grid, offsets: Tensor) -> Tensor:
        """The bias of the logits, `b m n (n + i s)`. Four axes: with three, the CPU's fused kernel refuses it."""
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
            table = resize_digest_table(self.s_token_bias, self.digest_grid, shrink(grid, self.digest_stride))
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


def add_scaled(x: Tensor, branch: Tensor, scale: Tensor | None, drop_path: nn.Module) -> Tensor:
    """`x + drop_path(scale * branch)`, in one pass where nothing is dropped."""
    if drop_path.training and isinstance(drop_path, DropPath):
        return x + drop_path(branch if scale is None else scale * branch)
    return x + branch if scale is None else torch.addcmul(x, scale, branch)


class CabBlock(CrossAttentionAmongBlocks, ShowsAttention):
    """Cross attention among blocks, token merge and enhancement, MLP.

    The digest, for later blocks, is taken before the local convolution, which replaces the tokens that it mixes.
    `for_class_token`: without the parts that only patches see, which no gradient would reach.
    """

    attention_kind = "cross-block"

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
        x = add_scaled(x, self.cross_attend(x, digests, grid, offsets), self.gamma_1, self.drop_path)
        num_class_tokens = x.shape[1] - grid[0] * grid[1]
        tokens = to_map(x[:, num_class_tokens:], grid)
        digest = None if self.dw_conv is None else to_tokens(self.dw_conv(tokens))
        if self.local_conv is not None:
            mixed = to_tokens(self.local_conv(tokens))
            x = torch.cat([x[:, :num_class_tokens], mixed], dim=1) if num_class_tokens else mixed
        return add_branch(x, self.mlp, self.norm2(x), scale=self.gamma_2, drop_path=self.drop_path), digest

    def attention_weights(
        self, grid: Grid, x: Tensor, digests: Sequence[Tensor], window: Grid, offsets: Tensor
    ) -> AttentionWeights:
        """In the pyramid's windows, the digests of a window are placed where it lies."""
        weights = self.attention(x, digests, window, offsets)
        h, w = window
        digest = shrink(window, self.digest_stride)
        if class_tokens := x.shape[1] - h * w:
            tokens, digested = whole_map(window, x, class_tokens=class_tokens), whole_map(digest, x)
        else:
            bottom, right = -grid[0] % h, -grid[1] % w
            leads = self.index % 2 == 0  # the padding comes first, at the top and left
            tokens = grouped_map(grid, (right, 0, bottom, 0) if leads else (0, right, 0, bottom), window, x)
            rows, columns = (grid[0] + bottom) // h, (grid[1] + right) // w
            digested = grouped_map((rows * digest[0], columns * digest[1]), (0, 0, 0, 0), digest, x)
        return AttentionWeights(weights, tokens, [tokens, *[digested] * len(digests)])


def cab_blocks(
    dim: int,
    num_heads: int,
    grid: Grid,
    rates: Sequence[float],
    *,
    for_class_token: bool,
    digest_stride: int,
    layer_scale_init: float,
) -> list[CabBlock]:
    """One stage's blocks, with these drop path rates.

    The last one makes no digest; with `for_class_token` it serves the class token alone.
    """
    last = len(rates) - 1
    return [
        CabBlock(
            dim,
            num_heads,
            grid,
            index=i,
            digests=i < last,
            for_class_token=i == last and for_class_token,
            digest_stride=digest_stride,
            layer_scale_init=layer_scale_init,
            drop_path_rate=rate,
        )
        for i, rate in enumerate(rates)
    ]


def init_weights(module: nn.Module) -> None:
    """Weights of linear layers and convolutions, depthwise ones too: normal with std 0.02; their biases: 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def preprocessing(img_size: Grid) -> dict[str, Any]:
    """The successor's evaluation: 224 of 256, and from 384 on the whole picture, pressed into the size."""
    return {"crop_pct": 1.0, "crop_mode": "squash"} if max(img_size) >= 384 else {"crop_pct": 0.875}


def drop_path_rates(rate: float, depth: int) -> list[float]:
    return [rate * i / max(depth - 1, 1) for i in range(depth)]

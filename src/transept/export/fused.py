"""Attention in the forms that `fuse` puts into a model: the same functions, with less work at inference.

Two ideas carry them. Where weights are constant, so are their products. And tokens as `b c n`, with the rows of the
joint projection sorted by head, need no copies: batch and heads are one axis of every matrix product, the norms of
cross-covariance run along the memory, and what leaves the heads is what the output projection reads.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, scaled_dot_product_attention

from transept.layers.position_bias import KeepsBias
from transept.models.cait import TalkingHeadsAttention
from transept.models.cat import CrossPatchSelfAttention
from transept.models.xcit import CrossCovarianceAttention, LocalPatchInteraction
from transept.ops.tokens import to_map, to_tokens
from transept.ops.windows import from_channel_windows, pad_to_multiple, to_channel_windows


class _HeadsFirst(nn.Module):
    """The joint projection of queries, keys and values `b n c -> (b m) d n`, and the one back, without copies."""

    def __init__(self, qkv: nn.Linear, proj: nn.Linear, num_heads: int) -> None:
        super().__init__()
        assert qkv.bias is not None
        assert proj.bias is not None
        self.num_heads = num_heads
        self.qkv_weight = nn.Parameter(_by_head(qkv.weight, num_heads))  # (m 3 d) c
        self.qkv_bias = nn.Parameter(_by_head(qkv.bias, num_heads)[:, None])
        self.proj_weight = nn.Parameter(proj.weight.t().contiguous())
        self.proj_bias = nn.Parameter(proj.bias.clone())

    def split(self, x: Tensor) -> Tensor:
        """`b n c -> (b m) 3 d n`: queries, keys and values, each head's together."""
        b, n, c = x.shape
        qkv = torch.baddbmm(self.qkv_bias, self.qkv_weight.expand(b, -1, -1), x.mT)
        return qkv.view(b * self.num_heads, 3, c // self.num_heads, n)

    def join(self, out: Tensor, bias: Tensor) -> Tensor:
        """`(b m) d n -> b n c`, projected; the bias is `c` or `b 1 c`."""
        b, d, n = out.shape[0] // self.num_heads, out.shape[1], out.shape[2]
        out = out.view(b, self.num_heads * d, n)
        return torch.baddbmm(bias, out.mT, self.proj_weight.expand(b, -1, -1))


def _by_head(rows: Tensor, num_heads: int) -> Tensor:
    """`(3 m d) ... -> (m 3 d) ...`."""
    return rows.unflatten(0, (3, num_heads, -1)).transpose(0, 1).flatten(0, 2)


class FusedCrossCovariance(_HeadsFirst):
    """XCiT's `CrossCovarianceAttention`."""

    def __init__(self, attn: CrossCovarianceAttention) -> None:
        super().__init__(attn.qkv, attn.proj, attn.num_heads)
        self.temperature = nn.Parameter(attn.temperature.clone())

    def forward(self, x: Tensor) -> Tensor:  # b n c -> b n c
        qkv = self.split(x)
        q, k, v = qkv.unbind(1)  # (b m) d n
        norms = torch.linalg.vector_norm(qkv[:, :2], dim=-1).clamp_min(1e-12)
        q_norm, k_norm = norms.unsqueeze(-1).unbind(1)  # (b m) d 1
        if qkv.dtype == torch.float16:  # a sum over thousands of tokens may exceed 65504
            q, q_norm = q / q_norm, torch.ones_like(q_norm)
        covariance = torch.bmm(q, k.mT) / (q_norm * k_norm.mT)
        scaled = covariance.unflatten(0, (-1, self.num_heads)) * self.temperature
        attention = scaled.softmax(dim=-1).flatten(0, 1).to(v.dtype)
        return self.join(torch.bmm(attention, v), self.proj_bias)


class FusedLocalPatchInteraction(KeepsBias):
    """XCiT's `LocalPatchInteraction`, its BatchNorm in the second convolution.

    The norm's shift stops at the border, where the convolution pads with zeros. What comes of it therefore depends on
    the position: it is a map, kept like a position bias.
    """

    def __init__(self, local: LocalPatchInteraction) -> None:
        super().__init__()
        norm, conv = local.bn, local.conv2
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert conv.bias is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        self.conv1, self.act = local.conv1, local.act
        self.weight = nn.Parameter(conv.weight * scale.view(-1, 1, 1, 1))
        self.shift_weight = nn.Parameter(conv.weight * (norm.bias - norm.running_mean * scale).view(-1, 1, 1, 1))
        self.bias = nn.Parameter(conv.bias.clone())

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:  # b n c -> b n c
        x = self.act(self.conv1(to_map(x, grid)))
        return to_tokens(conv2d(x, self.weight, padding=1, groups=x.shape[1])).add_(self.shift(grid))

    def shift(self, grid: tuple[int, int]) -> Tensor:
        """What bias and norm add on a grid, `1 (h w) c`."""
        return self.keep(grid, list(self.parameters()), lambda: self.compute_shift(grid))

    def compute_shift(self, grid: tuple[int, int]) -> Tensor:
        ones = self.weight.new_ones(1, len(self.bias), *grid).contiguous(memory_format=torch.channels_last)
        return to_tokens(conv2d(ones, self.shift_weight, self.bias, padding=1, groups=len(self.bias))).contiguous()


class FusedTalkingHeads(_HeadsFirst):
    """CaiT's `TalkingHeadsAttention`: the scale is in the first mix, and its bias, which the softmax cancels, is gone.

    The bias of the second mix gives each image one vector, which is added to the bias of the output projection.
    """

    def __init__(self, attn: TalkingHeadsAttention) -> None:
        super().__init__(attn.qkv, attn.proj, attn.num_heads)
        self.before = nn.Parameter(attn.proj_l.weight * attn.scale)
        self.after = nn.Parameter(attn.proj_w.weight.clone())
        self.after_bias = nn.Parameter(attn.proj_w.bias.repeat_interleave(attn.qkv.in_features // attn.num_heads))

    def forward(self, x: Tensor) -> Tensor:  # b n c -> b n c
        b, n, _ = x.shape
        q, k, v = self.split(x).unbind(1)  # (b m) d n
        maps = self.mix(torch.bmm(q.mT, k), self.before, b).view(b, self.num_heads, n, n)
        maps = self.mix(maps.softmax(dim=-1), self.after, b).view(b * self.num_heads, n, n)
        sums = v.sum(dim=-1).view(b, 1, -1) * self.after_bias
        bias = torch.baddbmm(self.proj_bias, sums.to(v.dtype), self.proj_weight.expand(b, -1, -1))
        return self.join(torch.bmm(v, maps.to(v.dtype).mT), bias)

    def mix(self, maps: Tensor, weight: Tensor, batch: int) -> Tensor:
        """Maps of all heads at every (query, key), mixed."""
        return torch.bmm(weight.expand(batch, -1, -1), maps.reshape(batch, self.num_heads, -1))


class FusedCrossPatch(nn.Module):
    """CAT's `CrossPatchSelfAttention`, with the products of its projections."""

    def __init__(self, attn: CrossPatchSelfAttention) -> None:
        super().__init__()
        self.patch_size = attn.patch_size
        weight, bias = attn.query_key()
        self.query_weight = nn.Parameter(weight)
        self.query_bias = None if bias is None else nn.Parameter(bias)
        weight, bias = attn.value_out()
        self.value_weight, self.value_bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:  # b h w c -> b h w c
        h, w = x.shape[1:3]
        x = pad_to_multiple(x, self.patch_size)
        patches = to_channel_windows(x, self.patch_size).unsqueeze(1)  # (b c) 1 n t
        out = scaled_dot_product_attention(linear(patches, self.query_weight, self.query_bias), patches, patches)
        out = linear(out, self.value_weight, self.value_bias)
        return from_channel_windows(out, self.patch_size, x.shape)[:, :h, :w]


class Pointwise(nn.Linear):
    """A 1x1 convolution `b c h w -> b d h w` as a linear map of channels-last tokens."""

    def __init__(self, conv: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = conv.in_channels, conv.out_channels
        self.weight = nn.Parameter(conv.weight.flatten(1))
        self.register_parameter("bias", None if conv.bias is None else nn.Parameter(conv.bias.clone()))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

"""Layers in the forms that `fuse` puts into a model: the same functions, with less work at inference.

Where weights are constant, so are their products, and so is what a norm adds at each position.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from transept.inference.packed import GeluConv2d, PackedLinear, pack, quicker, runs_on_cpu
from transept.layers.position_bias import KeepsBias
from transept.layers.projection import QueryKeyValue
from transept.models.cait import TalkingHeadsAttention, talking_heads
from transept.models.cat import CrossPatchSelfAttention
from transept.models.crossvit import CrossAttention
from transept.models.xcit import LocalPatchInteraction
from transept.ops.attention import softmax_attention
from transept.ops.tokens import merge_heads, stack_heads, to_map, to_tokens
from transept.ops.windows import from_channel_windows, pad_to_multiple, to_channel_windows


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
        self.conv1 = GeluConv2d(local.conv1)
        self.weight = nn.Parameter(conv.weight * scale.view(-1, 1, 1, 1))
        self.shift_weight = nn.Parameter(conv.weight * (norm.bias - norm.running_mean * scale).view(-1, 1, 1, 1))
        self.bias = nn.Parameter(conv.bias.clone())

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:  # b n c -> b n c
        x = self.conv1(to_map(x, grid))
        return to_tokens(conv2d(x, self.weight, padding=1, groups=x.shape[1])).add_(self.shift(grid))

    def shift(self, grid: tuple[int, int]) -> Tensor:
        """The sum that bias and norm add on a grid, `1 (h w) c`."""
        parameters = self.weight, self.shift_weight, self.bias
        return self.keep(grid, parameters, lambda: self.compute_shift(grid))

    def compute_shift(self, grid: tuple[int, int]) -> Tensor:
        ones = self.weight.new_ones(1, len(self.bias), *grid).contiguous(memory_format=torch.channels_last)
        return to_tokens(conv2d(ones, self.shift_weight, self.bias, padding=1, groups=len(self.bias))).contiguous()


class FusedTalkingHeads(nn.Module):
    """CaiT's `TalkingHeadsAttention`, on the CPU a few images at a time: their maps stay in the cache.

    The scale of the logits is in the first mix.
    """

    def __init__(self, attn: TalkingHeadsAttention) -> None:
        super().__init__()
        self.num_heads = attn.num_heads
        self.qkv, self.proj = pack(attn.qkv), pack(attn.proj)
        self.before = nn.Parameter(attn.proj_l.weight * attn.scale)
        self.after = nn.Parameter(attn.proj_w.weight.clone())
        self.after_bias = nn.Parameter(attn.proj_w.bias.clone())

    def forward(self, x: Tensor) -> Tensor:  # b n c -> b n c
        qkv = stack_heads(self.qkv(x), self.num_heads)
        if runs_on_cpu(qkv) and not torch.is_grad_enabled():
            kind = "talking heads", *qkv.shape, qkv.dtype
            if quicker(kind, lambda: self.at_once(qkv), lambda: self.in_parts(qkv)):
                return self.proj(self.in_parts(qkv))
        return self.proj(self.at_once(qkv))

    def at_once(self, qkv: Tensor) -> Tensor:
        """The values that the heads gather, `b n (m d)`, of `3 b m n d`."""
        spelt_out = torch.compiler.is_dynamo_compiling() and self.num_heads <= _SPELT_OUT
        out, _ = talking_heads(qkv, self.before, self.after, self.after_bias, _sums if spelt_out else None)
        return merge_heads(out)

    def in_parts(self, qkv: Tensor) -> Tensor:
        """As `at_once`, a few images after the other."""
        q, k, v = qkv.unbind()
        b, m, n, d = q.shape
        out = q.new_empty(b, n, m, d)
        part = max(2, torch.get_num_threads())
        buffers = q.new_empty(2, min(part, b), m, n, n)
        for start in range(0, b, part):
            images = slice(start, start + part)
            maps, mixed = buffers[:, : len(q[images])]
            before, after = (mix.expand(len(maps), -1, -1) for mix in (self.before, self.after))
            torch.matmul(q[images], k[images].mT, out=maps)
            torch.bmm(before, maps.flatten(2), out=mixed.flatten(2))
            torch.softmax(mixed, dim=-1, out=maps)
            torch.bmm(after, maps.flatten(2), out=mixed.flatten(2))
            out[images] = (mixed @ v[images]).transpose(1, 2)
        out += v.sum(dim=-2)[:, None] * self.after_bias[:, None]
        return out.flatten(2)


_SPELT_OUT = 4
"""Heads; of more of them the sums would take the compiler minutes."""


def _sums(maps: Tensor, mix: Tensor) -> Tensor:
    """Maps `b m n n` mixed by `m m` one by one: sums that Inductor computes in one pass with the softmax."""
    heads = range(len(mix))
    return torch.stack([sum((mix[i, j] * maps[:, j] for j in heads[1:]), mix[i, 0] * maps[:, 0]) for i in heads], dim=1)


class FusedCrossAttention(nn.Module):
    """CrossViT's `CrossAttention` of one token to all, that projects no token to a key or a value.

    A head's similarities are `(q K) x`, and what it gathers is `V (p x)`: both projections are of one token, where they
    were of all of them. What the keys' bias adds is the same for all tokens, and the softmax leaves it out.
    """

    def __init__(self, attn: CrossAttention) -> None:
        super().__init__()
        self.num_heads = attn.num_heads
        self.query, self.proj = pack(attn.wq), pack(attn.proj)
        key, value = (layer.weight.unflatten(0, (attn.num_heads, -1)) for layer in (attn.wk, attn.wv))  # m d c
        self.key = nn.Parameter(key * key.shape[1] ** -0.5)
        self.value = nn.Parameter(value.mT.contiguous())
        self.value_bias = nn.Parameter(attn.wv.bias.clone())

    def forward(self, x: Tensor) -> Tensor:  # b (1+n) c -> b 1 c
        q = self.query(x[:, 0]).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)  # m b d
        maps = ((q @ self.key).transpose(0, 1) @ x.mT).softmax(dim=-1)  # b m (1+n)
        gathered = (maps @ x).transpose(0, 1) @ self.value  # m b d
        return self.proj(gathered.transpose(0, 1).flatten(1) + self.value_bias)[:, None]


class FusedCrossPatch(nn.Module):
    """CAT's `CrossPatchSelfAttention`, with the products of its projections."""

    def __init__(self, attn: CrossPatchSelfAttention) -> None:
        super().__init__()
        self.patch_size = attn.patch_size
        self.query = PackedLinear(*attn.query_key())
        self.value = PackedLinear(*attn.value_out())

    def forward(self, x: Tensor) -> Tensor:  # b h w c -> b h w c
        h, w = x.shape[1:3]
        x = pad_to_multiple(x, self.patch_size)
        patches = to_channel_windows(x, self.patch_size).unsqueeze(1)  # (b c) 1 n t
        out = softmax_attention(self.query(patches), patches, patches)
        return from_channel_windows(self.value(out), self.patch_size, x.shape)[:, :h, :w]


class FusedQueryKeyValue(PackedLinear):
    """`QueryKeyValue`, its parts packed by themselves. Only those that are called are packed."""

    def __init__(self, joint: QueryKeyValue) -> None:
        super().__init__(joint.weight, joint.bias)
        dim = joint.in_features
        self.query = PackedLinear(joint.weight[:dim], joint.bias[:dim])
        self.keys_and_values = PackedLinear(joint.weight[dim:], joint.bias[dim:])

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:  # ... c -> ... c, ... c
        k, v = self.keys_and_values(x).chunk(2, dim=-1)
        return k, v


class Pointwise(PackedLinear):
    """A 1x1 convolution `b c h w -> b d h w` as a linear map of channels-last tokens."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.weight.flatten(1), conv.bias)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

"""The attention weights of every kind of layer, recomputed from its queries and keys.

Models compute attention in fused kernels, which never hold the weights. What a layer was given is enough to compute
them beside it, for the layers asked for alone, and nothing in the model has to change.

Axes beside the usual ones: g groups of an image, q queries and k keys of a group.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from transept.models import cabvit_block, cabvit_p, cait, cat, crossformer, xcit
from transept.ops.tokens import split_heads
from transept.ops.windows import Pads, pad_map, to_windows

Grid = tuple[int, int]

KINDS: dict[type[nn.Module], str] = {
    cait.ClassAttention: "class",
    cait.TalkingHeadsAttention: "talking-heads",
    xcit.ClassAttention: "class",
    xcit.CrossCovarianceAttention: "cross-covariance",
    cat.InnerPatchSelfAttention: "inner-patch",
    cat.CrossPatchSelfAttention: "cross-patch",
    crossformer.ShortDistanceAttention: "short-distance",
    crossformer.LongDistanceAttention: "long-distance",
    cabvit_block.CabBlock: "cross-block",
    cabvit_p.Attention: "self",
}
"""The modules that attend, and what their attention is called."""


class Places(NamedTuple):
    """Where the tokens of the groups lie on a map."""

    grid: Grid
    numbers: Tensor
    """`g n`: the number of each token on the map, row by row; -1 for padding and class tokens, which have no place."""


class Weights(NamedTuple):
    """The softmax of a layer."""

    weights: Tensor
    """`(b g) m q k`; rows sum to one."""
    queries: Places
    keys: list[Places]
    """Consecutive parts of the axis k: one map, or in CabViT the tokens and then the digest of each earlier block."""
    cell: int = 1
    """Tokens along the side of a query."""


def class_row(weights: Weights) -> Weights:
    """The row of the class token alone, which comes first."""
    place = Places((1, 1), torch.zeros(1, 1, dtype=torch.long, device=weights.weights.device))
    return weights._replace(weights=weights.weights[:, :, :1], queries=place)


def attention_weights(module: nn.Module, inputs: tuple, grid: Grid) -> Weights:
    """The weights of a module of `KINDS` called with `inputs`; `grid` is that of the whole map it works on.

    Cross-patch attention has one head, and weights of its own in every channel: its axis m runs over channels. Those of
    talking heads are taken between the two mixes, after the second of which they may be negative. Cross-covariance is
    between the channels of a head: its queries and keys have no place in the image.
    """
    x: Tensor = inputs[0]
    match module:
        case cait.ClassAttention():
            weights = _softmax(module.q(x[:, :1]), module.k(x), module.num_heads)
            return _of_class_token(weights, grid)
        case xcit.ClassAttention():
            q, k, _ = module.qkv(x).chunk(3, dim=-1)
            return _of_class_token(_softmax(q[:, :1], k, module.num_heads), grid)
        case cait.TalkingHeadsAttention():
            q, k, _ = (split_heads(t, module.num_heads) for t in module.qkv(x).chunk(3, dim=-1))
            logits = torch.einsum("mn, bnqk -> bmqk", module.proj_l.weight, q * module.scale @ k.transpose(-2, -1))
            tokens = _everywhere(grid, x)
            return Weights(logits.softmax(dim=-1), tokens, [tokens])
        case cabvit_p.Attention():
            q, k, _ = module.qkv(x).chunk(3, dim=-1)
            tokens = _everywhere(grid, x, class_tokens=x.shape[1] - grid[0] * grid[1])
            return Weights(_softmax(q, k, module.num_heads), tokens, [tokens])
        case xcit.CrossCovarianceAttention():
            weights, _ = module.attention(x)
            channels = Places((1, 1), torch.full(weights.shape[-1:], -1, device=x.device)[None])
            return Weights(weights, channels, [channels])
        case cat.InnerPatchSelfAttention():
            weights = module.attention(x).flatten(0, 1)  # (b n) m t t
            side = module.patch_size
            tokens = _dealt(grid, (0, -grid[1] % side, 0, -grid[0] % side), (side, side), x)
            return Weights(weights, tokens, [tokens])
        case cat.CrossPatchSelfAttention():
            side = module.patch_size
            patches = _everywhere((-(-grid[0] // side), -(-grid[1] // side)), x)
            return Weights(module.attention(x), patches, [patches], cell=side)
        case crossformer.GroupAttention():
            return _of_groups(module, *inputs, grid=grid)
        case cabvit_block.CabBlock():
            return _of_cab_block(module, *inputs, whole=grid)
    raise TypeError(f"{type(module).__name__} does not attend")


def _softmax(q: Tensor, k: Tensor, num_heads: int) -> Tensor:
    """`b q c`, `b k c -> b m q k` with the usual scale."""
    q, k = split_heads(q, num_heads), split_heads(k, num_heads)
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)


def _of_class_token(weights: Tensor, grid: Grid) -> Weights:
    """`b m 1 (1+n)`, the class token first."""
    return class_row(Weights(weights, Places((1, 1), weights), [_everywhere(grid, weights, class_tokens=1)]))


def _of_groups(
    module: crossformer.GroupAttention,
    x: Tensor,
    grouping: crossformer.Grouping,
    mask: Tensor | None = None,
    *,
    grid: Grid,
) -> Weights:
    sides, interval, pads = grouping
    q, k, _ = module.qkv(to_windows(pad_map(x, pads), sides, interval)).chunk(3, dim=-1)
    q, k = split_heads(q, module.num_heads), split_heads(k, module.num_heads)
    logits = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1) + module.pos(sides)  # (b g) m n n
    if mask is not None:
        logits = logits + mask.repeat(x.shape[0], 1, 1, 1)
    tokens = _dealt(grid, pads, sides, x, interval)
    return Weights(logits.softmax(dim=-1), tokens, [tokens])


def _of_cab_block(
    module: cabvit_block.CabBlock, x: Tensor, digests: tuple[Tensor, ...], window: Grid, offsets: Tensor, *, whole: Grid
) -> Weights:
    """In the pyramid's windows, the digests of a window are placed where it lies."""
    weights = module.attention(x, digests, window, offsets)
    h, w = window
    stride = module.digest_stride
    digest = (-(-h // stride), -(-w // stride))
    if class_tokens := x.shape[1] - h * w:
        tokens, digested = _everywhere(window, x, class_tokens=class_tokens), _everywhere(digest, x)
    else:
        bottom, right = -whole[0] % h, -whole[1] % w
        leads = module.index % 2 == 0  # the padding comes first, at the top and left
        pads = (right, 0, bottom, 0) if leads else (0, right, 0, bottom)
        tokens = _dealt(whole, pads, window, x)
        rows, columns = (whole[0] + bottom) // h, (whole[1] + right) // w
        digested = _dealt((rows * digest[0], columns * digest[1]), (0, 0, 0, 0), digest, x)
    return Weights(weights, tokens, [tokens, *[digested] * len(digests)])


def _everywhere(grid: Grid, like: Tensor, *, class_tokens: int = 0) -> Places:
    """One group of all tokens, class tokens first."""
    numbers = torch.arange(-class_tokens, grid[0] * grid[1], device=like.device)
    return Places(grid, numbers.clamp(min=-1)[None])


def _dealt(grid: Grid, pads: Pads, sides: Grid, like: Tensor, interval: int = 1) -> Places:
    """The groups that `to_windows` makes of a padded map: it deals out the numbers as it deals out the tokens."""
    h, w = grid
    numbers = torch.arange(1, h * w + 1, device=like.device).view(1, h, w, 1)  # 0 is padding
    return Places(grid, to_windows(pad_map(numbers, pads), sides, interval)[..., 0] - 1)

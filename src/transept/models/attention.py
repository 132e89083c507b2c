"""How a layer shows its attention: the weights, and where on the map its queries and keys lie.

Models compute attention in fused kernels, which never hold the weights. What a layer was given is enough to compute
them beside it, for the layers asked for alone, and nothing in the model has to change.

Axes beside the usual ones: g groups of an image, q queries and k keys of a group.
"""

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from transept.layers.attention import SelfAttention
from transept.ops.tokens import split_heads
from transept.ops.windows import Pads, pad_map, to_windows

Grid = tuple[int, int]


class Places(NamedTuple):
    """Where the tokens of the groups lie on a map."""

    grid: Grid
    numbers: Tensor
    """`g n`: the number of each token on the map, row by row; -1 for padding and class tokens, which have no place."""


class AttentionWeights(NamedTuple):
    """The softmax of a layer."""

    weights: Tensor
    """`(b g) m q k`; rows sum to one."""
    queries: Places
    keys: list[Places]
    """Consecutive parts of the axis k: one map, or in CabViT the tokens and then the digest of each earlier block."""
    cell: int = 1
    """Tokens along the side of a query."""
    over: Literal["image", "channels"] = "image"
    """Whether keys are tokens of the image, or the channels of a head that attend to each other."""


class ShowsAttention:
    """Mixed into a family's attention modules, which `transept.attention_maps` then finds by their class alone."""

    attention_kind: ClassVar[str]
    """The paper's name of this attention, in lower case with hyphens."""
    maps_per_token: ClassVar[bool] = True
    """Each token of the image has a map of its own."""

    def attention_weights(self, grid: Grid, *args: Any, **kwargs: Any) -> AttentionWeights:
        """The weights on what `forward` was called with; `grid` is that of the whole map which the layer works on."""
        raise NotImplementedError(f"{type(self).__name__} does not say its attention weights")


def class_row(weights: AttentionWeights) -> AttentionWeights:
    """The row of the class token alone, which comes first."""
    place = Places((1, 1), torch.zeros(1, 1, dtype=torch.long, device=weights.weights.device))
    return weights._replace(weights=weights.weights[:, :, :1], queries=place)


def softmax_weights(q: Tensor, k: Tensor, num_heads: int) -> Tensor:
    """`b q c`, `b k c -> b m q k` with the usual scale."""
    q, k = split_heads(q, num_heads), split_heads(k, num_heads)
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)


def class_token_weights(weights: Tensor, grid: Grid) -> AttentionWeights:
    """The class token's weights `b m 1 (1+n)` on itself, which comes first, and the n patches of `grid`."""
    place = Places((1, 1), weights)
    return class_row(AttentionWeights(weights, place, [whole_map(grid, weights, class_tokens=1)]))


def token_weights(weights: Tensor, places: Places, cell: int = 1) -> AttentionWeights:
    """The weights of tokens on each other: queries and keys lie at the same places."""
    return AttentionWeights(weights, places, [places], cell)


def whole_map(grid: Grid, like: Tensor, *, class_tokens: int = 0) -> Places:
    """One group of all tokens of `grid`, class tokens first, on the device of `like`."""
    numbers = torch.arange(-class_tokens, grid[0] * grid[1], device=like.device)
    return Places(grid, numbers.clamp(min=-1)[None])


def grouped_map(grid: Grid, pads: Pads, sides: Grid, like: Tensor, interval: int = 1) -> Places:
    """The groups that `to_windows` makes of a padded map: it deals out the numbers as it deals out the tokens."""
    h, w = grid
    numbers = torch.arange(1, h * w + 1, device=like.device).view(1, h, w, 1)  # 0 is padding
    return Places(grid, to_windows(pad_map(numbers, pads), sides, interval)[..., 0] - 1)


class TokenSelfAttention(SelfAttention, ShowsAttention):
    """Multi-head self-attention of the image's tokens, as in ViT; class tokens, if any, come first."""

    attention_kind = "self"

    def attention_weights(self, grid: Grid, x: Tensor) -> AttentionWeights:
        q, k, _ = self.qkv(x).chunk(3, dim=-1)
        tokens = whole_map(grid, x, class_tokens=x.shape[1] - grid[0] * grid[1])
        return token_weights(softmax_weights(q, k, self.num_heads), tokens)

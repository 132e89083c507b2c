"""Reshapes between tokens, heads and maps. All but `stack_heads` are views where the memory layout permits."""

from jaxtyping import Shaped
from torch import Tensor


def split_heads(x: Shaped[Tensor, "b n c"], num_heads: int) -> Shaped[Tensor, "b m n d"]:
    """`b n (m d) -> b m n d`, a view."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def stack_heads(joint: Shaped[Tensor, "b n _"], num_heads: int, parts: int = 3) -> Shaped[Tensor, "_p b m n d"]:
    """`b n (p m d) -> p b m n d`: queries, keys and values in one copy instead of one for each product."""
    return joint.unflatten(-1, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4).contiguous()


def merge_heads(x: Shaped[Tensor, "b m n d"]) -> Shaped[Tensor, "b n m*d"]:
    """`b m n d -> b n (m d)`, the inverse of `split_heads`."""
    return x.transpose(1, 2).flatten(2)


def to_map(x: Shaped[Tensor, "b n c"], grid: tuple[int, int]) -> Shaped[Tensor, "b c h w"]:
    """`b (h w) c -> b c h w`. For contiguous tokens this is a channels-last view: no copy is made.

    The order of operations here and in `to_tokens` matters for a batch of one. Splitting the last axis of the
    transposed tokens gives its batch axis a stride that is not channels last; where such a view is the gradient of a
    BatchNorm, PyTorch (2.15, CPU) mixes the two layouts up and returns a wrong gradient without an error.
    """
    return x.unflatten(1, grid).permute(0, 3, 1, 2)


def to_tokens(x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b h*w c"]:
    """`b c h w -> b (h w) c`, row-major. For a channels-last map this is a contiguous view."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)

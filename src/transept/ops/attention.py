"""The attention core that the families share."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from transept.ops.tokens import merge_heads, split_heads


def attend(
    q: Float[Tensor, "b l c"], k: Float[Tensor, "b n c"], v: Float[Tensor, "b n c"], num_heads: int
) -> Float[Tensor, "b l c"]:
    """Multi-head softmax attention with scale `d ** -0.5`, on the fused kernel.

    Class attention passes the class token alone as the query (`l = 1`), which costs a share `1 / n` of ordinary
    attention.
    """
    q, k, v = (split_heads(t, num_heads) for t in (q, k, v))
    return merge_heads(scaled_dot_product_attention(q, k, v))

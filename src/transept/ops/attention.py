"""The attention core that the families share."""

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from transept.ops.tokens import merge_heads, split_heads


def attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """Multi-head softmax attention with scale `d ** -0.5`, on the fused kernel.

    `q` is `b l c`; `k` and `v` are `b n c`; the result is `b l c`. Class attention passes the class
    token alone as the query (`l = 1`), which costs a share `1 / n` of ordinary attention.
    """
    q, k, v = (split_heads(t, num_heads) for t in (q, k, v))
    return merge_heads(scaled_dot_product_attention(q, k, v))

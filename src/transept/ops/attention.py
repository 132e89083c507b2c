"""The attention core that the families share."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from transept.ops.tokens import merge_heads, split_heads

_LEAST_SCORES = 150_000
"""Of all heads: fewer gain nothing, where they are not compiled."""
_MOST_SCORES = 512 * 512
"""Of one head, that are spelt out: more are better never written to memory."""


def attend(
    q: Float[Tensor, "b l c"], k: Float[Tensor, "b n c"], v: Float[Tensor, "b n c"], num_heads: int
) -> Float[Tensor, "b l c"]:
    """Multi-head softmax attention with scale `d ** -0.5`.

    Class attention passes the class token alone as the query (`l = 1`), which costs a share `1 / n` of ordinary
    attention.
    """
    q, k, v = (split_heads(t, num_heads) for t in (q, k, v))
    return merge_heads(softmax_attention(q, k, v))


def softmax_attention(
    q: Float[Tensor, "b m l d"],
    k: Float[Tensor, "b m n d"],
    v: Float[Tensor, "b m n d"],
    bias: Float[Tensor, "#b #m l n"] | None = None,
) -> Float[Tensor, "b m l d"]:
    """`softmax(q k^T / sqrt(d) + bias) v`, on PyTorch's fused kernel, or spelt out where that is quicker.

    In bfloat16 on x86 processors without matrix units the fused kernel's products are MKL's, and those that are spelt
    out oneDNN's: compiled on Zen 4, 512 windows of 49 tokens take 0.6 of the time, and so do 48 heads of 197 tokens
    (torch 2.15). In float32 the fused kernel is as quick or quicker.
    """
    if _spelt_out_is_quicker(q, k):
        return spelt_out(q, k, v, bias)
    return scaled_dot_product_attention(q, k, v, attn_mask=bias)


def spelt_out(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """`softmax_attention`, each step by itself.

    The queries are scaled and not the scores: those Inductor recognises, and puts the fused kernel back (torch 2.15).
    """
    scores = q * q.shape[-1] ** -0.5 @ k.mT
    return (scores if bias is None else scores + bias).softmax(dim=-1) @ v


def _spelt_out_is_quicker(q: Tensor, k: Tensor) -> bool:
    if q.dtype != torch.bfloat16 or q.device.type != "cpu" or torch.is_grad_enabled() or not _has_vector_units_alone():
        return False
    scores = q.shape[-2] * k.shape[-2]
    if not isinstance(scores, int) or scores > _MOST_SCORES:  # in a graph for any size the bound would be the graph's
        return False
    return torch.compiler.is_compiling() or q.shape[:-2].numel() * scores >= _LEAST_SCORES


@torch.compiler.assume_constant_result
def _has_vector_units_alone() -> bool:
    """Whether this processor multiplies bfloat16 by its vector units, and has no matrix units."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16")) and not found.get("amx_bf16")

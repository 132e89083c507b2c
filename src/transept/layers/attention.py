"""Attention as in ViT, where a family's block has it beside its own."""

from jaxtyping import Float
from torch import Tensor, nn

from transept.layers.linear import Linear
from transept.layers.residual import scaled_linear
from transept.ops.attention import attend


class SelfAttention(nn.Module):
    """Multi-head self-attention, as in ViT; in BiXT that of the latents."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, dim * 3)
        self.proj = Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n c"], scale: Float[Tensor, " c"] | None = None) -> Float[Tensor, "b n c"]:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return scaled_linear(self.proj, attend(q, k, v, self.num_heads), scale)

"""CaiT (Touvron et al., "Going deeper with Image Transformers", arXiv 2103.17239).

Section 2      LayerScale                 gamma_1 and gamma_2 of every block
Section 3      ClassAttentionBlock        two last blocks in which only the class token changes
Section 4      TalkingHeadsAttention      heads are mixed before and after the softmax (arXiv 2003.02436)
Table 3        VARIANTS

Module names are those of the official checkpoints, so these load as they are (without their `module.` prefix).

Departures from the official code, all without effect on the outputs at the native size:
- any image size: the position embedding is resized (bicubic, as DeiT's fine-tuning does), and sides that are no
  multiple of the patch are padded with zeros at the right and bottom; the official model asserts one size;
- heads are mixed by a matrix product over the head axis where it lies, without moving it last and back;
- the bias of the second mix is added to the output, where it is a multiple of the sum of the values, and not to
  every entry of the attention map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DropPath, PatchEmbed, trunc_normal_
from torch import Tensor, nn

from transept.layers.checkpointing import run_block
from transept.layers.linear import Linear
from transept.layers.residual import Mlp, add_branch, scaled_linear
from transept.models.attention import (
    AttentionWeights,
    Grid,
    ShowsAttention,
    class_token_weights,
    softmax_weights,
    token_weights,
    whole_map,
)
from transept.models.backbone import ClassAttentionBackbone, Family, ModelConfig, Pyramid
from transept.ops.attention import attend
from transept.ops.interpolation import resize_position_embedding
from transept.ops.tokens import merge_heads, split_heads, stack_heads, to_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class CaiTConfig(ModelConfig):
    """The columns of Table 3. Heads have 48 channels in every published model."""

    embed_dim: int
    depth: int
    num_heads: int
    init_scale: float
    """Initial value of LayerScale."""
    patch_size: int = 16

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}")
        if self.patch_size not in (4, 8, 16):
            raise ValueError(f"patch_size={self.patch_size}; use 16 (published), 8 or 4")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at the native size."""
        height, width = self.img_size
        return -(-height // self.patch_size), -(-width // self.patch_size)


def _variant(img_size: int, embed_dim: int, depth: int, init_scale: float) -> CaiTConfig:
    return CaiTConfig(
        img_size=(img_size, img_size),
        embed_dim=embed_dim,
        depth=depth,
        num_heads=embed_dim // 48,
        init_scale=init_scale,
    )


VARIANTS = {  #                   size  dim  depth  LayerScale
    "cait_xxs24_224": _variant(224, 192, 24, 1e-5),
    "cait_xxs24_384": _variant(384, 192, 24, 1e-5),
    "cait_xxs36_224": _variant(224, 192, 36, 1e-5),
    "cait_xxs36_384": _variant(384, 192, 36, 1e-5),
    "cait_xs24_384": _variant(384, 288, 24, 1e-5),
    "cait_s24_224": _variant(224, 384, 24, 1e-5),
    "cait_s24_384": _variant(384, 384, 24, 1e-5),
    "cait_s36_384": _variant(384, 384, 36, 1e-6),
    "cait_m36_384": _variant(384, 768, 36, 1e-6),
    "cait_m48_448": _variant(448, 768, 48, 1e-6),
}


class TalkingHeadsAttention(nn.Module, ShowsAttention):
    """Self-attention whose heads are mixed linearly before and after the softmax (Section 4).

    No fused kernel computes it: the maps of all heads at one position meet twice.
    """

    attention_kind = "talking-heads"

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = Linear(dim, dim * 3)
        self.proj_l = nn.Linear(num_heads, num_heads)
        self.proj_w = nn.Linear(num_heads, num_heads)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:  # b n c -> b n c
        qkv = stack_heads(self.qkv(x), self.num_heads)
        mixes = self.proj_l.weight * self.scale, self.proj_w.weight, self.proj_w.bias
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            out, _ = _TalkingHeads.apply(qkv, *mixes, self.proj_l.bias)
        else:
            out, _ = talking_heads(qkv, *mixes)
        return scaled_linear(self.proj, merge_heads(out), scale)

    def attention_weights(self, grid: Grid, x: Tensor) -> AttentionWeights:
        """Those between the two mixes, after the second of which they may be negative."""
        q, k, _ = (split_heads(t, self.num_heads) for t in self.qkv(x).chunk(3, dim=-1))
        logits = torch.einsum("mn, bnqk -> bmqk", self.proj_l.weight, q * self.scale @ k.transpose(-2, -1))
        return token_weights(logits.softmax(dim=-1), whole_map(grid, x))


def talking_heads(
    qkv: Tensor,
    before: Tensor,
    after: Tensor,
    after_bias: Tensor,
    mix: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The values that the heads gather, `b m n d`, and the maps between the mixes, `b m n n`, of `3 b m n d`.

    `mix` is another way to mix maps `b m n n` by weights `m m` than one batched product. The bias of the first mix is
    constant along the keys: the softmax cancels it.
    """
    mix = mix or _mix_heads
    q, k, v = qkv.unbind()
    maps = mix(q @ k.mT, before).softmax(dim=-1)
    # (A + w 1 1^T) V = A V + w (sum of V over the keys)
    out = mix(maps, after).to(v.dtype) @ v
    return out + after_bias.view(-1, 1, 1) * v.sum(dim=-2, keepdim=True), maps


class _TalkingHeads(torch.autograd.Function):
    """`talking_heads` that keeps one of the four maps for the backward pass, and computes the others again."""

    @staticmethod
    def forward(
        qkv: Tensor, before: Tensor, after: Tensor, after_bias: Tensor, before_bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        return talking_heads(qkv, before, after, after_bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        qkv, before, after, after_bias, before_bias, maps = ctx.saved_tensors
        q, k, v = qkv.unbind()
        grad = grads[0].to(v.dtype)
        before, after, maps = (t.to(v.dtype) for t in (before, after, maps))
        grad_sum = grad.sum(dim=-2, keepdim=True)
        grad_v = _mix_heads(maps, after).mT @ grad + after_bias.to(v.dtype).view(-1, 1, 1) * grad_sum
        grad_mixed = grad @ v.mT
        grad_after = _sum_products(grad_mixed, maps)
        grad_maps = _mix_heads(grad_mixed, after.t())
        grad_mixed = torch.ops.aten._softmax_backward_data(grad_maps, maps, -1, maps.dtype)
        grad_before = _sum_products(grad_mixed, q @ k.mT)
        grad_logits = _mix_heads(grad_mixed, before.t())
        grad_qkv = torch.stack((grad_logits @ k, grad_logits.mT @ q, grad_v))
        grad_bias = (grad_sum * v.sum(dim=-2, keepdim=True)).sum(dim=(0, 2, 3))
        # DistributedDataParallel waits for the gradient of every parameter, that of zero too.
        return grad_qkv, grad_before, grad_after, grad_bias, torch.zeros_like(before_bias)


def _mix_heads(maps: Tensor, weight: Tensor) -> Tensor:
    """`b m q k`, and a linear map from heads to heads at every (query, key)."""
    flat = maps.flatten(2)
    return torch.bmm(weight.expand(flat.shape[0], -1, -1), flat).view_as(maps)


def _sum_products(a: Tensor, b: Tensor) -> Tensor:
    """Sums over images, queries and keys of the products of each head's map with each other's, `m m`."""
    return torch.bmm(a.flatten(2), b.flatten(2).mT).sum(dim=0)


class TalkingHeadsBlock(nn.Module):
    """Talking-heads attention and an MLP among the patches, each behind its LayerNorm, LayerScale and drop path."""

    def __init__(self, dim: int, num_heads: int, init_scale: float, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = TalkingHeadsAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden_features=4 * dim)
        self.gamma_1: Tensor | None
        self.gamma_2: Tensor | None
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((dim,), float(init_scale))) for _ in range(2))
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # b n c -> b n c
        x = add_branch(x, self.attn, self.norm1(x), scale=self.gamma_1, drop_path=self.drop_path)
        return add_branch(x, self.mlp, self.norm2(x), scale=self.gamma_2, drop_path=self.drop_path)


class ClassAttention(nn.Module, ShowsAttention):
    """Attention of the class token to itself and all patches (Section 3); heads do not talk here."""

    attention_kind = "class"
    maps_per_token = False

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = Linear(dim, dim)
        self.k = Linear(dim, dim)
        self.v = Linear(dim, dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:  # b (1+n) c -> b 1 c
        out = attend(self.q(x[:, :1]), self.k(x), self.v(x), self.num_heads)
        return scaled_linear(self.proj, out, scale)

    def attention_weights(self, grid: Grid, x: Tensor) -> AttentionWeights:
        return class_token_weights(softmax_weights(self.q(x[:, :1]), self.k(x), self.num_heads), grid)


class ClassAttentionBlock(nn.Module):
    """Class attention and an MLP on the class token; the patch tokens are read and never changed."""

    def __init__(self, dim: int, num_heads: int, init_scale: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ClassAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden_features=4 * dim)
        self.gamma_1: Tensor | None
        self.gamma_2: Tensor | None
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((dim,), float(init_scale))) for _ in range(2))

    def forward(self, cls_token: Tensor, x: Tensor) -> Tensor:  # b 1 c, b n c -> b 1 c
        normed = self.norm1(torch.cat([cls_token, x], dim=1))
        cls_token = add_branch(cls_token, self.attn, normed, scale=self.gamma_1)
        return add_branch(cls_token, self.mlp, self.norm2(cls_token), scale=self.gamma_2)


class CaiTTrunk(ClassAttentionBackbone):
    """Patch embedding, position embedding and talking-heads blocks: what classifier and pyramid share."""

    def __init__(self, config: CaiTConfig, in_chans: int, drop_path_rate: float) -> None:
        super().__init__(config, in_chans=in_chans, embed_dim=config.embed_dim, stride=config.patch_size)
        dim = config.embed_dim
        self.grid = config.grid
        self.patch_embed = PatchEmbed(
            img_size=None,
            patch_size=config.patch_size,
            in_chans=in_chans,
            embed_dim=dim,
            flatten=False,
            dynamic_img_pad=True,
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], dim))
        # The same rate in every block, not a growing one.
        self.blocks = nn.ModuleList(
            TalkingHeadsBlock(dim, config.num_heads, config.init_scale, drop_path_rate) for _ in range(config.depth)
        )

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Image `b 3 H W` to tokens `b (h w) c` and their grid."""
        x = self.patch_embed(x)
        grid = (x.shape[-2], x.shape[-1])
        return to_tokens(x) + resize_position_embedding(self.pos_embed, self.grid, grid), grid

    def run(self, block: nn.Module, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return run_block(block, x, checkpointing=self.grad_checkpointing)

    def init_weights(self) -> None:
        """Linear layers, head mixes included, and position embedding: normal with std 0.02; biases 0."""
        trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def group_matcher(self, coarse: bool = False) -> dict:
        return {
            "stem": r"^cls_token|^pos_embed|^patch_embed",
            "blocks": r"^blocks\.(\d+)",
            "class_blocks": [(r"^blocks_token_only\.(\d+)", None), (r"^norm|^fpn", (99999,))],
        }


class CaiT(CaiTTrunk):
    """The classifier: `b 3 H W -> b num_classes` logits, for any height and width."""

    rollout_kinds = ("talking-heads", "class")

    def __init__(
        self, config: CaiTConfig, *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__(config, in_chans, drop_path_rate)
        dim = config.embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks_token_only = nn.ModuleList(
            ClassAttentionBlock(dim, config.num_heads, config.init_scale) for _ in range(2)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.reset_classifier(num_classes)
        trunc_normal_(self.cls_token, std=0.02)
        self.init_weights()

    def class_blocks(self, x: Tensor, *, patches: bool = True) -> Tensor:
        cls_token = self.cls_token.expand(x.shape[0], -1, -1)
        for block in self.blocks_token_only:
            cls_token = run_block(block, cls_token, x, checkpointing=self.grad_checkpointing)
        return self.norm(torch.cat([cls_token, x], dim=1) if patches else cls_token)


class CaiTPyramid(Pyramid, CaiTTrunk):
    """Maps of strides 4, 8, 16, 32, by XCiT's up- and down-sampling (CaiT's paper has no dense model)."""


FAMILY = Family(
    name="CaiT",
    paper="Touvron et al., Going deeper with Image Transformers, arXiv 2103.17239",
    variants=VARIANTS,
    classifier=CaiT,
    pyramid=CaiTPyramid,
    checkpoint_prefix="module.",
    in_timm=True,
    first_conv="patch_embed.proj",
    not_in_timm=frozenset({"init_scale"}),
)

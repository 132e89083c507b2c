"""XCiT (El-Nouby et al., "XCiT: Cross-Covariance Image Transformers", arXiv 2106.09681).

Section 3.2    CrossCovarianceAttention   channels attend to channels: cost linear in the number of tokens
Section 3.3    LocalPatchInteraction      two depthwise convolutions let neighbouring patches talk
Section 3.3    XCABlock                   XCA, then LPI, then the MLP
Section 3.3    ClassAttentionBlock        the class token gathers the patches
Section 3.3    ConvPatchEmbed             a stem of strided 3x3 convolutions
Appendix A     FourierPositionEncoding    fixed sines, one learned projection
Table 1        VARIANTS

Module names are those of the official checkpoints, so these load as they are.

Departures from the official code, all without effect on the outputs:
- the cross-covariance is formed from the raw queries and keys and divided by their norms afterwards,
  which normalises a d x d matrix and not two n x d ones;
- class attention computes a query for the class token only;
- the nano models no longer write into a tensor that the backward pass needs (the official ones cannot
  train on current PyTorch);
- one output in training mode, where the official model returns the same logits twice;
- `in_chans` is honoured; the position encoding follows the dtype of its projection (bfloat16 works);
- plain BatchNorm: convert with `torch.nn.SyncBatchNorm.convert_sync_batchnorm` when processes share a batch.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, gelu

from transept.layers.batch_norm import next_statistics, recomputes
from transept.layers.checkpointing import run_block
from transept.layers.linear import Linear
from transept.layers.patch_embedding import ConvPatchEmbed
from transept.layers.position_encoding import FourierPositionEncoding
from transept.layers.projection import QueryKeyValue
from transept.layers.residual import Mlp, add_branch, scaled_linear
from transept.models.attention import (
    AttentionWeights,
    Grid,
    Places,
    ShowsAttention,
    class_token_weights,
    softmax_weights,
)
from transept.models.backbone import ClassAttentionBackbone, Family, ModelConfig, Pyramid
from transept.ops.attention import attend
from transept.ops.tokens import merge_heads, stack_heads, to_map, to_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class XCiTConfig(ModelConfig):
    """The columns of Table 1."""

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int
    eta: float
    """Initial value of LayerScale."""
    tokens_norm: bool
    """Class attention normalises all tokens, not only the class token (off in the nano models)."""
    stem_depth: int | None = None
    """Convolutions of the stem; by default as many as halve the image down to its patches. Of more, the first ones keep
    the resolution: the stem of larger patches, as in robust models of 32 x 32 pictures."""

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}")
        if self.patch_size not in (4, 8, 16):
            raise ValueError(f"patch_size={self.patch_size} has no stem; use 16 or 8 (published) or 4")
        if self.embed_dim % (self.patch_size // 2):
            raise ValueError(
                f"embed_dim={self.embed_dim} must be a multiple of {self.patch_size // 2}"
                f" for patch_size={self.patch_size}"
            )
        if self.stem_depth is not None:
            least = self.patch_size.bit_length() - 1
            if self.stem_depth < least or self.embed_dim % 2 ** (self.stem_depth - 1):
                raise ValueError(
                    f"stem_depth={self.stem_depth} must be at least {least} for patch_size={self.patch_size}, and "
                    f"embed_dim={self.embed_dim} a multiple of 2 ** (stem_depth - 1)"
                )


_TABLE_1: dict[str, dict[str, Any]] = {
    "nano_12": dict(embed_dim=128, depth=12, num_heads=4, eta=1.0, tokens_norm=False),
    "tiny_12": dict(embed_dim=192, depth=12, num_heads=4, eta=1.0, tokens_norm=True),
    "small_12": dict(embed_dim=384, depth=12, num_heads=8, eta=1.0, tokens_norm=True),
    "tiny_24": dict(embed_dim=192, depth=24, num_heads=4, eta=1e-5, tokens_norm=True),
    "small_24": dict(embed_dim=384, depth=24, num_heads=8, eta=1e-5, tokens_norm=True),
    "medium_24": dict(embed_dim=512, depth=24, num_heads=8, eta=1e-5, tokens_norm=True),
    "large_24": dict(embed_dim=768, depth=24, num_heads=16, eta=1e-5, tokens_norm=True),
}
VARIANTS = {
    f"xcit_{size}_p{patch_size}_{img_size}": XCiTConfig(**row, patch_size=patch_size, img_size=(img_size, img_size))
    for (size, row), patch_size, img_size in product(_TABLE_1.items(), (16, 8), (224, 384))
}


class CrossCovarianceAttention(nn.Module, ShowsAttention):
    """XCA: softmax(K^T Q / tau) between the d channels of each head (Section 3.2).

    Columns of Q and K, one per channel, have unit norm over the tokens; `temperature` is 1 / tau, learned per head.
    The order of the tokens does not matter.
    """

    attention_kind = "cross-covariance"
    maps_per_token = False

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = Linear(dim, dim * 3)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:  # b n c -> b n c
        attention, v = self.attention(x)
        return scaled_linear(self.proj, merge_heads(v @ attention.mT), scale)

    def attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The weights `b m d d` (rows sum to one; row i mixes the channels of v into channel i) and v, `b m n d`."""
        qkv = stack_heads(self.qkv(x), self.num_heads)
        q, k, v = qkv.unbind()
        # The fused attention kernels want normalised q and k. Dividing the d x d product instead saves two
        # passes over the tokens, and is faster than those kernels at these shapes (head dimension n). The CPU's
        # `vector_norm` takes four times as long along this axis.
        norms = _squares(qkv[:2]).clamp_min(1e-24).sqrt()
        q_norm, k_norm = norms.unbind()  # b m 1 d
        if x.dtype == torch.float16:  # a sum over thousands of tokens may exceed 65504
            q, q_norm = (q / q_norm).to(q.dtype), torch.ones_like(q_norm)
        scale = self.temperature / (q_norm.mT * k_norm)
        return (q.mT @ k * scale).softmax(dim=-1).to(v.dtype), v

    def attention_weights(self, grid: Grid, x: Tensor) -> AttentionWeights:
        """Between the channels of a head, which have no place in the image."""
        weights, _ = self.attention(x)
        channels = Places((1, 1), torch.full(weights.shape[-1:], -1, device=x.device)[None])
        return AttentionWeights(weights, channels, [channels], over="channels")


def _squares(x: Tensor) -> Tensor:  # ... n d -> ... 1 d
    """Sums over the tokens in float32."""
    if x.dtype == torch.float32 or torch.compiler.is_compiling():
        return _Squares.forward(x)
    return _Squares.apply(x)


class _Squares(torch.autograd.Function):
    """Keeps `x` as it is, where autograd keeps it in float32."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.float().square().sum(dim=-2, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (2 * grads[0] * x).to(x.dtype)


class LocalPatchInteraction(nn.Module):
    """LPI: two depthwise 3x3 convolutions with GELU, then BatchNorm, between them (Section 3.3)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.act = nn.GELU()
        self.bn = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, x: Tensor, grid: tuple[int, int], scale: Tensor | None = None) -> Tensor:  # b n c -> b n c
        x = self.conv1(to_map(x, grid))
        weight, bias = self.conv2.weight, self.conv2.bias
        assert bias is not None
        if scale is not None:
            weight, bias = weight * scale.view(-1, 1, 1, 1), bias * scale
        if type(self.conv2) is nn.Conv2d and recomputes(self.bn, self.act, x):
            statistics = next_statistics(self.bn)
            return to_tokens(_ActNormConv.apply(x, self.bn.weight, self.bn.bias, weight, bias, *statistics))
        return to_tokens(conv2d(self.bn(self.act(x)), weight, bias, padding=1, groups=x.shape[1]))


class _ActNormConv(torch.autograd.Function):
    """GELU, BatchNorm in training and a depthwise 3x3 convolution that keep the input of the first alone."""

    @staticmethod
    def forward(
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
    ) -> Tensor:
        x = batch_norm(gelu(x), running_mean, running_var, gamma, beta, training=True, momentum=momentum, eps=eps)
        return conv2d(x, weight, bias, padding=1, groups=x.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.eps = inputs[5]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, weight = ctx.saved_tensors
        activated = gelu(x)
        normed, mean, invstd = torch.native_batch_norm(activated, gamma, beta, None, None, True, 0.0, ctx.eps)
        grad, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grads[0], normed, weight.to(normed.dtype), [len(weight)], [1, 1], [1, 1], [1, 1], False, [0, 0],
            len(weight), [True] * 3,
        )  # fmt: skip
        grad, grad_gamma, grad_beta = torch.ops.aten.native_batch_norm_backward(
            grad, activated, gamma, None, None, mean, invstd, True, ctx.eps, [True] * 3
        )
        grad = torch.ops.aten.gelu_backward(grad, x)
        # under autocast the convolution is bfloat16's, and its weights are float32
        grad_weight, grad_bias = grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)
        return grad, grad_gamma, grad_beta, grad_weight, grad_bias, None, None, None, None


class XCABlock(nn.Module):
    """XCA, LPI and MLP, each behind its LayerNorm, LayerScale and drop path.

    The numbers of norms and gammas follow the checkpoints: LPI came last to the code and is 3, yet runs second.
    """

    def __init__(self, dim: int, num_heads: int, eta: float, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = CrossCovarianceAttention(dim, num_heads)
        self.norm3 = nn.LayerNorm(dim, eps=1e-6)
        self.local_mp = LocalPatchInteraction(dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden_features=4 * dim)
        self.gamma1: Tensor | None
        self.gamma2: Tensor | None
        self.gamma3: Tensor | None
        self.gamma1, self.gamma2, self.gamma3 = (nn.Parameter(torch.full((dim,), float(eta))) for _ in range(3))
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:  # b n c -> b n c
        x = add_branch(x, self.attn, self.norm1(x), scale=self.gamma1, drop_path=self.drop_path)
        x = add_branch(x, self.local_mp, self.norm3(x), grid, scale=self.gamma3, drop_path=self.drop_path)
        return add_branch(x, self.mlp, self.norm2(x), scale=self.gamma2, drop_path=self.drop_path)


class ClassAttention(nn.Module, ShowsAttention):
    """Multi-head attention of the class token to all tokens; one joint qkv projection, as released."""

    attention_kind = "class"
    maps_per_token = False

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = QueryKeyValue(dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # b (1+n) c -> b 1 c
        return self.proj(attend(self.qkv.query(x[:, :1]), *self.qkv.key_value(x), self.num_heads))

    def attention_weights(self, grid: Grid, x: Tensor) -> AttentionWeights:
        q, k, _ = self.qkv(x).chunk(3, dim=-1)
        return class_token_weights(softmax_weights(q[:, :1], k, self.num_heads), grid)


class ClassAttentionBlock(nn.Module):
    """Class attention and an MLP on the class token (Section 3.3).

    Not CaiT's block: the patch tokens change too. They gain their own normalised copy, pass through norm2
    where `tokens_norm` is set, and are doubled by the last residual. The released weights were trained so.
    """

    def __init__(self, dim: int, num_heads: int, eta: float, *, tokens_norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ClassAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden_features=4 * dim)
        self.gamma1 = nn.Parameter(torch.full((dim,), float(eta)))
        self.gamma2: Tensor | None = nn.Parameter(torch.full((dim,), float(eta)))
        self.tokens_norm = tokens_norm

    def forward(self, x: Tensor, patches: bool = True) -> Tensor:  # b (1+n) c -> b (1+n) c
        """Without `patches` the class token alone, `b 1 c`: all that a classifier reads of the last block."""
        normed = self.norm1(x)
        cls_token = self.norm2(torch.addcmul(x[:, :1], self.gamma1, self.attn(normed)))
        cls_token = add_branch(cls_token, self.mlp, cls_token, scale=self.gamma2)
        if not patches:
            return cls_token
        x = torch.addcmul(x[:, 1:], self.gamma1, normed[:, 1:])
        return torch.cat([cls_token, 2 * (self.norm2(x) if self.tokens_norm else x)], dim=1)


class XCiTTrunk(ClassAttentionBackbone):
    """Patch embedding, position encoding and XCA blocks: what classifier and pyramid share."""

    def __init__(self, config: XCiTConfig, in_chans: int, drop_path_rate: float) -> None:
        super().__init__(config, in_chans=in_chans, embed_dim=config.embed_dim, stride=config.patch_size)
        dim = config.embed_dim
        self.patch_embed = ConvPatchEmbed(in_chans, dim, config.patch_size, config.stem_depth)
        self.pos_embeder = FourierPositionEncoding(dim)
        # The same rate in every block, not a growing one.
        self.blocks = nn.ModuleList(
            XCABlock(dim, config.num_heads, config.eta, drop_path_rate) for _ in range(config.depth)
        )

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Image `b 3 H W` to tokens `b (h w) c` and their grid."""
        x = self.patch_embed(x)
        grid = (x.shape[-2], x.shape[-1])
        return to_tokens(x) + self.pos_embeder(grid), grid

    def run(self, block: nn.Module, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return run_block(block, x, grid, checkpointing=self.grad_checkpointing)

    def init_weights(self) -> None:
        """Linear layers: normal with std 0.02, biases 0. Convolutions keep PyTorch's default, as officially."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def group_matcher(self, coarse: bool = False) -> dict:
        return {
            "stem": r"^cls_token|^pos_embeder|^patch_embed",
            "blocks": r"^blocks\.(\d+)",
            "class_blocks": [(r"^cls_attn_blocks\.(\d+)", None), (r"^norm|^fpn", (99999,))],
        }


class XCiT(XCiTTrunk):
    """The classifier: `b 3 H W -> b num_classes` logits, for any height and width."""

    def __init__(
        self, config: XCiTConfig, *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__(config, in_chans, drop_path_rate)
        dim = config.embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.cls_attn_blocks = nn.ModuleList(
            ClassAttentionBlock(dim, config.num_heads, config.eta, tokens_norm=config.tokens_norm) for _ in range(2)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.reset_classifier(num_classes)
        trunc_normal_(self.cls_token, std=0.02)
        self.init_weights()

    def class_blocks(self, x: Tensor, *, patches: bool = True) -> Tensor:
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        for i, block in enumerate(self.cls_attn_blocks, 1):
            needed = patches or i < len(self.cls_attn_blocks)
            x = run_block(block, x, needed, checkpointing=self.grad_checkpointing)
        return self.norm(x)


class XCiTPyramid(Pyramid, XCiTTrunk):
    """The backbone of the official detection and segmentation models: maps of strides 4, 8, 16, 32 (Section 4.3).

    Blocks a third, a half, two thirds and all of the way give the four levels, without a norm.
    """


FAMILY = Family(
    name="XCiT",
    paper="El-Nouby et al., XCiT: Cross-Covariance Image Transformers, arXiv 2106.09681",
    variants=VARIANTS,
    classifier=XCiT,
    pyramid=XCiTPyramid,
    in_timm=True,
    values_in_timm={"patch_size": (8, 16), "stem_depth": (None,)},
    first_conv="patch_embed.proj.0.0",
)

"""BiXT (Hiller et al., "Perceiving Longer Sequences With Bi-Directional Cross-Attention Transformers", NeurIPS 2024,
arXiv 2402.12138).

Bi-directional cross-attention   BiDirectionalCrossAttention   latents and tokens attend to each other by one similarity
Latents attend to tokens         LatentsReadTokens        its softmax over the tokens
Tokens attend to latents         TokensReadLatents        its softmax over the latents
Refinement of both streams       BiXTBlock                that, an MLP for each, and self-attention of the latents
Convolutional tokeniser          ConvPatchEmbed           XCiT's stem (layers/patch_embedding.py)
Positional encoding              FourierPositionEncoding  XCiT's (layers/position_encoding.py), added to the tokens
Released models                  VARIANTS

A few learned latents (64) carry what the picture means, the tokens where it is. Tokens never attend to each other, so
the cost grows with their number and no faster. Module names are those of the official checkpoints.

Departures from the official code, all without effect on the outputs at the native sizes:
- any image size: the grid is read from the image, `floor(side / stride)`, and in the convolutional models
  `ceil(side / stride)`; officially models assert one size (and then compute with the grid alone);
- the position features are computed, where half of the official models keep them in their checkpoints;
- the published models at 384 that the official code lists and cannot build (both d13 ones, d256/8 with LayerScale) are
  here, and the one whose weights it cannot find under its name;
- the position encoding follows the dtype of its projection (officially float64 and bfloat16 fail at 384);
- one rate of drop path for cross- and self-attention, which growing from block to block is theirs;
- `features_only=True` leaves out, with the one-sided last block, what the block before it would do to the latents.

Kept, since the weights were trained so: the latents take weight decay (nothing but vectors and biases is spared); their
mean is taken before the norm; "/8" and "/4" have kernels of 16 x 16 that overlap.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.layers import DropPath, lecun_normal_, trunc_normal_
from torch import Tensor, nn

from transept.layers.attention import SelfAttention
from transept.layers.checkpointing import run_block
from transept.layers.linear import Linear, linear
from transept.layers.patch_embedding import ConvPatchEmbed
from transept.layers.position_encoding import FourierPositionEncoding
from transept.layers.residual import Mlp, add_branch, scaled_linear
from transept.models.attention import AttentionWeights, Grid, Places, ShowsAttention, token_weights, whole_map
from transept.models.backbone import Family, GlobalPool, IsotropicBackbone, ModelConfig, Pyramid
from transept.ops.tokens import merge_heads, stack_heads, to_map, to_tokens

Sides = Literal["both", "latents", "tokens"]
"""Which of the two streams a block goes on with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BiXTConfig(ModelConfig):
    """What the published models differ in. Heads have 32 channels in all of them."""

    embed_dim: int
    """Channels of latents and tokens."""
    depth: int
    num_heads: int
    num_latents: int
    patch_size: int
    """Pixels from token to token: 16, 8 or 4. Without `conv_embed` each sees 16 x 16 pixels."""
    conv_embed: bool = False
    """A chain of 3x3 convolutions embeds the patches, as in XCiT."""
    init_scale: float | None = None
    """Initial value of LayerScale; None: there is none."""

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}")
        if self.patch_size not in (4, 8, 16):
            raise ValueError(f"patch_size={self.patch_size}; use 16, 8 or 4")
        if self.depth < 2:
            raise ValueError(f"depth={self.depth}; give at least 2, for the last block updates the latents alone")
        if self.num_latents < 1:
            raise ValueError(f"num_latents={self.num_latents} must be at least 1")
        if self.conv_embed and self.embed_dim % (self.patch_size // 2):
            raise ValueError(
                f"embed_dim={self.embed_dim} must be a multiple of {self.patch_size // 2}"
                f" for patch_size={self.patch_size} and conv_embed=True"
            )


def _variant(
    patch_size: int = 16,
    *,
    dim: int = 192,
    depth: int = 12,
    latents: int = 64,
    img_size: int = 224,
    conv: bool = False,
    init_scale: float | None = None,
) -> BiXTConfig:
    return BiXTConfig(
        img_size=(img_size, img_size),
        embed_dim=dim,
        depth=depth,
        num_heads=dim // 32,
        num_latents=latents,
        patch_size=patch_size,
        conv_embed=conv,
        init_scale=init_scale,
    )


VARIANTS = {
    "bixt_ti_l64_p16": _variant(16),
    "bixt_ti_l64_p16s8": _variant(8),
    "bixt_ti_l64_p16s4": _variant(4),
    "bixt_ti_l64_p16_ft384": _variant(16, img_size=384),
    "bixt_ti_l64_p16s8_ft384": _variant(8, img_size=384),
    "bixt_ti_l64_p16s4_ft384": _variant(4, img_size=384),
    "bixt_ti_l64_d13_p16": _variant(16, depth=13),
    "bixt_ti_l64_d13_p16s8": _variant(8, depth=13),
    "bixt_ti_l64_d13_p16s4": _variant(4, depth=13),
    "bixt_ti_l64_d13_p16_ft384": _variant(16, depth=13, img_size=384),
    "bixt_ti_l64_d13_p16s8_ft384": _variant(8, depth=13, img_size=384),
    "bixt_ti_l32_p16": _variant(16, latents=32),
    "bixt_ti_l32_p16s8": _variant(8, latents=32),
    "bixt_ti_l128_p16": _variant(16, latents=128),
    "bixt_ti_l128_p16s8": _variant(8, latents=128),
    "bixt_ed256_l64_p16": _variant(16, dim=256),
    "bixt_ed256_l64_p16s8": _variant(8, dim=256),
    "bixt_ed256LS_l64_p16s8": _variant(8, dim=256, init_scale=1e-5),
    "bixt_ed256_l64_p16s8_ft384": _variant(8, dim=256, img_size=384),
    "bixt_ed256LS_l64_p16s8_ft384": _variant(8, dim=256, img_size=384, init_scale=1e-5),
    "bixt_ti_cnv_l64_p16": _variant(16, conv=True),
    "bixt_ti_cnv_l64_d13_p16": _variant(16, depth=13, conv=True),
    "bixt_ti_cnv_l64_d13_p8": _variant(8, depth=13, conv=True),
    "bixt_ti_cnv_l64_d13_p4": _variant(4, depth=13, conv=True),
}


class PatchEmbed(nn.Module):
    """One convolution of 16 x 16 pixels, whose patches overlap where `stride` is less: `b 3 H W -> b c h w`."""

    def __init__(self, in_chans: int, dim: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, 16, stride=stride, padding=(16 - stride) // 2)

    def forward(self, x: Tensor) -> Tensor:
        # Channels last makes the way to tokens a view.
        return self.proj(x.contiguous(memory_format=torch.channels_last))


class Scale(nn.Module):
    """LayerScale's vector `gamma`, where a model has it: the published `ed256LS`."""

    def __init__(self, dim: int, init_scale: float | None) -> None:
        super().__init__()
        self.gamma: Tensor | None
        self.gamma = None if init_scale is None else nn.Parameter(torch.full((dim,), float(init_scale)))


class LatentsReadTokens(nn.Module, ShowsAttention):
    """From the similarity `b m l n` and the tokens' values: what each latent gathers."""

    attention_kind = "latents-to-tokens"
    maps_per_token = False

    def forward(self, similarity: Tensor, v: Tensor) -> Tensor:  # b m l n, b m n d -> b m l d
        return similarity.softmax(dim=-1) @ v

    def attention_weights(self, grid: Grid, similarity: Tensor, v: Tensor) -> AttentionWeights:
        """Latents have no place on the map: they stand together at one."""
        latents = Places((1, 1), torch.zeros(1, similarity.shape[2], dtype=torch.long, device=similarity.device))
        return AttentionWeights(similarity.softmax(dim=-1), latents, [whole_map(grid, similarity)])


class TokensReadLatents(nn.Module, ShowsAttention):
    """From the same similarity and the latents' values: what each token gathers."""

    attention_kind = "tokens-to-latents"

    def forward(self, similarity: Tensor, v: Tensor) -> Tensor:  # b m l n, b m l d -> b m n d
        return similarity.softmax(dim=-2).mT @ v

    def attention_weights(self, grid: Grid, similarity: Tensor, v: Tensor) -> AttentionWeights:
        """Where the latents look that a token reads: both softmaxes of the similarity, one after the other.

        A token's weights on the latents have no place on the map; those of the latents on the tokens have.
        """
        through_latents = similarity.softmax(dim=-2).mT @ similarity.softmax(dim=-1)
        return token_weights(through_latents, whole_map(grid, similarity))


class BiDirectionalCrossAttention(nn.Module):
    """Latents gather tokens and tokens gather latents.

    Each side has a "reference" in the place of query and key, and a value. The similarity of the references is computed
    once; its softmax over the tokens tells each latent what to gather, its softmax over the latents each token.
    """

    def __init__(self, dim: int, num_heads: int, sides: Sides) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.sides = sides
        self.rv_patches = Linear(dim, 2 * dim)
        if sides != "tokens":
            self.latents_read = LatentsReadTokens()
            self.proj_lat = Linear(dim, dim)
        if sides == "latents":
            self.r_latents = Linear(dim, dim)
        else:
            self.rv_latents = Linear(dim, 2 * dim)
            self.tokens_read = TokensReadLatents()
            self.proj_pat = Linear(dim, dim)

    def forward(
        self, latents: Tensor, tokens: Tensor, scale_lat: Tensor | None = None, scale_pat: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """What latents `b l c` and tokens `b n c` gather, each times its scale; None for a side that ends here."""
        (r_lat, v_lat), (r_pat, v_pat) = self.references_and_values(latents, tokens)
        similarity = r_lat * self.scale @ r_pat.mT  # b m l n
        to_latents = to_tokens = None
        if v_pat is not None:
            to_latents = scaled_linear(self.proj_lat, merge_heads(self.latents_read(similarity, v_pat)), scale_lat)
        if v_lat is not None:
            to_tokens = scaled_linear(self.proj_pat, merge_heads(self.tokens_read(similarity, v_lat)), scale_pat)
        return to_latents, to_tokens

    def references_and_values(self, latents: Tensor, tokens: Tensor) -> tuple[tuple, tuple]:
        """References and values `b m n d` of latents and tokens; None for values that no one reads."""
        dim, heads = latents.shape[-1], self.num_heads
        if self.sides == "latents":
            r_lat, v_lat = stack_heads(self.r_latents(latents), heads, parts=1)[0], None
        else:
            r_lat, v_lat = stack_heads(self.rv_latents(latents), heads, parts=2)
        if self.sides == "tokens":
            joint = self.rv_patches
            r_pat = stack_heads(linear(tokens, joint.weight[:dim], joint.bias[:dim]), heads, parts=1)[0]
            return (r_lat, v_lat), (r_pat, None)
        return (r_lat, v_lat), tuple(stack_heads(self.rv_patches(tokens), heads, parts=2))


class CrossAttentionBlock(nn.Module):
    """Bi-directional cross-attention, then an MLP, for latents and tokens, each behind its norms and drop path: the
    paper's refinement of both streams.

    Both residuals start from the streams as they came.
    """

    def __init__(self, config: BiXTConfig, sides: Sides, drop_path_rate: float) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1_lat = nn.LayerNorm(dim, eps=1e-6)
        self.norm1_pat = nn.LayerNorm(dim, eps=1e-6)
        self.attn = BiDirectionalCrossAttention(dim, config.num_heads, sides)
        if sides != "tokens":
            self.ls1_lat, self.norm2_lat, self.mlp_lat, self.ls2_lat = self._way_out(config)
        if sides != "latents":
            self.ls1_pat, self.norm2_pat, self.mlp_pat, self.ls2_pat = self._way_out(config)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    @staticmethod
    def _way_out(config: BiXTConfig) -> tuple[Scale, nn.LayerNorm, Mlp, Scale]:
        dim, init_scale = config.embed_dim, config.init_scale
        return (
            Scale(dim, init_scale),
            nn.LayerNorm(dim, eps=1e-6),
            Mlp(dim, hidden_features=4 * dim),
            Scale(dim, init_scale),
        )

    def forward(self, latents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:  # b l c, b n c -> the same
        scale_lat = None if self.attn.sides == "tokens" else self.ls1_lat.gamma
        scale_pat = None if self.attn.sides == "latents" else self.ls1_pat.gamma
        to_latents, to_tokens = self.attn(self.norm1_lat(latents), self.norm1_pat(tokens), scale_lat, scale_pat)
        if to_latents is not None:
            latents = latents + self.drop_path(to_latents)
            latents = self._mlp(latents, self.norm2_lat, self.mlp_lat, self.ls2_lat)
        if to_tokens is not None:
            tokens = tokens + self.drop_path(to_tokens)
            tokens = self._mlp(tokens, self.norm2_pat, self.mlp_pat, self.ls2_pat)
        return latents, tokens

    def _mlp(self, x: Tensor, norm: nn.Module, mlp: nn.Module, scale: Scale) -> Tensor:
        return add_branch(x, mlp, norm(x), scale=scale.gamma, drop_path=self.drop_path)


class SelfAttentionBlock(nn.Module):
    """Self-attention and an MLP of the latents, each behind its LayerNorm, LayerScale and drop path."""

    def __init__(self, config: BiXTConfig, drop_path_rate: float) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SelfAttention(dim, config.num_heads)
        self.ls1 = Scale(dim, config.init_scale)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden_features=4 * dim)
        self.ls2 = Scale(dim, config.init_scale)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # b l c -> b l c
        x = add_branch(x, self.attn, self.norm1(x), scale=self.ls1.gamma, drop_path=self.drop_path)
        return add_branch(x, self.mlp, self.norm2(x), scale=self.ls2.gamma, drop_path=self.drop_path)


class BiXTBlock(nn.Module):
    """Cross-attention of latents and tokens, then self-attention of the latents.

    The last block of a classifier goes on with the latents alone, the last of a pyramid with the tokens alone.
    """

    def __init__(self, config: BiXTConfig, sides: Sides, drop_path_rate: float) -> None:
        super().__init__()
        self.cross_attention_latents_token = CrossAttentionBlock(config, sides, drop_path_rate)
        if sides != "tokens":
            self.self_attention_latents = SelfAttentionBlock(config, drop_path_rate)
        self.sides = sides

    def forward(self, tokens: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:  # b n c, b l c -> the same
        latents, tokens = self.cross_attention_latents_token(latents, tokens)
        return tokens, latents if self.sides == "tokens" else self.self_attention_latents(latents)


class BiXTTrunk(IsotropicBackbone):
    """Tokens, positions, latents and blocks: what classifier and pyramid share."""

    def __init__(self, config: BiXTConfig, in_chans: int, drop_path_rate: float) -> None:
        dim, depth = config.embed_dim, config.depth
        super().__init__(config, in_chans=in_chans, embed_dim=dim, stride=config.patch_size)
        self.global_pool: GlobalPool = "avg"
        self.pretrained_cfg["crop_pct"] = 0.875
        embed = ConvPatchEmbed if config.conv_embed else PatchEmbed
        self.patch_embed = embed(in_chans, dim, config.patch_size)
        self.fourier_pos_encode = FourierPositionEncoding(dim)
        self.latents = nn.Parameter(torch.zeros(1, config.num_latents, dim))
        # A classifier's last block reads the tokens and leaves them; a pyramid has the blocks before it.
        both: list[Sides] = ["both"] * (depth - 2)
        kinds: list[Sides] = [*both, "tokens"] if self.is_pyramid else [*both, "both", "latents"]
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(BiXTBlock(config, sides, rate) for sides, rate in zip(kinds, rates, strict=False))
        self.depth = depth
        self.fc_norm: nn.Module = nn.Identity()

    def init_weights(self) -> None:
        """As the authors train from scratch: linear layers Xavier uniform, convolutions LeCun normal, latents normal
        with std 0.02; biases 0, but of the MLPs nearly so."""
        trunc_normal_(self.latents, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if "mlp" in name:
                    nn.init.normal_(module.bias, std=1e-6)
                else:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                lecun_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def num_levels(self) -> int:
        return self.depth - 1

    def embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Image `b 3 H W` to tokens `b (h w) c`, positions included, and their grid."""
        x = self.patch_embed(x)
        grid = (x.shape[-2], x.shape[-1])
        return to_tokens(x) + self.fourier_pos_encode(grid), grid

    def run_blocks(
        self, x: Tensor, take: Collection[int] = (), stop: int | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Image `b 3 H W` to the latents `b l c` after the first `stop` blocks, and maps `b c h w` of the tokens after
        those in `take`."""
        tokens, grid = self.embed(x)
        latents = self.latents.expand(x.shape[0], -1, -1)
        levels = {}
        for i, block in enumerate(self.blocks[:stop]):
            tokens, latents = run_block(block, tokens, latents, checkpointing=self.grad_checkpointing)
            if i in take:
                levels[i] = to_map(tokens, grid)
        return latents, levels

    def forward_features(self, x: Tensor) -> Float[Tensor, "b l c"]:
        """Image `b 3 H W` to the latents `b l c`. The norm comes after their mean, in `pool`."""
        return self.run_blocks(x)[0]

    def pool(self, x: Tensor) -> Tensor:
        return self.fc_norm(x.mean(dim=1)) if self.global_pool == "avg" else x

    def intermediates(
        self, x: Tensor, take: list[int], *, norm: bool, stop: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Levels are the tokens after all blocks that update them; they have no norm."""
        latents, levels = self.run_blocks(x, take, take[-1] + 1 if stop else None)
        return (None if stop else latents), [levels[i] for i in take]

    def group_matcher(self, coarse: bool = False) -> dict:
        return {
            "stem": r"^latents|^fourier_pos_encode|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^fc_norm|^fpn", (99999,))],
        }


class BiXT(BiXTTrunk):
    """The classifier: `b 3 H W -> b num_classes` logits, for any height and width from one patch on.

    Its last layer starts at zero.
    """

    def __init__(
        self, config: BiXTConfig, *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__(config, in_chans, drop_path_rate)
        self.fc_norm = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.init_weights()
        self.reset_classifier(num_classes)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)


class BiXTPyramid(Pyramid, BiXTTrunk):
    """Maps of strides 4, 8, 16, 32: the tokens, brought to them by XCiT's up- and down-sampling.

    Without the last block of the classifier, whose tokens go nowhere: for dense tasks the authors train 13 blocks and
    keep 12. The last that is kept updates the tokens alone.
    """

    def __init__(self, config: BiXTConfig, **arguments: Any) -> None:
        super().__init__(config, **arguments)
        last = config.depth - 2
        for_latents = r"self_attention_latents|cross_attention_latents_token\.(attn\.proj|norm2|mlp|ls1|ls2)_lat"
        self.classifier_parts = r"^fc_norm\.", rf"^blocks\.{last + 1}\.", rf"^blocks\.{last}\.({for_latents})"

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = {level: self.level_blocks[level] for level in self.out_indices}
        _, maps = self.run_blocks(x, taps.values(), max(taps.values()) + 1)
        return [self.get_submodule(f"fpn{level + 1}")(maps[i]) for level, i in taps.items()]


FAMILY = Family(
    name="BiXT",
    paper="Hiller et al., Perceiving Longer Sequences With Bi-Directional Cross-Attention Transformers,"
    " arXiv 2402.12138",
    variants=VARIANTS,
    classifier=BiXT,
    pyramid=BiXTPyramid,
    derived_buffers=(r"^fourier_pos_encode\.pos$",),
)

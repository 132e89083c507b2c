"""CabViT-P, the plain model: DeiT's outline, with a class token (paper and departures: cabvit.py).

Plain model     CabViTP        DeiTBlock as released, or the CaB block (cabvit_block.py) as in the paper
Variants        VARIANTS
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from timm.layers import DropPath, PatchEmbed, trunc_normal_
from torch import Tensor, nn

from transept.layers.checkpointing import run_block
from transept.layers.residual import Mlp
from transept.models.attention import Grid, TokenSelfAttention
from transept.models.backbone import IsotropicBackbone, ModelConfig, Pyramid
from transept.models.cabvit_block import (
    cab_blocks,
    check_block,
    check_heads,
    drop_path_rates,
    init_weights,
    offset_index,
    preprocessing,
    shrink,
)
from transept.ops.interpolation import resize_position_embedding
from transept.ops.tokens import to_map, to_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class CabViTPConfig(ModelConfig):
    """CabViT-P: one stage of patches with a class token."""

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int = 16
    cross_blocks: bool
    """Attention reaches the digests of earlier blocks, as in the paper; off, the network is DeiT, as released."""
    digest_stride: int = 4
    """With `cross_blocks`: stride of the convolution that makes the digests."""
    layer_scale_init: float = 1e-6
    """With `cross_blocks`: initial value of the scales of both branches."""

    def __post_init__(self) -> None:
        check_heads(self.embed_dim, self.num_heads)
        if self.depth < 1:
            raise ValueError(f"depth={self.depth} must be at least 1")
        if self.patch_size not in (4, 8, 16):
            raise ValueError(f"patch_size={self.patch_size}; use 16 (published), 8 or 4")
        if not self.cross_blocks:
            for option, default in (("digest_stride", 4), ("layer_scale_init", 1e-6)):
                if (value := getattr(self, option)) != default:
                    raise ValueError(f"{option}={value} has no effect without cross_blocks; set cross_blocks=True")
        check_block(self.digest_stride, self.layer_scale_init)

    @property
    def grids(self) -> dict[str, Grid]:
        """Rows and columns of the one stage's patches at the native size."""
        return {"blocks": shrink(self.img_size, self.patch_size)}


def _plain(*, cross_blocks: bool) -> CabViTPConfig:
    return CabViTPConfig(img_size=(224, 224), embed_dim=192, depth=12, num_heads=3, cross_blocks=cross_blocks)


VARIANTS = {  #                                   parameters
    "cabvit_p_l0": _plain(cross_blocks=False),  #      5.7 M, as released
    "cabvit_p_l0_cross": _plain(cross_blocks=True),  # 5.9 M, our design
}


class DeiTBlock(nn.Module):
    """Attention and an MLP, each behind its LayerNorm and drop path: the released CabViT-P."""

    def __init__(self, dim: int, num_heads: int, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = TokenSelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden_features=4 * dim)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # b n c -> b n c
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CabViTPTrunk(IsotropicBackbone):
    """Patches, class token, positions and blocks: what classifier and pyramid share.

    Any size: zeros at the right and bottom make sides multiples of the patch, positions are resized as DeiT's are.
    """

    def __init__(self, config: CabViTPConfig, in_chans: int, drop_path_rate: float) -> None:
        dim, depth = config.embed_dim, config.depth
        super().__init__(config, in_chans=in_chans, embed_dim=dim, stride=config.patch_size)
        self.pretrained_cfg |= preprocessing(config.img_size)
        self.grid = config.grids["blocks"]
        self.patch_embed = PatchEmbed(
            img_size=None,
            patch_size=config.patch_size,
            in_chans=in_chans,
            embed_dim=dim,
            flatten=False,
            dynamic_img_pad=True,
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], dim))
        rates = drop_path_rates(drop_path_rate, depth)
        self.cross_blocks = config.cross_blocks
        if config.cross_blocks:
            self.dynamic_step = None
        self.blocks = nn.ModuleList(
            cab_blocks(
                dim,
                config.num_heads,
                self.grid,
                rates,
                for_class_token=True,
                digest_stride=config.digest_stride,
                layer_scale_init=config.layer_scale_init,
            )
            if config.cross_blocks
            else [DeiTBlock(dim, config.num_heads, rate) for rate in rates]
        )
        self.norm: nn.Module = nn.Identity()

    def init_weights(self) -> None:
        for embedding in (self.cls_token, self.pos_embed):
            trunc_normal_(embedding, std=0.02)
        init_weights(self.blocks)

    def embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Image `b 3 H W` to the sequence `b (1+n) c`, class token first, and the grid of its patches."""
        x = self.patch_embed(x)
        grid = (x.shape[-2], x.shape[-1])
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = to_tokens(x) + resize_position_embedding(self.pos_embed[:, 1:], self.grid, grid)
        return torch.cat([cls_token, x], dim=1), grid

    def run_blocks(self, x: Tensor, take: Collection[int] = (), stop: int | None = None) -> tuple[Tensor, dict]:
        """Image `b 3 H W` to the sequence `b (1+n) c` after the first `stop` blocks, and maps after those in `take`."""
        x, grid = self.embed(x)
        offsets = offset_index(grid, x.device) if self.cross_blocks else None
        digests: list[Tensor] = []
        levels = {}
        for i, block in enumerate(self.blocks[:stop]):
            if self.cross_blocks:
                x, digest = run_block(block, x, tuple(digests), grid, offsets, checkpointing=self.grad_checkpointing)
                digests.append(digest)
            else:
                x = run_block(block, x, checkpointing=self.grad_checkpointing)
            if i in take:
                levels[i] = to_map(x[:, 1:], grid)
        return x, levels

    def forward_features(self, x: Tensor) -> Tensor:
        """Image `b 3 H W` to the normalised sequence `b (1+n) c`, class token first."""
        return self.norm(self.run_blocks(x)[0])

    def intermediates(
        self, x: Tensor, take: list[int], *, norm: bool, stop: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Levels are the blocks; the class token is left out."""
        x, levels = self.run_blocks(x, take, take[-1] + 1 if stop else None)
        maps = [levels[i] for i in take]
        if norm:
            maps = [self.norm(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for level in maps]
        return (None if stop else self.norm(x)), maps

    def group_matcher(self, coarse: bool = False) -> dict:
        return {
            "stem": r"^cls_token|^pos_embed|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm|^fpn", (99999,))],
        }


class CabViTP(CabViTPTrunk):
    """The plain classifier: `b 3 H W -> b num_classes` logits, for any height and width."""

    class_token_attends = True

    def __init__(
        self, config: CabViTPConfig, *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__(config, in_chans, drop_path_rate)
        self.rollout_kinds = () if config.cross_blocks else ("self",)
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.init_weights()
        self.reset_classifier(num_classes)

    @property
    def cam_levels(self) -> list[str]:
        """Without the last block where the class token alone leaves it."""
        levels = super().cam_levels
        return levels[:-1] if self.global_pool == "token" else levels


class CabViTPPyramid(Pyramid, CabViTPTrunk):
    """Maps of strides 4, 8, 16, 32, by XCiT's up- and down-sampling (CabViT-P has no dense model)."""

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = {level: self.level_blocks[level] for level in self.out_indices}
        _, maps = self.run_blocks(x, taps.values(), max(taps.values()) + 1)
        return [self.get_submodule(f"fpn{level + 1}")(maps[i]) for level, i in taps.items()]

"""CrossViT (Chen et al., "CrossViT: Cross-Attention Multi-Scale Vision Transformer", arXiv 2103.14899).

Section 3.1    TransformerBlock       ViT's block, in each branch by itself
Section 3.2    MultiScaleStage        both branches, then their fusion (the paper's multi-scale encoder)
Section 3.3    CrossAttentionBlock    the class token of one branch reads the patches of the other
Section 4      PatchEmbed             one linear layer, or three convolutions in the dagger models
Table 1        VARIANTS

Branch 0 is the small one (patches of 12 pixels, few blocks, narrow), branch 1 the large one (16 pixels). What has the
index b in `projs`, `fusion` and `revert_projs` belongs to the class token of branch b and has the width of the other.
Module names are those of the official checkpoints, so these load as they are.

Each branch looks at a picture of its own: the image, resized (bicubic, without antialiasing) to whole patches. Variants
are called after the picture of the small branch; that of the large one has 224 pixels for 240, 384 for 408, and 14 / 15
of other sizes, to the nearest whole patch.

Departures from the official code, all without effect on the outputs at the native sizes:
- with `squash=False` an image keeps its size and proportions, and positions are resized (bicubic) in place of the
  picture: for pictures that are not square, crops of several sizes, and the pyramid. As released (`squash=True`), an
  image of any size is pressed into the model's own;
- a model can be built for any size, also not square; officially sides are square multiples of the patches;
- an image that has the height of a branch's picture, but not its width, is resized, too; officially it fails;
- without a classifier the model gives both class tokens side by side, as timm's does; the official one fails.

Kept, since the weights were trained so: the class token that comes back from the fusion replaces the one before it, no
residual connects the two; position embeddings and class tokens take weight decay, although the official code means to
spare them (its list has not their names).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.nn.functional import interpolate

from transept.layers.checkpointing import run_block
from transept.layers.linear import Linear
from transept.layers.pyramid import scale_modules
from transept.layers.residual import Mlp
from transept.models.attention import (
    AttentionWeights,
    Grid,
    ShowsAttention,
    TokenSelfAttention,
    class_token_weights,
    softmax_weights,
)
from transept.models.backbone import Backbone, Family, GlobalPool, ModelConfig, pyramid_levels
from transept.ops.attention import attend
from transept.ops.interpolation import resize_map, resize_position_embedding, same_size
from transept.ops.tokens import to_map, to_tokens

PATCH_SIZES = 12, 16
STAGES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossViTConfig(ModelConfig):
    """The columns of Table 1. `img_size` is that of the small branch's picture."""

    embed_dims: tuple[int, int]
    """Channels of the small and of the large branch."""
    depth: int
    """Blocks of the large branch in each of the three stages; the small branch has one."""
    num_heads: int
    mlp_ratio: int
    conv_embed: bool
    """Three convolutions embed the patches (the dagger models)."""
    squash: bool = True
    """Images of another size than `img_size` are pressed into it; off: positions are resized to the image."""

    def __post_init__(self) -> None:
        if len(self.embed_dims) != 2:
            raise ValueError(f"embed_dims={self.embed_dims}; give two numbers, of the small and of the large branch")
        if self.num_heads < 1 or any(dim < 1 or dim % self.num_heads for dim in self.embed_dims):
            raise ValueError(f"embed_dims={self.embed_dims} must be multiples of num_heads={self.num_heads}")
        if self.conv_embed and any(dim % 4 for dim in self.embed_dims):
            raise ValueError(f"embed_dims={self.embed_dims} must be multiples of 4 for conv_embed=True")
        if self.mlp_ratio < 1:
            raise ValueError(f"mlp_ratio={self.mlp_ratio} must be at least 1")

    @property
    def grids(self) -> tuple[Grid, Grid]:
        """Rows and columns of each branch's patches at the native size."""
        return branch_grids(self.img_size)


def branch_grids(size: tuple[int, int]) -> tuple[Grid, Grid]:
    """Rows and columns of whole patches of the small and the large branch, for an image of this height and width."""
    (h, w), (high, wide) = ((_small(side), _large(side)) for side in size)
    return (h, high), (w, wide)


def _small(side: int) -> int:
    return max(1, (side + PATCH_SIZES[0] // 2) // PATCH_SIZES[0])


def _large(side: int) -> int:
    """14 / 15 of the side in patches of 16, rounded; 504 goes with 480, as in the paper's largest model."""
    return 30 if side == 504 else max(1, (7 * side + 60) // 120)


def _variant(img_size: int, dims: tuple[int, int], depth: int, mlp_ratio: int, *, conv: bool = False) -> CrossViTConfig:
    return CrossViTConfig(
        img_size=(img_size, img_size),
        embed_dims=dims,
        depth=depth,
        num_heads=dims[0] // 32,
        mlp_ratio=mlp_ratio,
        conv_embed=conv,
    )


VARIANTS = {  #                            size  channels  depth  MLP ratio
    "crossvit_tiny_240": _variant(240, (96, 192), 4, 4),
    "crossvit_small_240": _variant(240, (192, 384), 4, 4),
    "crossvit_base_240": _variant(240, (384, 768), 4, 4),
    "crossvit_9_240": _variant(240, (128, 256), 3, 3),
    "crossvit_15_240": _variant(240, (192, 384), 5, 3),
    "crossvit_18_240": _variant(240, (224, 448), 6, 3),
    "crossvit_9_dagger_240": _variant(240, (128, 256), 3, 3, conv=True),
    "crossvit_15_dagger_240": _variant(240, (192, 384), 5, 3, conv=True),
    "crossvit_15_dagger_408": _variant(408, (192, 384), 5, 3, conv=True),
    "crossvit_18_dagger_240": _variant(240, (224, 448), 6, 3, conv=True),
    "crossvit_18_dagger_408": _variant(408, (224, 448), 6, 3, conv=True),
    "crossvit_18_dagger_480": _variant(504, (224, 448), 6, 3, conv=True),  # never released
}


class PatchEmbed(nn.Module):
    """`b 3 H W -> b c h w` without a norm: whole patches by one layer, or overlapping ones by three convolutions."""

    def __init__(self, in_chans: int, dim: int, patch_size: int, *, conv: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj: nn.Module = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
        if conv:
            stride, padding, last = (3, 0, 1) if patch_size == 12 else (2, 1, 2)
            self.proj = nn.Sequential(
                nn.Conv2d(in_chans, dim // 4, 7, stride=4, padding=3),
                nn.ReLU(inplace=True),
                nn.Conv2d(dim // 4, dim // 2, 3, stride=stride, padding=padding),
                nn.ReLU(inplace=True),
                nn.Conv2d(dim // 2, dim, 3, stride=last, padding=1),
            )

    def forward(self, x: Tensor) -> Tensor:
        # Channels last makes the way to tokens a view.
        return self.proj(x.contiguous(memory_format=torch.channels_last))


class TransformerBlock(nn.Module):
    """Attention and an MLP, each behind its LayerNorm and drop path, on class token and patches of one branch."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = TokenSelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden_features=mlp_ratio * dim)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # b (1+n) c -> b (1+n) c
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class BranchEncoder(nn.ModuleList):
    """The blocks of one branch in one stage (Section 3.2)."""

    def forward(self, x: Tensor, checkpointing: bool = False) -> Tensor:  # b (1+n) c -> b (1+n) c
        for block in self:
            x = run_block(block, x, checkpointing=checkpointing)
        return x


class CrossAttention(nn.Module, ShowsAttention):
    """Attention of one token, the first, to all (Section 3.3)."""

    attention_kind = "class"
    maps_per_token = False

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.wq = Linear(dim, dim)
        self.wk = Linear(dim, dim)
        self.wv = Linear(dim, dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # b (1+n) c -> b 1 c
        return self.proj(attend(self.wq(x[:, :1]), self.wk(x), self.wv(x), self.num_heads))

    def attention_weights(self, grid: Grid, x: Tensor) -> AttentionWeights:
        return class_token_weights(softmax_weights(self.wq(x[:, :1]), self.wk(x), self.num_heads), grid)


class CrossAttentionBlock(nn.Module):
    """A projected class token gathers the patches of the branch whose width it has; no MLP follows (Section 3.3)."""

    def __init__(self, dim: int, num_heads: int, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = CrossAttention(dim, num_heads)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, cls_token: Tensor, patches: Tensor) -> Tensor:  # b 1 c, b n c -> b 1 c
        normed = self.norm1(torch.cat([cls_token, patches], dim=1))
        return cls_token + self.drop_path(self.attn(normed))


class ClassTokenProjection(nn.Sequential):
    """The way of a class token to the width of the other branch, or back (Section 3.3)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__(nn.LayerNorm(dim, eps=1e-6), nn.GELU(), nn.Linear(dim, out_dim))


class MultiScaleStage(nn.Module):
    """Both branches by themselves, then the class token of each visits the patches of the other (Section 3.2).

    `rates` are the drop path rates of the large branch's blocks: the small branch's block has the first, the fusion
    the last. Without `fusion` the stage ends with its branches, as in a pyramid, where no one reads class tokens.
    """

    def __init__(self, config: CrossViTConfig, rates: Sequence[float], *, fusion: bool = True) -> None:
        super().__init__()
        dims, heads, ratio = config.embed_dims, config.num_heads, config.mlp_ratio
        self.blocks = nn.ModuleList(
            BranchEncoder(TransformerBlock(dim, heads, ratio, rate) for rate in branch_rates)
            for dim, branch_rates in zip(dims, (rates[:1], rates), strict=True)
        )
        self.fuses = fusion
        if fusion:
            ways = (dims, dims[::-1])  # from the branch's own width to the other's
            self.projs = nn.ModuleList(ClassTokenProjection(own, other) for own, other in ways)
            self.fusion = nn.ModuleList(CrossAttentionBlock(other, heads, rates[-1]) for _, other in ways)
            self.revert_projs = nn.ModuleList(ClassTokenProjection(other, own) for own, other in ways)

    def forward(self, small: Tensor, large: Tensor, checkpointing: bool = False) -> tuple[Tensor, Tensor]:
        """Sequences `b (1+n) c` of both branches, class token first, to the same."""
        small, large = self.encode(small, large, checkpointing)
        if not self.fuses:
            return small, large
        tokens = self.fuse(small, large, checkpointing)
        return torch.cat([tokens[0], small[:, 1:]], dim=1), torch.cat([tokens[1], large[:, 1:]], dim=1)

    def encode(self, small: Tensor, large: Tensor, checkpointing: bool = False) -> tuple[Tensor, Tensor]:
        """Each branch by itself."""
        return self.blocks[0](small, checkpointing), self.blocks[1](large, checkpointing)

    def fuse(self, small: Tensor, large: Tensor, checkpointing: bool = False) -> list[Tensor]:
        """The new class tokens `b 1 c` of both branches."""
        tokens = []
        for b, (own, other) in enumerate(((small, large), (large, small))):
            token = self.projs[b](own[:, :1])
            token = run_block(self.fusion[b], token, other[:, 1:], checkpointing=checkpointing)
            tokens.append(self.revert_projs[b](token))
        return tokens


class BranchHeads(nn.ModuleList):
    """A classifier for each branch, and the mean of their logits: `b (c0+c1) -> b num_classes`."""

    def __init__(self, dims: Sequence[int], num_classes: int) -> None:
        super().__init__(nn.Linear(dim, num_classes) for dim in dims)
        self.dims, self.out_features = list(dims), num_classes

    def forward(self, x: Tensor) -> Tensor:
        small, large = x.split(self.dims, dim=-1)
        # Halves are exact; where products themselves are added, Inductor fuses that and fails at it (torch 2.15).
        return torch.add(self[0](small) / 2, self[1](large), alpha=0.5)


class CrossViTTrunk(Backbone):
    """Pictures, patch embeddings, positions and stages: what classifier and pyramid share."""

    norm: nn.ModuleList

    def __init__(self, config: CrossViTConfig, in_chans: int, drop_path_rate: float, *, last_fusion: bool) -> None:
        dims, depth = config.embed_dims, config.depth
        super().__init__(config, in_chans=in_chans, num_features=sum(dims))
        self.embed_dims = dims
        self.grids = config.grids
        self.squash = config.squash
        self.patch_embed = nn.ModuleList(
            PatchEmbed(in_chans, dim, patch_size, conv=config.conv_embed)
            for dim, patch_size in zip(dims, PATCH_SIZES, strict=True)
        )
        self.cls_token = nn.ParameterList(torch.zeros(1, 1, dim) for dim in dims)
        self.pos_embed = nn.ParameterList(
            torch.zeros(1, 1 + h * w, dim) for (h, w), dim in zip(self.grids, dims, strict=True)
        )
        rates = torch.linspace(0, drop_path_rate, STAGES * depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            MultiScaleStage(config, rates[i * depth : (i + 1) * depth], fusion=last_fusion or i + 1 < STAGES)
            for i in range(STAGES)
        )

    def init_weights(self) -> None:
        """Linear layers, class tokens, positions: normal with std 0.02; biases 0. Convolutions: PyTorch's default."""
        for table in (*self.cls_token, *self.pos_embed):
            trunc_normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def pictures(self, x: Tensor) -> list[Tensor]:
        """The image `b 3 H W` as each branch sees it: of whole patches, resized as in the official code."""
        grids = self.grids if self.squash else branch_grids((x.shape[-2], x.shape[-1]))
        sizes = [(h * patch, w * patch) for (h, w), patch in zip(grids, PATCH_SIZES, strict=True)]
        return [
            x if same_size(x.shape[-2:], size) else interpolate(x, size=size, mode="bicubic", align_corners=False)
            for size in sizes
        ]

    def embed(self, x: Tensor) -> tuple[list[Tensor], list[Grid]]:
        """Image `b 3 H W` to the sequences `b (1+n) c` of both branches, class token first, and their grids."""
        sequences, grids = [], []
        for b, picture in enumerate(self.pictures(x)):
            patches = self.patch_embed[b](picture)
            grid = (patches.shape[-2], patches.shape[-1])
            cls_token, positions = self.cls_token[b], self.pos_embed[b]
            cls_token = (cls_token + positions[:, :1]).expand(x.shape[0], -1, -1)
            patches = to_tokens(patches) + resize_position_embedding(positions[:, 1:], self.grids[b], grid)
            sequences.append(torch.cat([cls_token, patches], dim=1))
            grids.append(grid)
        return sequences, grids

    def grid_modules(self) -> list[nn.Module]:
        return list(self.patch_embed)

    def grid_module(self, layer: str) -> nn.Module:
        """The fusion of a branch reads the patches of the other."""
        _, _, part, b, *_ = layer.split(".")
        return self.patch_embed[1 - int(b) if part == "fusion" else int(b)]

    def layer_position(self, name: str) -> tuple[int, int]:
        """Stage, and block within it: of the self-attention the small branch's, then the large one's."""
        _, stage, part, b, *rest = name.split(".")
        return int(stage), int(b) + (int(rest[0]) if part == "blocks" and rest else 0)

    level_position = layer_position

    def token_side(self, stage: int, image: tuple[int, int], grid: Grid) -> tuple[float, float]:
        """Every grid covers the whole image."""
        return image[0] / grid[0], image[1] / grid[1]

    @property
    def feature_info(self) -> Any:
        """As timm's: the small branch after each stage, then the large one."""
        reductions = 12, 17
        return [
            {"num_chs": self.embed_dims[b], "reduction": reductions[b], "module": f"blocks.{i}.blocks.{b}"}
            for b in range(2)
            for i in range(STAGES)
        ]

    @property
    def num_levels(self) -> int:
        return 2 * STAGES

    def forward_features(self, x: Tensor) -> Any:
        """Image `b 3 H W` to the normalised sequences `b (1+n) c` of both branches, class token first."""
        (small, large), _ = self.embed(x)
        for stage in self.blocks:
            small, large = stage(small, large, self.grad_checkpointing)
        return self.norm[0](small), self.norm[1](large)

    def pool(self, x: Any) -> Any:
        match self.global_pool:
            case "token":
                return torch.cat([sequence[:, 0] for sequence in x], dim=-1)
            case "avg":
                return torch.cat([sequence[:, 1:].mean(dim=1) for sequence in x], dim=-1)
            case "":
                return x

    def intermediates(self, x: Tensor, take: list[int], *, norm: bool, stop: bool) -> tuple[Any, list[Tensor]]:
        (small, large), grids = self.embed(x)
        levels: dict[int, Tensor] = {}
        wanted = {level % STAGES for level in take}
        for i, stage in enumerate(self.blocks[: max(wanted) + 1] if stop else self.blocks):
            small, large = stage(small, large, self.grad_checkpointing)
            for b, sequence in enumerate((small, large)):
                if (level := i + b * STAGES) in take:
                    patches = sequence[:, 1:]
                    levels[level] = to_map(self.norm[b](patches) if norm else patches, grids[b])
        maps = [levels[level] for level in take]
        return (None if stop else (self.norm[0](small), self.norm[1](large))), maps

    def group_matcher(self, coarse: bool = False) -> dict:
        return {
            "stem": r"^cls_token|^pos_embed|^patch_embed",
            # A stage's small branch beside the first block of the large one, its fusion after the last.
            "blocks": [
                (r"^blocks\.(\d+)\.blocks\.1\.(\d+)", None),
                (r"^blocks\.(\d+)\.blocks\.0", (0,)),
                (r"^blocks\.(\d+)", (99998,)),
                (r"^norm|^fpn", (99999,)),
            ],
        }

    def no_weight_decay(self) -> set[str]:
        """None: class tokens and position embeddings take weight decay, as they did when the weights were trained."""
        return set()


class CrossViT(CrossViTTrunk):
    """The classifier: `b 3 H W -> b num_classes` logits, for any height and width (see `squash`)."""

    global_pools = ("token", "avg", "")

    def __init__(
        self, config: CrossViTConfig, *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__(config, in_chans, drop_path_rate, last_fusion=True)
        self.global_pool: GlobalPool = "token"
        self.pretrained_cfg["crop_pct"] = 0.875 if max(config.img_size) < 384 else 1.0
        self.pretrained_cfg["classifier"] = ("head.0", "head.1")
        self.norm = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for dim in config.embed_dims)
        self.reset_classifier(num_classes)
        self.init_weights()

    def new_classifier(self, num_classes: int) -> nn.Module:
        return BranchHeads(self.embed_dims, num_classes)


class CrossViTPyramid(CrossViTTrunk):
    """Maps of strides 4, 8, 16, 32 for images of any size (the paper has no dense model; this is our design).

    The pictures of the branches keep the image's size to the nearest whole patch, whatever `squash` says. Patches of
    both branches, in maps of strides 12 and 17, are resized to stride 8, which is finer than either, and stand side by
    side: `c0 + c1` channels at every level, those of the small branch first. From there XCiT's modules lead to the four
    strides: a transposed convolution to 4, max-pools to 16 and 32. Stride 4 leaves after the first stage, 8 after the
    second, 16 and 32 after the last, whose fusion is left out: its class tokens reach no patch.
    """

    is_pyramid = True
    classifier_parts = (rf"^blocks\.{STAGES - 1}\.(projs|fusion|revert_projs)\.",)

    def __init__(
        self,
        config: CrossViTConfig,
        *,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] = (0, 1, 2, 3),
    ) -> None:
        super().__init__(config, in_chans, drop_path_rate, last_fusion=False)
        self.squash = False
        self.norm = nn.ModuleList(nn.Identity() for _ in range(2))
        self.fpn1, self.fpn2, self.fpn3, self.fpn4 = scale_modules(self.num_features, patch_size=8)
        self.init_weights()
        self.level_stages = (0, 1, 2, 2)
        """The stage after which each level leaves."""
        self.out_indices = pyramid_levels(out_indices)

    @property
    def feature_info(self) -> FeatureInfo:
        levels = [{"num_chs": self.num_features, "reduction": 4 * 2**i, "module": f"fpn{i + 1}"} for i in range(4)]
        return FeatureInfo(levels, self.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = self.levels(x, max(self.level_stages[level] for level in self.out_indices))
        return [levels[level] for level in self.out_indices]

    def levels(self, x: Tensor, last: int) -> dict[int, Tensor]:
        size = -(-x.shape[-2] // 8), -(-x.shape[-1] // 8)
        (small, large), grids = self.embed(x)
        levels = {}
        for i, stage in enumerate(self.blocks[: last + 1]):
            small, large = stage(small, large, self.grad_checkpointing)
            chosen = [level for level in self.out_indices if self.level_stages[level] == i]
            if chosen:
                maps = [to_map(x[:, 1:], grid) for x, grid in zip((small, large), grids, strict=True)]
                both = torch.cat([resize_map(each, size) for each in maps], dim=1)
                levels |= {level: self.get_submodule(f"fpn{level + 1}")(both) for level in chosen}
        return levels


FAMILY = Family(
    name="CrossViT",
    paper="Chen et al., CrossViT: Cross-Attention Multi-Scale Vision Transformer, arXiv 2103.14899",
    variants=VARIANTS,
    classifier=CrossViT,
    pyramid=CrossViTPyramid,
    notes={"crossvit_18_dagger_480": "described in the paper (84.1 % top-1), but its weights were never released"},
    in_timm=True,
    not_in_timm=frozenset(
        {"img_size", "embed_dims", "depth", "num_heads", "mlp_ratio", "conv_embed", "squash", "in_chans"}
    ),
    any_size={"squash": False},
)

"""CabViT-H, the hybrid model (paper and departures: cabvit.py).

Hybrid model    CabViTH          two convolutional stages, two attentive ones
                ConvStage        of ConvNeXt blocks, or of the two kinds that no published model has
                CabStage         each block hands its digest to all later ones (blocks: cabvit_block.py)
Dense models    CabViTHPyramid   attention in windows of the native grid
Variants        VARIANTS
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.layers import DropPath, LayerNorm2d
from timm.layers import Mlp as ConvMlp
from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.nn.functional import pad

from transept.layers.checkpointing import run_block
from transept.layers.linear import Linear
from transept.layers.position_bias import KeepsBias
from transept.models.attention import Grid
from transept.models.backbone import Backbone, ModelConfig, pyramid_levels
from transept.models.cabvit_block import (
    CabBlock,
    ConvBN,
    add_scaled,
    cab_blocks,
    check_block,
    check_heads,
    drop_path_rates,
    init_weights,
    offset_index,
    preprocessing,
    shrink,
)
from transept.ops.tokens import to_tokens
from transept.ops.windows import from_windows, to_windows


@dataclass(frozen=True, kw_only=True, slots=True)
class CabViTHConfig(ModelConfig):
    """CabViT-H: convolutional stages 0 and 1, attentive stages 2 and 3."""

    embed_dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int]
    """Heads of stages 2 and 3; they have 32 channels in every published model."""
    conv_block: Literal["convnext", "cf", "mb"] = "convnext"
    """Blocks of stages 0 and 1: ConvNeXt's (published), convolutional token mixing and MLP, or MobileNet's."""
    digest_stride: int = 4
    """Stride of the convolution that makes the digests. With 2, cabvit_h_l2 costs the 3.9 G that the paper states."""
    layer_scale_init: float = 1e-6
    pyramid_dims: tuple[int, int, int, int] | None = (96, 192, 384, 768)
    """Channels of the levels with `features_only=True`, as in FcaFormer's dense models; None: those of the stages."""

    def __post_init__(self) -> None:
        for option, length in (("embed_dims", 4), ("depths", 4), ("num_heads", 2)):
            if len(values := getattr(self, option)) != length or min(values) < 1:
                raise ValueError(f"{option}={values}; give {length} positive numbers, one per stage that has it")
        if self.embed_dims[0] % 2:
            raise ValueError(f"embed_dims[0]={self.embed_dims[0]} must be even: the stem's first half has half of it")
        for dim, num_heads in zip(self.embed_dims[2:], self.num_heads, strict=True):
            check_heads(dim, num_heads)
        if self.conv_block not in ("convnext", "cf", "mb"):
            raise ValueError(f"conv_block={self.conv_block!r}; use 'convnext' (published), 'cf' or 'mb'")
        if self.pyramid_dims is not None and (len(self.pyramid_dims) != 4 or min(self.pyramid_dims) < 1):
            raise ValueError(f"pyramid_dims={self.pyramid_dims}; give four numbers of channels, or None")
        check_block(self.digest_stride, self.layer_scale_init)

    @property
    def grids(self) -> dict[str, Grid]:
        """Rows and columns of the attentive stages at the native size."""
        return {"layer_2": shrink(self.img_size, 16), "layer_3": shrink(self.img_size, 32)}


def _hybrid(dims: tuple[int, int, int, int], depths: tuple[int, int, int, int]) -> CabViTHConfig:
    num_heads = (dims[2] // 32, dims[3] // 32)
    return CabViTHConfig(img_size=(224, 224), embed_dims=dims, depths=depths, num_heads=num_heads)


VARIANTS = {  #                                                    parameters
    "cabvit_h_l1": _hybrid((64, 128, 192, 320), (2, 2, 6, 2)),  #      6.2 M
    "cabvit_h_l2": _hybrid((96, 192, 320, 480), (2, 2, 7, 2)),  #     16.3 M
    "cabvit_h_l3": _hybrid((96, 192, 320, 512), (3, 6, 12, 3)),  #    27.9 M
    "cabvit_h_l4": _hybrid((128, 256, 512, 768), (3, 6, 12, 3)),  #   65.6 M, FcaFormer only
}


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7 convolution, LayerNorm, MLP, scale, and one residual around them all."""

    def __init__(self, dim: int, layer_scale_init: float, drop_path_rate: float) -> None:
        super().__init__()
        self.gamma: Tensor | None = nn.Parameter(torch.full((dim,), float(layer_scale_init)))
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = Linear(4 * dim, dim)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # b c h w -> b c h w, channels last in memory
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))  # b h w c
        y = self.pwconv2(self.act(self.pwconv1(y)))
        return add_scaled(x.permute(0, 2, 3, 1), y, self.gamma, self.drop_path).permute(0, 3, 1, 2)


class CFBlock(nn.Module):
    """A transformer block whose token mixing is a depthwise 3x3 convolution. Not in a published model."""

    def __init__(self, dim: int, layer_scale_init: float, drop_path_rate: float) -> None:
        super().__init__()
        self.layer_scale_init = layer_scale_init
        self.norm1 = LayerNorm2d(dim, eps=1e-6)
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.norm2 = LayerNorm2d(dim, eps=1e-6)
        self.mlp = ConvMlp(dim, hidden_features=4 * dim, use_conv=True)
        self.layer_scale_1: Tensor | None
        self.layer_scale_2: Tensor | None
        self.layer_scale_1, self.layer_scale_2 = (
            nn.Parameter(torch.full((dim,), float(layer_scale_init))) for _ in range(2)
        )
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.register_load_state_dict_pre_hook(self._fill_in_scales)

    def forward(self, x: Tensor) -> Tensor:  # b c h w -> b c h w
        x = self._add(x, self.dwconv(self.norm1(x)), self.layer_scale_1)
        return self._add(x, self.mlp(self.norm2(x)), self.layer_scale_2)

    def _add(self, x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
        x, branch = x.permute(0, 2, 3, 1), branch.permute(0, 2, 3, 1)  # the scale belongs to the last axis
        return add_scaled(x, branch, scale, self.drop_path).permute(0, 3, 1, 2)

    @staticmethod
    def _fill_in_scales(block: "CFBlock", state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        """A file of the official code lacks the scales: it ran with their initial value throughout."""
        weight = state_dict.get(f"{prefix}norm1.weight")
        if weight is not None:
            for name in ("layer_scale_1", "layer_scale_2"):
                state_dict.setdefault(prefix + name, torch.full_like(weight, block.layer_scale_init))


class MBBlock(nn.Module):
    """MobileNet's inverted bottleneck with GELU, also after the sum. Not in a published model."""

    def __init__(self, dim: int, layer_scale_init: float, drop_path_rate: float) -> None:
        super().__init__()
        self.conv1 = ConvBN(dim, 4 * dim, 1)
        self.conv2 = ConvBN(4 * dim, 4 * dim, 3, groups=4 * dim)
        self.conv3 = ConvBN(4 * dim, dim, 1)
        self.act = nn.GELU()
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        nn.init.zeros_(self.conv3.get_parameter("bn.weight"))

    def forward(self, x: Tensor) -> Tensor:  # b c h w -> b c h w
        y = self.conv3(self.act(self.conv2(self.act(self.conv1(x)))))
        return self.act(x + self.drop_path(y))


_CONV_BLOCKS = {"convnext": ConvNeXtBlock, "cf": CFBlock, "mb": MBBlock}


class ConvStem(nn.Module):
    """Two strided conv-BN with GELU between: `b 3 H W -> b c h w` with `h = ceil(H / 4)`."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvBN(in_chans, dim // 2, 3, stride=2), nn.GELU(), ConvBN(dim // 2, dim, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        # Channels last: the norms, the linear layers and the way to tokens then need no copies.
        return self.seq(x.contiguous(memory_format=torch.channels_last))


class Downsample(nn.Module):
    """Half the height and width, rounded up, and another number of channels: `b c h w -> b c h w`."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(dim_in, dim_out, 1)
        self.conv2 = ConvBN(dim_out, dim_out, 3, stride=2, groups=dim_out)
        self.conv3 = ConvBN(dim_out, dim_out, 1)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.act(self.conv2(self.act(self.conv1(x)))))


class ConvStage(nn.Module):
    """Convolutional blocks, `b c h w -> b c h w`. The trunk calls `downsample`, since levels leave before it."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor, *, checkpointing: bool) -> Tensor:
        for block in self.blocks:
            x = run_block(block, x, checkpointing=checkpointing)
        return x


class CabStage(KeepsBias):
    """CaB blocks, each of which hands its digest to all later ones: `b c h w -> b c h w`.

    `windowed`: every window of the native grid is an image of its own, digests included.
    """

    def __init__(self, blocks: Sequence[CabBlock], downsample: nn.Module | None, grid: Grid, *, windowed: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.grid = grid
        self.windowed = windowed

    def forward(self, x: Tensor, *, checkpointing: bool) -> Tensor:
        size = h, w = x.shape[-2], x.shape[-1]
        window = self.grid if self.windowed else (h, w)
        offsets = self.keep(window, [next(self.parameters())], lambda: offset_index(window, x.device))
        aligned = h % window[0] == 0 and w % window[1] == 0
        x = _cut(x.permute(0, 2, 3, 1), window, lead=True)
        digests: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if i > 0 and not aligned:  # else all blocks have the same windows
                x = _cut(_paste(x, window, size, lead=i % 2 == 1), window, lead=i % 2 == 0)
            x, digest = run_block(block, x, tuple(digests), window, offsets, checkpointing=checkpointing)
            digests.append(digest)
        return _paste(x, window, size, lead=len(self.blocks) % 2 == 1).permute(0, 3, 1, 2)


def _cut(x: Tensor, window: Grid, *, lead: bool) -> Tensor:
    """`b h w c` to windows `(b R S) (g k) c`, padded with zeros at left and top (`lead`) or at right and bottom.

    With windows of 4 x 4, a map of 10 x 8 gets two rows of zeros, 12 x 8, and is 3 x 2 windows of 16 tokens: two images
    `2 10 8 c` become `12 16 c`. With `lead` the rows 0 to 1 of the map share a window with the zeros above them,
    without it rows 8 to 9 share one with the zeros below.
    """
    rows, columns = -x.shape[1] % window[0], -x.shape[2] % window[1]
    if rows or columns:
        x = pad(x, (0, 0, columns, 0, rows, 0) if lead else (0, 0, 0, columns, 0, rows))
    return to_windows(x, window)


def _paste(x: Tensor, window: Grid, size: Grid, *, lead: bool) -> Tensor:
    """The inverse of `_cut`: windows to the map `b h w c` of `size` `(h, w)`, without the padding.

    `12 16 c` of windows of 4 x 4 are a map `2 12 8 c`, of which `size` (10, 8) keeps the last ten rows (`lead`) or the
    first.
    """
    h, w = size
    rows, columns = -h % window[0], -w % window[1]
    x = from_windows(x, window, (-1, h + rows, w + columns, x.shape[-1]))
    return x[:, rows:, columns:] if lead else x[:, :h, :w]


class CabViTHTrunk(Backbone):
    """Stem and four stages: what classifier and pyramid share."""

    norm_head: nn.Module

    def __init__(self, config: CabViTHConfig, in_chans: int, drop_path_rate: float, *, windowed: bool) -> None:
        super().__init__(config, in_chans=in_chans, num_features=config.embed_dims[-1])
        self.pretrained_cfg |= preprocessing(config.img_size)
        dims = self.dims = config.embed_dims
        rates = iter(drop_path_rates(drop_path_rate, sum(config.depths)))
        stage_rates = [[next(rates) for _ in range(depth)] for depth in config.depths]
        conv_block = _CONV_BLOCKS[config.conv_block]
        self.patch_embed = ConvStem(in_chans, dims[0])
        for s in (0, 1):
            blocks = [conv_block(dims[s], config.layer_scale_init, rate) for rate in stage_rates[s]]
            self.add_module(f"layer_{s}", ConvStage(blocks, Downsample(dims[s], dims[s + 1])))
        for s, num_heads, grid in zip((2, 3), config.num_heads, config.grids.values(), strict=True):
            blocks = cab_blocks(
                dims[s],
                num_heads,
                grid,
                stage_rates[s],
                for_class_token=False,
                digest_stride=config.digest_stride,
                layer_scale_init=config.layer_scale_init,
            )
            downsample = Downsample(dims[2], dims[3]) if s == 2 else None
            self.add_module(f"layer_{s}", CabStage(blocks, downsample, grid, windowed=windowed))

    def grid_modules(self) -> list[nn.Module]:
        """The layers that bring a map to the size of each stage."""
        return [self.patch_embed, *(module for module in self.modules() if isinstance(module, Downsample))]

    def run_stages(self, x: Tensor, take: Collection[int], stop: int = 4) -> dict[int, Tensor]:
        """Image `b 3 H W` to the maps `b c h w` of the stages in `take`; only the first `stop` stages are run."""
        x = self.patch_embed(x)
        levels = {}
        for s in range(stop):
            stage = self.get_submodule(f"layer_{s}")
            x = stage(x, checkpointing=self.grad_checkpointing)
            if s in take:
                levels[s] = x
            if s + 1 < stop:
                x = stage.get_submodule("downsample")(x)
        return levels

    @property
    def feature_info(self) -> Any:
        return [{"num_chs": dim, "reduction": 4 * 2**s, "module": f"layer_{s}"} for s, dim in enumerate(self.dims)]

    def forward_features(self, x: Tensor) -> Tensor:
        """Image `b 3 H W` to the last stage's tokens `b (h w) c`; the final LayerNorm follows the pooling."""
        return to_tokens(self.run_stages(x, (3,))[3])

    def pool(self, x: Tensor) -> Tensor:
        return self.norm_head(x.mean(dim=1) if self.global_pool == "avg" else x)

    @property
    def num_levels(self) -> int:
        return 4

    def intermediates(
        self, x: Tensor, take: list[int], *, norm: bool, stop: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Levels are the four stages, before their downsampling. `norm` can only apply to the last one."""
        levels = self.run_stages(x, take, take[-1] + 1) if stop else self.run_stages(x, {*take, 3})
        maps = [levels[s] for s in take]
        if norm and take[-1] == 3:
            maps[-1] = self.norm_head(levels[3].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return (None if stop else to_tokens(levels[3])), maps

    def group_matcher(self, coarse: bool = False) -> dict:
        if coarse:
            return {"stem": r"^patch_embed", "blocks": r"^layer_(\d+)"}
        return {
            "stem": r"^patch_embed",
            "blocks": [
                (r"^layer_(\d+)\.blocks\.(\d+)", None),
                (r"^layer_(\d+)\.downsample", (99999,)),
                (r"^norm_head|^out_\d", (99999,)),
            ],
        }


class CabViTH(CabViTHTrunk):
    """The hybrid classifier: `b 3 H W -> b num_classes` logits, for any height and width."""

    def __init__(
        self, config: CabViTHConfig, *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__(config, in_chans, drop_path_rate, windowed=False)
        self.norm_head = nn.LayerNorm(self.num_features)
        self.reset_classifier(num_classes)
        init_weights(self)


class CabViTHPyramid(CabViTHTrunk):
    """FcaFormer's dense backbone: maps `b c h w` of strides 4, 8, 16, 32, with `h = ceil(H / stride)`, for any size.

    Each level passes a 1x1 convolution to `pyramid_dims` and a LayerNorm. The names `out_0` to `out_3` are ours.
    """

    is_pyramid = True

    def __init__(
        self,
        config: CabViTHConfig,
        *,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] = (0, 1, 2, 3),
    ) -> None:
        super().__init__(config, in_chans, drop_path_rate, windowed=True)
        self.out_indices = pyramid_levels(out_indices)
        self.norm_head = nn.Identity()
        self.out_dims = config.pyramid_dims or self.dims
        for s, (dim, out_dim) in enumerate(zip(self.dims, self.out_dims, strict=True)):
            projection = nn.Conv2d(dim, out_dim, 1, bias=False) if config.pyramid_dims else nn.Identity()
            self.add_module(f"out_{s}", nn.Sequential(projection, LayerNorm2d(out_dim, eps=1e-6)))
        init_weights(self)

    @property
    def feature_info(self) -> FeatureInfo:
        levels = [{"num_chs": dim, "reduction": 4 * 2**s, "module": f"out_{s}"} for s, dim in enumerate(self.out_dims)]
        return FeatureInfo(levels, self.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = self.run_stages(x, self.out_indices, max(self.out_indices) + 1)
        return [self.get_submodule(f"out_{s}")(levels[s]) for s in self.out_indices]

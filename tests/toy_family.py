"""RippleNet (Doe and Roe, "Ripples over pixels", 2030): no real paper, but all that a family has to say, in one file.

Section 3.1   RippleBlock   neighbours mix, then channels
Section 3.2   RippleNet     four stages, each with half the side and twice the channels of the one before
Table 1       VARIANTS
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from timm.layers import DropPath, LayerNorm2d
from timm.models import FeatureInfo
from torch import Tensor, nn

from transept.layers.checkpointing import run_block
from transept.models.backbone import Backbone, Family, ModelConfig, pyramid_levels


@dataclass(frozen=True, kw_only=True, slots=True)
class RippleConfig(ModelConfig):
    dim: int
    """Channels of the first stage."""
    depths: tuple[int, ...]


VARIANTS = {
    "ripple_tiny": RippleConfig(img_size=(64, 64), dim=8, depths=(1, 1, 2, 1)),
    "ripple_small": RippleConfig(img_size=(64, 96), dim=16, depths=(1, 1, 2, 1)),
}


class RippleBlock(nn.Module):
    """A depthwise convolution and an MLP behind one residual (Eq. 1)."""

    def __init__(self, dim: int, drop_path_rate: float) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, groups=dim), LayerNorm2d(dim))
        self.mlp = nn.Sequential(nn.Conv2d(dim, 2 * dim, 1), nn.GELU(), nn.Conv2d(2 * dim, dim, 1))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:  # b c h w -> b c h w
        return x + self.drop_path(self.mlp(self.mix(x)))


class RippleNet(Backbone):
    """The classifier: `b 3 H W -> b num_classes` logits, for any height and width."""

    def __init__(self, config: RippleConfig, *, num_classes: int, in_chans: int, drop_path_rate: float) -> None:
        dims = self.dims = [config.dim * 2**i for i in range(4)]
        super().__init__(config, in_chans=in_chans, num_features=dims[-1])
        self.patch_embed = nn.Conv2d(in_chans, dims[0], 7, stride=4, padding=3)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(dims[i - 1], dim, 3, stride=2, padding=1) if i else nn.Identity(),
                *(RippleBlock(dim, drop_path_rate) for _ in range(config.depths[i])),
            )
            for i, dim in enumerate(dims)
        )
        self.norm: nn.Module = LayerNorm2d(dims[-1])
        self.reset_classifier(num_classes)

    @property
    def feature_info(self) -> Any:
        return [{"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(self.dims)]

    num_levels = 4

    def levels(self, x: Tensor, last: int = 3) -> list[Tensor]:
        x = self.patch_embed(x)
        return [x := run_block(stage, x, checkpointing=self.grad_checkpointing) for stage in self.stages[: last + 1]]

    def forward_features(self, x: Tensor) -> Tensor:  # b 3 H W -> b c h w
        return self.norm(self.levels(x)[-1])

    def pool(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3)) if self.global_pool else x

    def intermediates(self, x: Tensor, take: list[int], *, norm: bool, stop: bool) -> tuple[Any, list[Tensor]]:
        levels = self.levels(x, take[-1] if stop else 3)
        maps = [self.norm(levels[i]) if norm and i == 3 else levels[i] for i in take]
        return (None if stop else self.norm(levels[-1])), maps

    def group_matcher(self, coarse: bool = False) -> dict:
        return {"stem": r"^patch_embed", "blocks": [(r"^stages\.(\d+)", None), (r"^norm", (99999,))]}


class RipplePyramid(RippleNet):
    """Maps `b c h w` of strides 4, 8, 16, 32: the outputs of the stages."""

    is_pyramid = True

    def __init__(self, config: RippleConfig, *, out_indices: Sequence[int], **arguments: Any) -> None:
        super().__init__(config, num_classes=0, **arguments)
        self.norm, self.out_indices = nn.Identity(), pyramid_levels(out_indices)

    @property
    def feature_info(self) -> FeatureInfo:
        return FeatureInfo(super().feature_info, self.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = self.levels(x, max(self.out_indices))
        return [levels[i] for i in self.out_indices]


FAMILY = Family(
    name="RippleNet",
    paper='Doe and Roe, "Ripples over pixels", 2030',
    variants=VARIANTS,
    classifier=RippleNet,
    pyramid=RipplePyramid,
)

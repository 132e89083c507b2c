"""The contract that every family meets: timm's, so that timm's tools take our models as they are."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import FeatureInfo
from torch import Tensor, nn

from transept.checks import check_most
from transept.errors import UsageError
from transept.layers.pyramid import scale_modules
from transept.ops.tokens import to_map, to_tokens

GlobalPool = Literal["token", "avg", ""]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The part of a configuration that every variant states. A family's own adds what its paper varies."""

    img_size: tuple[int, int]
    """Native height and width in pixels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """One paper: its variants and the two models built from them. Each model file ends with one.

    Code that needs more than a fact stands where it runs, and a family without it has a line nowhere: other code bases'
    names of its weights in `weights/convert/__init__.py`, constants to fold in `inference/fuse.py`, costs as printed in
    `cost/printed.py`, published files in `weights/catalogue/`.
    """

    name: str
    paper: str
    variants: Mapping[str, Any]
    """Variant name to config."""
    classifier: Callable[..., "Backbone"]
    """`(config, *, num_classes, in_chans, drop_path_rate)`."""
    pyramid: Callable[..., "Backbone"]
    """`(config, *, in_chans, drop_path_rate, out_indices)`: the model behind `features_only=True`."""
    derived_buffers: tuple[str, ...] = ()
    """Patterns of names in official checkpoints that hold nothing learned; we compute what they hold."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Variant name to what must be said wherever the variant is shown."""
    checkpoint_prefix: str = ""
    """Before every name in the `.pth` files that the authors' loaders expect."""
    in_timm: bool = False
    """timm has classifiers of the same names and arguments, and loads official names."""
    not_in_timm: frozenset[str] = frozenset()
    """Fields of the config that timm's classifiers do not take."""
    values_in_timm: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Fields of which they take these values only."""
    first_conv: str | None = None
    """The convolution that reads the image, which timm fits to other channels, where timm has the family."""
    any_size: Mapping[str, Any] = field(default_factory=dict)
    """Options with which a classifier takes images of any size, where it does not by itself."""
    dense_options: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    """Method and variant to the options of the published detector or segmenter that are not the classifier's."""
    dense_options_3x: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    """The same of detectors that were also published with three times the training, in which they differ."""
    dense_preprocessing: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    """Method and variant to the fields of the published preprocessing that are not the task's defaults."""


class Backbone(nn.Module, ABC):
    """The contract of a model: all that timm's optimisers, layer decay, EMA, data configuration and wrappers ask."""

    head: nn.Module
    is_pyramid: bool = False
    """`forward` gives the maps of a pyramid, and not logits."""
    out_indices: tuple[int, ...]
    """The levels that a pyramid gives, of 0 to 3."""
    stride: int | None = None
    """Pixels along the side of a token, where all layers have the same; None: `4 * 2 ** stage`."""
    channels_last: bool = False
    """Layers hand on maps `b h w c`, and not `b c h w` or sequences."""
    dynamic_step: int | None = None
    """An exported graph can take all images whose sides are multiples of this; None: it is for one size."""
    class_token_attends: bool = False
    """Tokens and class token attend to each other in one softmax: the class token's row is a map of its own."""
    classifier_parts: tuple[str, ...] = ()
    """Patterns of names that a pyramid has no place for, since only the classifier needs what they hold."""
    rollout_kinds: tuple[str, ...] = ()
    """Kinds of attention through whose layers, in this order, rollout follows the class token; (): it is undefined."""

    def __init__(self, config: ModelConfig, *, in_chans: int, num_features: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = 0
        self.global_pool: GlobalPool = "avg"
        self.num_features = self.head_hidden_size = num_features
        self.grad_checkpointing = False
        self.for_inference = False
        """Made by `transept.fuse` or `transept.compile`, whose forms have their weights as constants."""
        self.pretrained_cfg: dict[str, Any] = {
            "input_size": (in_chans, *config.img_size),
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            # Where height and width differ, no picture's proportions are kept; timm then does the same.
            "crop_mode": "center" if config.img_size[0] == config.img_size[1] else "squash",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "classifier": "head",
        }

    @property
    @abstractmethod
    def feature_info(self) -> Any:
        """Channels, stride and module name of each feature level, in timm's format."""

    @abstractmethod
    def forward_features(self, x: Tensor) -> Any:
        """Image `b 3 H W` to normalised features, before pooling: one tensor, or in CrossViT one of each branch."""

    @abstractmethod
    def pool(self, x: Any) -> Any:
        """The output of `forward_features` to what the classifier reads, by `global_pool`."""

    @abstractmethod
    def group_matcher(self, coarse: bool = False) -> dict:
        """Parameter name patterns from stem to head, for timm's layer-wise learning-rate decay."""

    @abstractmethod
    def intermediates(self, x: Tensor, take: list[int], *, norm: bool, stop: bool) -> tuple[Any, list[Tensor]]:
        """The output of `forward_features`, and maps `b c h w` of the levels in `take`, which is sorted.

        With `norm` those that the final norm fits pass through it. With `stop` nothing after the last of them need
        run, and the first result may be None.
        """

    @property
    @abstractmethod
    def num_levels(self) -> int:
        """How many levels `intermediates` knows."""

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Any, list[Tensor]]:
        """The features at the chosen levels of `feature_info`, as maps `b c h w` ("NCHW") or sequences `b n c` ("NLC").

        `indices` are level numbers, or a count of last levels; None means all. `norm` applies the final
        LayerNorm to them. Returns them alone or after the output of `forward_features`.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt is {output_fmt!r}; use 'NCHW' or 'NLC'")
        take = level_indices(indices, self.num_levels)
        features, maps = self.intermediates(x, take, norm=norm, stop=stop_early and intermediates_only)
        if output_fmt == "NLC":
            maps = [to_tokens(level) for level in maps]
        if intermediates_only:
            return maps
        assert features is not None
        return features, maps

    def layer_position(self, name: str) -> tuple[int, int]:
        """Stage (0 where a model has none) and block within it of a layer, by the name of its module."""
        *stages, block = map(int, re.findall(r"\d+", name) or [0])
        return (stages[0] if stages else 0), block

    def level_position(self, name: str) -> tuple[int, int]:
        """The same of a module of `feature_info`."""
        number = int(re.findall(r"\d+", name)[-1])
        return (0, number) if self.stride else (number, 0)

    def grid_modules(self) -> list[nn.Module]:
        """The modules whose output `b c h w` shows the grid of the sequences `b n c` that the next layers work on."""
        return [self.get_submodule("patch_embed")]

    def grid_module(self, layer: str) -> nn.Module | None:
        """The one of `grid_modules` that shows the grid of a layer, by the layer's name; None: the last that ran."""
        return None

    def token_side(self, stage: int, image: tuple[int, int], grid: tuple[int, int]) -> tuple[float, float]:
        """Height and width in pixels of what a token of `grid` stands for, in images of this height and width."""
        side = self.stride or 4 * 2**stage
        return side, side

    @property
    def cam_levels(self) -> list[str]:
        """The modules of `feature_info` on whose patches the logits depend, for Grad-CAM."""
        return [level["module"] for level in self.feature_info]

    def default_cfg(self) -> dict[str, Any]:
        """timm's older name of `pretrained_cfg`."""
        return self.pretrained_cfg

    def forward_head(self, x: Any, pre_logits: bool = False) -> Any:
        """The output of `forward_features` to logits, or with `pre_logits` to what the classifier reads."""
        x = self.pool(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Any:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: GlobalPool | None = None) -> None:
        """A fresh classifier; 0 classes make it the identity. `global_pool` "" leaves the features unpooled."""
        if global_pool is not None:
            if global_pool not in self.global_pools:
                raise ValueError(
                    f"global_pool is {global_pool!r}; use one of {', '.join(map(repr, self.global_pools))}"
                )
            self.global_pool = global_pool
        self.num_classes = self.pretrained_cfg["num_classes"] = num_classes
        self.head = self.new_classifier(num_classes) if num_classes > 0 else nn.Identity()
        for layer in self.head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.head.to(next(self.parameters()))

    def new_classifier(self, num_classes: int) -> nn.Module:
        """From what `pool` gives to logits; its weights are drawn by `reset_classifier`."""
        return nn.Linear(self.num_features, num_classes)

    global_pools: tuple[GlobalPool, ...] = ("avg", "")

    def train(self, mode: bool = True) -> Self:
        if mode and self.for_inference:
            raise UsageError(
                "a fused or compiled model is for inference; train the model that it was made from, then make it anew"
            )
        return super().train(mode)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass: less memory, the same gradients."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters exempt from weight decay by name (timm exempts biases and vectors by shape itself)."""
        return {name for name, _ in self.named_parameters(recurse=False) if name in ("cls_token", "pos_embed")}


class IsotropicBackbone(Backbone):
    """A transformer whose tokens keep one stride: the sequence it gives begins with the class token."""

    blocks: nn.ModuleList
    norm: nn.Module
    global_pools = ("token", "avg", "")

    def __init__(self, config: ModelConfig, *, in_chans: int, embed_dim: int, stride: int) -> None:
        super().__init__(config, in_chans=in_chans, num_features=embed_dim)
        self.global_pool = "token"
        self.embed_dim = embed_dim
        self.stride = self.dynamic_step = stride

    @property
    def feature_info(self) -> Any:
        return [
            {"num_chs": self.embed_dim, "reduction": self.stride, "module": f"blocks.{i}"}
            for i in range(self.num_levels)
        ]

    def pool(self, x: Tensor) -> Tensor:
        match self.global_pool:
            case "token":
                return x[:, 0]
            case "avg":
                return x[:, 1:].mean(dim=1)
            case "":
                return x

    @property
    def num_levels(self) -> int:
        """The blocks that update the tokens."""
        return len(self.blocks)


class ClassAttentionBackbone(IsotropicBackbone):
    """An isotropic transformer whose class token joins late and gathers the patches (XCiT, CaiT).

    A family implements `embed`, `run`, `class_blocks` and `group_matcher`; the rest of the contract follows.
    """

    @abstractmethod
    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Image `b 3 H W` to tokens `b (h w) c`, positions included, and their grid `(h, w)`."""

    @abstractmethod
    def run(self, block: nn.Module, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """One of `blocks` on tokens of this grid, under gradient checkpointing where that is on."""

    def class_blocks(self, x: Tensor, *, patches: bool = True) -> Tensor:
        """Tokens `b n c` to the normalised sequence `b (1+n) c`, class token first; without `patches` to it alone."""
        raise NotImplementedError(f"{type(self).__name__} has no class token")

    def forward_features(self, x: Tensor, *, patches: bool = True) -> Tensor:
        """Image `b 3 H W` to the normalised sequence `b (1+n) c`, class token first; without `patches` to it alone."""
        x, grid = self.embed(x)
        for block in self.blocks:
            x = self.run(block, x, grid)
        return self.class_blocks(x, patches=patches)

    def forward(self, x: Tensor) -> Any:
        # What nobody reads of the last layers is not computed.
        return self.forward_head(self.forward_features(x, patches=self.global_pool != "token"))

    def intermediates(
        self, x: Tensor, take: list[int], *, norm: bool, stop: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        x, grid = self.embed(x)
        maps = []
        for i, block in enumerate(self.blocks[: take[-1] + 1] if stop else self.blocks):
            x = self.run(block, x, grid)
            if i in take:
                maps.append(to_map(self.norm(x) if norm else x, grid))
        return (None if stop else self.class_blocks(x)), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks after the last of `indices`, and on request the final norm and the classifier."""
        take = level_indices(indices, len(self.blocks))
        self.blocks = self.blocks[: take[-1] + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return take


class Pyramid:
    """Mixed into an isotropic trunk: `forward` gives maps `b c h w` of strides 4, 8, 16, 32, finest first.

    Any height and width work: the grid is `ceil(H / stride)`, and levels come from it by exact doubling and
    flooring halving.
    """

    is_pyramid = True
    fpn1: nn.Module
    fpn2: nn.Module
    fpn3: nn.Module
    fpn4: nn.Module

    def __init__(
        self: Any,
        config: Any,
        *,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] = (0, 1, 2, 3),
    ) -> None:
        super().__init__(config, in_chans, drop_path_rate)  # pyright: ignore[reportCallIssue]
        self.dynamic_step = self.dynamic_step and 32
        self.fpn1, self.fpn2, self.fpn3, self.fpn4 = scale_modules(config.embed_dim, config.patch_size)
        self.init_weights()
        depth = len(self.blocks)
        taps = (depth // 3, depth // 2, depth * 2 // 3, depth)
        self.level_blocks = [max(tap, 1) - 1 for tap in taps]
        """The block after which each level leaves."""
        self.out_indices = pyramid_levels(out_indices)

    @property
    def feature_info(self: Any) -> FeatureInfo:
        levels = [{"num_chs": self.embed_dim, "reduction": 4 * 2**i, "module": f"fpn{i + 1}"} for i in range(4)]
        return FeatureInfo(levels, self.out_indices)

    def forward(self: Any, x: Tensor) -> list[Tensor]:
        x, grid = self.embed(x)
        levels = {}
        for i, block in enumerate(self.blocks):
            x = self.run(block, x, grid)
            for level in self.out_indices:
                if self.level_blocks[level] == i:
                    levels[level] = getattr(self, f"fpn{level + 1}")(to_map(x, grid))
        return [levels[level] for level in self.out_indices]


def native_size(img_size: int | Sequence[int]) -> tuple[int, int]:
    """An int or `(height, width)` as `(height, width)`."""
    sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
        raise UsageError(f"img_size={img_size!r}; give a positive int or (height, width)")
    check_most(_LARGEST_SIDE, img_size=sides)
    return sides


_LARGEST_SIDE = 2**16
"""Pixels. The numbers of what attends within larger images would not fit into 64 bits."""


def level_indices(indices: int | Sequence[int] | None, depth: int) -> list[int]:
    """timm's `indices` as sorted level numbers: a count of last levels, a list (negative: from the end), None: all."""
    if indices is None:
        return list(range(depth))
    wanted = range(depth - indices, depth) if isinstance(indices, int) else indices
    take = sorted({i + depth if i < 0 and not isinstance(indices, int) else i for i in wanted})
    if not take or take[0] < 0 or take[-1] >= depth:
        raise ValueError(f"indices={indices} do not name some of the {depth} levels")
    return take


def pyramid_levels(out_indices: int | Sequence[int]) -> tuple[int, ...]:
    """timm's `out_indices` as numbers of levels, in their order: a count of last levels, or a list (negative: from the
    end)."""
    wanted = range(4 - out_indices, 4) if isinstance(out_indices, int) else out_indices
    levels = tuple(i + 4 if i < 0 and not isinstance(out_indices, int) else i for i in wanted)
    if not levels or not set(levels) <= {0, 1, 2, 3}:
        given = out_indices if isinstance(out_indices, int) else tuple(out_indices)
        raise ValueError(f"out_indices={given}; give some of the four levels 0, 1, 2, 3 (-1 is the last)")
    return levels

"""Our pyramids as backbones of Hugging Face `transformers`; importing this module registers them with its Auto classes.

from transept.interop.transformers import TranseptConfig
from transformers import AutoBackbone, UperNetConfig, UperNetForSemanticSegmentation

config = TranseptConfig(name="crossformer_small")
AutoBackbone.from_config(config)
UperNetForSemanticSegmentation(UperNetConfig(backbone_config=config))
"""

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from transept.errors import TranseptError
from transept.extras import install
from transept.models.backbone import Backbone
from transept.weights.load import create_model

try:
    from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
    from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
    from transformers.modeling_outputs import BackboneOutput
    from transformers.utils import can_return_tuple
except ImportError as error:
    raise TranseptError(f"this needs the package 'transformers': {install('transformers', upgrade=True)}") from error


class TranseptConfig(BackboneConfigMixin, PreTrainedConfig):
    """The options of `create_model`, and which of `stage1` to `stage4` (strides 4 to 32) to give; default: all four.

    `out_features` names the stages or `out_indices` counts them from 0, as everywhere in `transformers`.
    """

    model_type = "transept"

    name: str = "xcit_small_12_p16_224"
    img_size: int | list[int] | tuple[int, ...] | None = None
    num_channels: int = 3
    drop_path_rate: float = 0.0
    options: dict[str, Any] | None = None
    """Fields of the family's config, e.g. `{"depth": 6}`."""

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = ["stage1", "stage2", "stage3", "stage4"]
        features, indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        self.set_output_features_output_indices(features, [0, 1, 2, 3] if features is indices is None else indices)
        super().__post_init__(**kwargs)

    def build(self) -> Backbone:
        """The pyramid, initialised as the paper does."""
        return create_model(
            self.name,
            img_size=self.img_size,
            in_chans=self.num_channels,
            drop_path_rate=self.drop_path_rate,
            features_only=True,
            out_indices=[self.stage_names.index(stage) for stage in self.out_features or ()],
            **(self.options or {}),
        )


class TranseptBackbone(BackboneMixin, PreTrainedModel):
    """A pyramid behind the interface of `transformers`.

    It is the attribute `model`, so `transept.load_weights(backbone.model, "xcit_small_12_p16_224.fb_dist_in1k")` loads
    published weights. Folders are read by `TranseptBackbone.from_pretrained`: that of `AutoBackbone` asks the hub only.
    """

    config_class = TranseptConfig
    main_input_name = "pixel_values"
    has_attentions = False
    _supports_sdpa = True

    def __init__(self, config: TranseptConfig) -> None:
        super().__init__(config)
        self.model = config.build()
        self._built_empty = any(parameter.is_meta for parameter in self.model.parameters())
        self.num_features = [level["num_chs"] for level in self.model.feature_info.info]
        self.post_init()

    @can_return_tuple
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, pixel_values: Tensor, **kwargs: Any
    ) -> BackboneOutput:
        """Images `b c H W` to `feature_maps`, each `b c h w`; hidden states are not kept."""
        return BackboneOutput(feature_maps=tuple(self.model(pixel_values)))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Building initialises; `from_pretrained` builds without memory, and then needs what no file holds, once."""
        if not self._built_empty:
            return
        self._built_empty = False
        fresh = self.config.build()
        for name, tensor in chain(fresh.named_parameters(), fresh.named_buffers()):
            mine = self.get_parameter_or_buffer(f"model.{name}")
            if not getattr(mine, "_is_hf_initialized", False):
                mine.copy_(tensor)


AutoConfig.register(TranseptConfig.model_type, TranseptConfig)
AutoBackbone.register(TranseptConfig, TranseptBackbone)

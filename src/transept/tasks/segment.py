"""Semantic segmentation: a class for every pixel."""

import colorsys
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as v2

from transept.checks import check_known
from transept.data.segmentation.transforms import SegmentationPreprocessing, segmentation_eval_transform
from transept.errors import TranseptError, UsageError, unknown
from transept.heads.fcn import FCNHead
from transept.heads.fpn import FPN
from transept.heads.semantic_fpn import SemanticFPNHead
from transept.heads.upernet import UPerNetHead
from transept.inference.windows import sliding_logits
from transept.models.backbone import Backbone
from transept.models.registry import build_model, find_model
from transept.ops.interpolation import resize_map
from transept.tasks.dense import build_pyramid, check_sources, class_names, load_sources
from transept.tasks.saving import describe, loading_task, save_task, tuples

IGNORE_LABEL = 255
"""Pixels of a mask that belong to no class: they neither train nor score."""

MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""The ratios of multi-scale testing, as published."""

RGB = tuple[int, int, int]


class Outputs(NamedTuple):
    """Logits in training, at the size of the maps they were read from."""

    decode: Tensor
    """`b k h w`, of stride 4."""
    auxiliary: Tensor | None
    """`b k h w` of the auxiliary head, of stride 16; None where there is none."""


class Segmentation(NamedTuple):
    """The most probable class of each pixel."""

    labels: Tensor
    """`b H W` (of one picture: `H W`) class numbers."""
    scores: Tensor
    """Their probabilities, in 0..1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inference:
    """How classes are read from pictures. The default is what all published single-scale figures were taken with."""

    ratios: tuple[float, ...] = (1.0,)
    """Scales of the picture, over whose probabilities the mean is taken; `MULTI_SCALE` are the published ones."""
    flip: bool = False
    """Each scale also mirrored left to right."""
    crop: tuple[int, int] | None = None
    """Height and width of sliding windows; None: the whole picture at once."""
    stride: tuple[int, int] | None = None
    """From one window to the next; default: two thirds of `crop`."""
    window_batch: int = 4
    """Windows of one call of the model."""
    device: str | None = None
    """Where logits of windows are summed, e.g. "cpu" for pictures too large for the GPU; default: the model's."""

    def __post_init__(self) -> None:
        if not self.ratios or min(self.ratios) <= 0:
            raise UsageError(f"ratios={self.ratios}; give one or more positive numbers")
        if self.stride is not None and self.crop is None:
            raise UsageError(f"stride={self.stride} is of sliding windows; give their size as crop=(height, width)")
        if self.window_batch < 1:
            raise UsageError(f"window_batch={self.window_batch} must be at least 1")


class Parts(NamedTuple):
    """What a method puts on a backbone."""

    neck: nn.Module
    decode_head: nn.Module
    auxiliary_head: nn.Module | None


def _semantic_fpn(channels: Sequence[int], strides: Sequence[int], num_classes: int, width: int | None) -> Parts:
    # Levels of one width keep it (XCiT: the embedding's), others get 256 channels. The head has half of that.
    neck_width = width or (channels[0] if len(set(channels)) == 1 else 256)
    neck = FPN(channels, neck_width, len(channels))
    widths = [neck_width] * len(channels)
    return Parts(neck, SemanticFPNHead(widths, strides, num_classes, channels=width // 2 if width else 128), None)


def _upernet(channels: Sequence[int], strides: Sequence[int], num_classes: int, width: int | None) -> Parts:
    width = width or 512
    decode_head = UPerNetHead(channels, num_classes, channels=width)
    return Parts(nn.Identity(), decode_head, FCNHead(channels, num_classes, channels=width // 2))


METHODS: Mapping[str, Callable[[Sequence[int], Sequence[int], int, int | None], Parts]] = {
    "semantic_fpn": _semantic_fpn,
    "upernet": _upernet,
}
"""Method to `(channels, strides, num_classes, width)`; a new one is a head and a line here."""

_LARGE_GROUPS = dict(group_sizes=(14, 14, 7, 7), intervals=(16, 8, 2, 1), grouping="legacy")
_SMALL_GROUPS = dict(group_sizes=(7, 7, 7, 7), intervals=(8, 4, 2, 1), grouping="legacy")
PUBLISHED_OPTIONS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    (method, f"crossformer_{size}"): groups
    for method, groups in (("semantic_fpn", _LARGE_GROUPS), ("upernet", _SMALL_GROUPS))
    for size in ("small", "base", "large")
}
"""Method and backbone to the options of the published segmenter, where they are not the classifier's."""


class Segmenter(nn.Module):
    """A backbone with a method's neck and heads, the names of its classes, and its preprocessing.

    Names of parameters are those of mmsegmentation's checkpoints. Called directly it takes any image size.

    Exported (`torch.export`, ONNX) it takes any batch, of the one image size it was exported with: any size, though
    multiples of 32 need no padding between levels. Export for ONNX within `sdpa_kernel(SDPBackend.MATH)` of
    `torch.nn.attention`: the graph otherwise relies on the memory layout of the fused attention of the CPU.
    """

    auxiliary_weight = 0.4

    def __init__(
        self,
        method: str,
        backbone: Backbone,
        classes: Sequence[str],
        *,
        palette: Sequence[RGB] | None = None,
        preprocessing: SegmentationPreprocessing | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__()
        check_parts(method, width)
        if not 1 <= len(classes) <= IGNORE_LABEL:
            raise UsageError(f"{len(classes)} classes; give 1 to {IGNORE_LABEL}, as label {IGNORE_LABEL} is ignored")
        if palette is not None and len(palette) != len(classes):
            raise UsageError(f"the palette has {len(palette)} colours for {len(classes)} classes; give one for each")
        self.method = method
        self.width = width
        self.classes = list(classes)
        self.palette = [(r, g, b) for r, g, b in palette] if palette is not None else default_palette(len(classes))
        self.preprocessing = preprocessing or SegmentationPreprocessing()
        levels = backbone.feature_info
        self.backbone = backbone
        self.neck, self.decode_head, self.auxiliary_head = METHODS[method](
            levels.channels(), levels.reduction(), len(classes), width
        )

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The backbone's: its name and the channels and native size of its images."""
        return self.backbone.pretrained_cfg

    def forward(self, images: Tensor) -> Any:
        """Normalised images `b 3 H W` to logits `b k H W`; in training to `Outputs`, at the heads' own sizes."""
        maps = self.backbone(images)
        decode = self.decode_head(self.neck(maps))
        if not self.training:
            return resize_map(decode, images.shape[-2:])
        return Outputs(decode, self.auxiliary_head(maps) if self.auxiliary_head is not None else None)

    def loss(self, outputs: Outputs | Tensor, masks: Tensor) -> Tensor:
        """Cross-entropy of logits, resized to the masks, plus 0.4 times that of the auxiliary logits.

        The mean runs over all pixels of `masks` `b H W`; those with label 255 count as zero.

        Raises:
            TranseptError: masks of another batch, or with a label that is no class.
        """
        decode, auxiliary = outputs if isinstance(outputs, Outputs) else (outputs, None)
        if masks.ndim != 3 or len(masks) != len(decode):
            raise TranseptError(f"masks are {tuple(masks.shape)}; give one H x W mask for each of {len(decode)} images")
        if masks.device.type == "cpu":  # elsewhere the look would make the processor wait
            wrong = masks[((masks < 0) | (masks >= len(self.classes))) & (masks != IGNORE_LABEL)]
            if len(wrong):
                raise TranseptError(
                    f"a mask holds the label {int(wrong[0])}; classes are 0 to {len(self.classes) - 1}, and"
                    f" {IGNORE_LABEL} is ignored"
                )
        loss = self._cross_entropy(decode, masks)
        if auxiliary is not None:
            loss = loss + self.auxiliary_weight * self._cross_entropy(auxiliary, masks)
        return loss

    @staticmethod
    def _cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
        logits = resize_map(logits, masks.shape[-2:]).float()
        return cross_entropy(logits, masks.long(), ignore_index=IGNORE_LABEL, reduction="sum") / masks.numel()

    def decode(self, logits: Tensor) -> Segmentation:
        """Logits `b k H W` to the best class of each pixel."""
        scores, labels = logits.float().softmax(dim=1).max(dim=1)
        return Segmentation(labels, scores)

    @torch.inference_mode()
    def predict(
        self, pictures: Sequence[Image.Image | Tensor], inference: Inference | None = None
    ) -> list[Segmentation]:
        """RGB pictures (or bytes `3 H W`) of any sizes to the class of each of their pixels, each at its own size."""
        predictions = []
        for picture in pictures:
            scores, labels = self.probabilities(picture, inference).max(dim=0)
            predictions.append(Segmentation(labels, scores))
        return predictions

    @torch.inference_mode()
    def probabilities(self, picture: Image.Image | Tensor, inference: Inference | None = None) -> Tensor:
        """`k H W` at the size of the RGB picture (or bytes `3 H W`): the mean over scales and mirror images.

        Logits are resized to the picture before the softmax, as in the official tests.
        """
        inference = inference or Inference()
        image = picture if isinstance(picture, Tensor) else v2.pil_to_tensor(picture.convert("RGB"))
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            kind = str(image.dtype).removeprefix("torch.")
            raise TranseptError(f"the picture is {tuple(image.shape)} of {kind}; give 3 x H x W bytes")
        image = image.as_subclass(Tensor).to(next(self.parameters()).device)
        training = self.training
        self.eval()
        try:
            total = None
            for ratio in inference.ratios:
                scaled = segmentation_eval_transform(self.preprocessing, ratio)(tv_tensors.Image(image))[None]
                for flipped in (False, True) if inference.flip else (False,):
                    logits = self.logits(scaled.flip(-1) if flipped else scaled, inference)
                    share = resize_map(logits, image.shape[-2:]).float().softmax(dim=1)[0]
                    share = share.flip(-1) if flipped else share
                    total = share if total is None else total.add_(share)
        finally:
            self.train(training)
        assert total is not None
        return total.div_(len(inference.ratios) * (1 + inference.flip))

    def logits(self, images: Tensor, inference: Inference) -> Tensor:
        """Normalised images `b 3 H W` to logits `b k H W`: at once, or by sliding windows where there is a crop."""
        if inference.crop is None:
            return self(images)
        height, width = inference.crop
        stride = inference.stride or (-(-height * 2 // 3), -(-width * 2 // 3))
        return sliding_logits(
            self, images, inference.crop, stride, batch_size=inference.window_batch, device=inference.device
        )

    def save(self, path: Path) -> None:
        """Weights, architecture, classes, palette and preprocessing in one safetensors file, written atomically."""
        about = describe(self.backbone) | {
            "method": self.method,
            "width": self.width,
            "classes": self.classes,
            "palette": self.palette,
            "preprocessing": dataclasses.asdict(self.preprocessing),
        }
        save_task(path, "segment", self, about)

    @staticmethod
    def load(path: Path) -> "Segmenter":
        """What `save` wrote.

        Raises:
            TranseptError: the file is missing, damaged, or was not written by `save`.
        """
        with loading_task(path, "segment") as (state, about):
            backbone = build_model(
                about["architecture"], in_chans=about["in_chans"], features_only=True, **about["options"]
            )
            segmenter = Segmenter(
                about["method"],
                backbone,
                about["classes"],
                palette=about["palette"],
                preprocessing=SegmentationPreprocessing(**tuples(about["preprocessing"])),
                width=about["width"],
            )
            segmenter.load_state_dict(state)
            return segmenter.eval()


def check_parts(method: str, width: int | None) -> None:
    """Whether there is such a segmenter.

    Raises:
        UsageError: an unknown method, or a width that it cannot have.
    """
    check_known(METHODS, method=method)
    if width is not None and (width < 2 or width % 2):
        raise UsageError(f"width={width}; give a positive even number of channels")


def create_segmenter(
    method: str,
    *,
    backbone: str,
    num_classes: int = 150,
    weights: str | PathLike[str] | None = None,
    backbone_weights: str | PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    palette: Sequence[RGB] | None = None,
    preprocessing: SegmentationPreprocessing | None = None,
    width: int | None = None,
    in_chans: int = 3,
    img_size: int | Sequence[int] | None = None,
    drop_path_rate: float = 0.0,
    **options: Any,
) -> Segmenter:
    """A segmenter by name: "semantic_fpn" or "upernet" on any model of `transept.list_models()`.

    CrossFormer's groups and grouping rule are those of the published segmenters, where `options` say nothing else.

    Args:
        method: one of `METHODS`.
        backbone: a model's name; without its image size (`xcit_small_12_p16`), as segmenters are published.
        num_classes: size of the logits; label 255 is ignored and no class.
        weights: load the whole segmenter: what `transept.load_weights` takes. A classifier (`conv_seg`) for another
            number of classes starts fresh.
        backbone_weights: load the backbone from a classification checkpoint instead.
        classes: names of the classes, `num_classes` of them; default: their numbers.
        palette: colours of the classes in pictures; default: `default_palette`.
        preprocessing: default: the published one, pictures within 2048 x 512 pixels.
        width: channels of the convolutions, for models smaller than the published: of Semantic FPN's neck (its head
            has half), or of UPerNet (512; its auxiliary head has half).
        in_chans: channels of the image.
        img_size: native size of the backbone in pixels, which its position table is made for. Any size can be given
            to the segmenter.
        drop_path_rate: stochastic depth of the backbone.
        options: fields of the family's config, under the paper's names.

    Raises:
        UsageError: an unknown method, backbone or option (with the nearest name), or values that contradict each other.
        TranseptError: the weights cannot be found or do not fit.
    """
    if method not in METHODS:
        raise unknown("segmentation method", method, METHODS)
    name, family = find_model(backbone.partition(".")[0])
    names = class_names(classes, num_classes)
    check_sources("segmenter", weights, backbone_weights)
    published = PUBLISHED_OPTIONS.get((method, name), {})
    model = build_pyramid(
        "segmenter",
        create_segmenter,
        backbone,
        published,
        options,
        in_chans=in_chans,
        img_size=img_size,
        drop_path_rate=drop_path_rate,
    )
    if preprocessing is None and family.name == "CrossFormer":
        preprocessing = SegmentationPreprocessing(multiple_of=32)
    segmenter = Segmenter(method, model, names, palette=palette, preprocessing=preprocessing, width=width)
    load_sources(segmenter, model, weights, backbone_weights)
    return segmenter


def default_palette(num_classes: int) -> list[RGB]:
    """Colours that differ from their neighbours in the list: hues in steps of the golden ratio, in three tones."""
    tones = ((0.95, 0.85), (0.6, 0.95), (0.9, 0.55))
    colours = (colorsys.hsv_to_rgb(i * 0.618034 % 1, *tones[i % 3]) for i in range(num_classes))
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours]

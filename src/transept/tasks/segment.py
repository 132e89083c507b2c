"""Semantic segmentation: a class for every pixel."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision import tv_tensors

from transept import draw
from transept.data.channels import fit_channels
from transept.data.images import as_bytes, size_of
from transept.data.resizing import Normalise, squashed
from transept.data.segmentation.ade20k_classes import ADE20K_CLASSES
from transept.data.segmentation.sets import SegmentationSplits, load_segmentation_splits
from transept.data.segmentation.transforms import SegmentationPreprocessing, TestScale
from transept.errors import TranseptError, UsageError
from transept.export.logits import export_logits
from transept.export.onnx import DEFAULT_FORMATS, Exported
from transept.inference.compile import Precision
from transept.inference.package import Package
from transept.inference.windows import ResizedWindows, sliding_logits
from transept.models.backbone import Backbone
from transept.ops.interpolation import Size, Span, resize_map, resize_rows, source_span
from transept.ops.masks import IGNORE_LABEL
from transept.style import Color, drawing_palette
from transept.tasks.data_options import DataOptions
from transept.tasks.dense import VIEW_OPTIONS, DenseTask, build_dense
from transept.tasks.saving import rebuild, tuples
from transept.tasks.segment_methods import METHODS, check_parts
from transept.tasks.segment_results import SegmenterResults, evaluate_segmenter
from transept.tasks.task import Evaluation, Halves, Item, Option, Picture, evaluating

MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""The ratios of multi-scale testing, as published."""
_WHOLE = 2**27
"""Probabilities (classes times pixels) of a picture that are made at once: 512 MiB of float32, several times."""
_PIECE = 2**25
"""Of a larger picture so many at a time."""


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
class SegmentationInference:
    """How classes are read from pictures. The default is what all published single-scale figures were taken with."""

    ratios: tuple[float, ...] = (1.0,)
    """Scales of the picture, over whose probabilities the mean is taken; `MULTI_SCALE` are the published ones."""
    flip: bool = False
    """Each scale also mirrored left to right."""
    crop: tuple[int, int] | None = None
    """Height and width of sliding windows; None: the whole picture at once."""
    stride: tuple[int, int] | None = None
    """From one window to the next; default: two thirds of `crop`."""
    batch_size: int = 4
    """Windows of one call of the model."""
    device: str | None = None
    """Where logits of windows are summed, e.g. "cpu" for pictures too large for the GPU; default: the model's."""

    def __post_init__(self) -> None:
        if not self.ratios or min(self.ratios) <= 0:
            raise UsageError(f"ratios={self.ratios}; give one or more positive numbers")
        for name in ("crop", "stride"):
            size = getattr(self, name)
            if size is not None and (len(size) != 2 or min(size) < 1):
                raise UsageError(f"{name}={size}; give a positive height and width")
        if self.stride is not None and self.crop is None:
            raise UsageError(f"stride={self.stride} is of sliding windows; give their size as crop, too")
        if self.stride is not None and self.crop is not None and any(map(int.__gt__, self.stride, self.crop)):
            raise UsageError(
                f"stride={self.stride} is larger than crop={self.crop} and would leave pixels out; make it smaller"
            )
        if self.batch_size < 1:
            raise UsageError(f"batch_size={self.batch_size} must be at least 1")

    @property
    def windows(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Size and stride of the sliding windows, where there is a crop."""
        assert self.crop is not None
        height, width = self.crop
        return self.crop, self.stride or (-(-height * 2 // 3), -(-width * 2 // 3))


class Segmenter(DenseTask):
    """A backbone with a method's neck and heads, the names of its classes, and its preprocessing.

    Names of parameters are those of mmsegmentation's checkpoints. Called directly it takes any image size.

    Exported (`torch.export`, ONNX) it takes any batch, of the one image size it was exported with: any size, though
    multiples of 32 need no padding between levels. Export for ONNX within `sdpa_kernel(SDPBackend.MATH)` of
    `torch.nn.attention`: the graph otherwise relies on the memory layout of the fused attention of the CPU.
    """

    name = "segment"
    kind = "segmenter"
    checkpoints = "segmentation"
    creator = "create_segmenter(method, backbone=name, "
    has_label_map = True
    options: ClassVar[Mapping[str, Option]] = {
        **VIEW_OPTIONS,
        "crop": Option(help="sliding windows instead of the whole", type=int, number=2, metavar=("H", "W")),
        "stride": Option(
            help="from window to window (default two thirds of the crop)", type=int, number=2, metavar=("H", "W")
        ),
        "batch_size": Option(help="sliding windows at once", type=int),
    }
    methods = METHODS.keys()
    preprocessing_type = SegmentationPreprocessing
    published_classes = ADE20K_CLASSES
    auxiliary_weight = 0.4

    def __init__(
        self,
        method: str,
        backbone: Backbone,
        classes: Sequence[str],
        *,
        palette: Sequence[Color] | None = None,
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
        self.palette = [(r, g, b) for r, g, b in palette] if palette is not None else drawing_palette(len(classes))
        levels = backbone.feature_info
        self.backbone = backbone
        self.preprocessing = fit_channels(preprocessing or SegmentationPreprocessing(), self.in_chans)
        self.neck, self.decode_head, self.auxiliary_head = METHODS[method](
            levels.channels(), levels.reduction(), len(classes), width
        )

    def forward(self, images: Tensor, coarse: bool = False) -> Any:
        """Normalised images `b 3 H W` to logits `b k H W`, or, where they are to be coarse, as the head gives them: a
        fourth of the height and width. In training to `Outputs`, at the heads' own sizes.
        """
        maps = self.backbone(images)
        decode = self.decode_head(self.neck(maps))
        if not self.training:
            return decode if coarse else resize_map(decode, images.shape[-2:])
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
        self, pictures: Sequence[Picture], inference: SegmentationInference | None = None
    ) -> list[Segmentation]:
        """RGB pictures (or bytes `3 H W`) of any sizes to the class of each of their pixels, each at its own size."""
        predictions = []
        inference = inference or SegmentationInference()
        for picture in pictures:
            width, height = size_of(picture)
            row = len(self.classes) * width
            if row * height <= _WHOLE:
                scores, labels = self.probabilities(picture, inference).max(dim=0)
                predictions.append(Segmentation(labels, scores))
            elif inference.crop is None:
                predictions.append(self._by_strips(picture, inference, max(1, _PIECE // row)))
            else:
                predictions.append(self._by_windows(picture, inference))
        return predictions

    def _by_strips(self, picture: Picture, inference: SegmentationInference, rows: int) -> Segmentation:
        """As `probabilities`, of so many rows at a time: of all at once they take `k H W` numbers.

        Logits of the views are kept as the head gives them, a sixteenth of those at the size of the images.
        """
        width, height = size_of(picture)
        views = list(self._coarse_views(picture, inference))
        device = views[0][0].device
        labels = torch.empty(height, width, dtype=torch.int64, device=device)
        scores = torch.empty(height, width, device=device)
        for start in range(0, height, rows):
            stop = min(start + rows, height)
            strip = self._sum(
                (_rows_of(logits, image, (height, width), (start, stop)), flipped) for logits, image, flipped in views
            ).div_(len(views))
            torch.max(strip, dim=0, out=(scores[start:stop], labels[start:stop]))
        return Segmentation(labels, scores)

    def _by_windows(self, picture: Picture, inference: SegmentationInference) -> Segmentation:
        """As `_by_strips`, where windows, too, are summed by rows of them, in as many columns as `_WHOLE` has room for.

        Windows that two such spans of columns share are looked at twice.
        """
        width, height = size_of(picture)
        device = next(self.parameters()).device
        images = list(self._scaled(picture, inference))
        (crop, stride), classes = inference.windows, len(self.classes)
        widest = max(image.shape[-1] for image, _ in images)
        columns = max(1, min(width, _WHOLE // (classes * crop[0]) * width // widest))
        rows = max(1, _PIECE // (classes * width))
        labels = torch.empty(height, width, dtype=torch.uint8, device=inference.device or device)
        scores = torch.empty(height, width, device=labels.device)
        options: Any = dict(crop=crop, stride=stride, batch_size=inference.batch_size, device=inference.device)
        with evaluating(self):
            for left in range(0, width, columns):
                right = min(left + columns, width)
                views = [
                    ResizedWindows(
                        lambda windows: self(self._normalised(windows)),  # floats are four times as many bytes
                        image,
                        (height, width),
                        (width - right, width - left) if flipped else (left, right),
                        **options,
                    )
                    for image, flipped in images
                ]
                for start in range(0, height, rows):
                    stop = min(start + rows, height)
                    parts = (view.rows(start, stop) for view in views)
                    strip = self._sum(zip(parts, (flipped for _, flipped in images), strict=True)).div_(len(views))
                    scores[start:stop, left:right], labels[start:stop, left:right] = strip.max(dim=0)
        return Segmentation(labels.long(), scores)

    def _scaled(self, picture: Picture, inference: SegmentationInference) -> Iterator[tuple[Tensor, bool]]:
        """Bytes `c h w` of each scale, and whether they are of the mirror image."""
        image = tv_tensors.Image(as_bytes(picture, self.in_chans).to(next(self.parameters()).device))
        for ratio in inference.ratios:
            scaled = TestScale(self.preprocessing, ratio)(image)
            for flipped in (False, True) if inference.flip else (False,):
                yield scaled.flip(-1) if flipped else scaled, flipped

    def _normalised(self, images: Tensor) -> Tensor:
        normalise = Normalise(self.preprocessing.mean, self.preprocessing.std)
        return normalise(tv_tensors.Image(images)).as_subclass(Tensor)

    @torch.inference_mode()
    def probabilities(self, picture: Picture, inference: SegmentationInference | None = None) -> Tensor:
        """`k H W` at the size of the RGB picture (or bytes `3 H W`): the mean over scales and mirror images.

        Logits are resized to the picture before the softmax, as in the official tests.
        """
        inference = inference or SegmentationInference()
        width, height = size_of(picture)
        views = self._views(picture, inference)
        total = self._sum((resize_map(logits, (height, width)), flipped) for logits, flipped in views)
        return total.div_(len(inference.ratios) * (1 + inference.flip))

    @staticmethod
    def _sum(views: Iterable[tuple[Tensor, bool]]) -> Tensor:
        """The sum of the probabilities `k h w` that logits `1 k h w`, some of them of mirror images, give."""
        total = None
        for logits, flipped in views:
            share = logits.float().softmax(dim=1)[0]
            share = share.flip(-1) if flipped else share
            total = share if total is None else total.add_(share)
        assert total is not None
        return total

    def _views(self, picture: Picture, inference: SegmentationInference) -> Iterator[tuple[Tensor, bool]]:
        """Logits `1 k h w` of each scale, at its own size, and whether they are of the mirror image."""
        with evaluating(self):
            for image, flipped in self._scaled(picture, inference):
                yield self.logits(self._normalised(image)[None], inference), flipped

    def _coarse_views(self, picture: Picture, inference: SegmentationInference) -> Iterator[tuple[Tensor, Size, bool]]:
        """As `_views`, of logits before they are resized to their image, and the size of that.

        A package gives what it was exported for: logits at the size of the image.
        """
        coarse = () if isinstance(self._compiled_call_impl, Package) else (True,)
        with evaluating(self):
            for image, flipped in self._scaled(picture, inference):
                logits = self(self._normalised(image)[None], *coarse)
                yield logits, (image.shape[-2], image.shape[-1]), flipped

    def logits(self, images: Tensor, inference: SegmentationInference) -> Tensor:
        """Normalised images `b 3 H W` to logits `b k H W`: at once, or by sliding windows where there is a crop."""
        if inference.crop is None:
            return self(images)
        return sliding_logits(
            self, images, *inference.windows, batch_size=inference.batch_size, device=inference.device
        )

    def inference(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *,
        multi_scale: bool | None = None,
        flip: bool | None = None,
        crop: Sequence[int] | None = None,
        stride: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> SegmentationInference:
        if batch_size is not None and crop is None:
            raise UsageError(f"batch_size={batch_size} counts sliding windows; give their size as crop, too")
        return SegmentationInference(
            ratios=MULTI_SCALE if multi_scale else (1.0,),
            flip=bool(flip),
            crop=None if crop is None else (crop[0], crop[1]),
            stride=None if stride is None else (stride[0], stride[1]),
            batch_size=4 if batch_size is None else batch_size,
        )

    def items(self, prediction: Segmentation) -> list[Item]:
        """The share of the picture that each class has."""
        return [Item(name, share) for name, share in draw.shares(prediction.labels.cpu().numpy(), self.classes).items()]

    def columns(self, inference: SegmentationInference) -> dict[str, type]:
        """A row for each class that occurs."""
        return {"class": str, "share": float}

    def label_map(self, prediction: Segmentation) -> Image.Image:
        return draw.label_image(prediction.labels.cpu().numpy(), self.palette)

    def draw(self, picture: Image.Image, prediction: Segmentation, path: Path) -> None:
        draw.draw_overlay(picture, prediction.labels.cpu().numpy(), self.classes, self.palette, path)

    def draw_frame(self, picture: Image.Image, prediction: Segmentation) -> Image.Image:
        return draw.tinted_frame(picture, prediction.labels.cpu().numpy(), self.classes, self.palette)

    def results(self, out: Path | None, *, inputs: Iterable[Path] = (), **options: Any) -> SegmenterResults:
        return SegmenterResults(self, self.palette, out or Path("predictions"), inputs)

    def load_data(self, options: DataOptions, halves: Halves = "both") -> SegmentationSplits:
        return load_segmentation_splits(
            str(options.data),
            halves=halves,
            choice=self.choice(options),
            reduce_zero_label=options.reduce_zero_label,
            val_fraction=options.val_fraction,
            skip_bad_images=options.skip_bad_images,
            skip_bad_annotations=options.skip_bad_annotations,
            scenes=options.scenes,
            known=self.classes if halves == "val" else None,
            reading=self.reading_of(options),
        )

    def evaluate(
        self,
        data: DataOptions,
        inference: SegmentationInference | None = None,
        *,
        batch_size: int | None = None,
        workers: int = 0,
        progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> Evaluation:
        inference = inference or SegmentationInference()
        if batch_size is not None:
            inference = dataclasses.replace(inference, batch_size=batch_size)
        splits = self.load_data(data, "val")
        return evaluate_segmenter(self, splits, str(data.data), inference, workers, progress)

    def export(
        self,
        folder: str | PathLike[str],
        *,
        img_size: tuple[int, int] | None = None,
        formats: Sequence[str] = DEFAULT_FORMATS,
        picture: Image.Image | None = None,
        dynamic_size: bool = False,
        dtype: Precision = "auto",
        opset: int | None = None,
    ) -> Exported:
        if dynamic_size and self.method == "upernet":
            raise UsageError(
                "UPerNet pools maps to grids of its own, which ONNX does not compute for any size; export one file for "
                "each size with --img-size, without --dynamic-size"
            )
        return export_logits(
            self,
            folder,
            img_size=img_size,
            formats=formats,
            picture=picture,
            dynamic_size=dynamic_size,
            dtype=dtype,
            opset=opset,
        )

    def graph_size(self, img_size: tuple[int, int] | None) -> tuple[int, int]:
        """Height and width of an exported graph's images: by default the short side of the preprocessing's scale."""
        if img_size is not None:
            return img_size
        if self.preprocessing.scale is None:
            raise UsageError("this segmenter leaves pictures as large as they are; give the size of the exported graph")
        side = min(self.preprocessing.scale)
        return side, side

    def prepare(self, picture: Picture, img_size: tuple[int, int]) -> Tensor:
        """A picture as an exported graph takes it: `3 H W`."""
        how = self.preprocessing
        return squashed(picture, img_size, how.mean, how.std, antialias=how.antialias)

    def description(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "width": self.width,
            "classes": self.classes,
            "palette": self.palette,
            "preprocessing": dataclasses.asdict(self.preprocessing),
        }

    @classmethod
    def build(cls, description: Mapping[str, Any]) -> Self:
        return cls(
            description["method"],
            rebuild(description, features_only=True),
            description["classes"],
            palette=description["palette"],
            preprocessing=SegmentationPreprocessing(**tuples(description["preprocessing"])),
            width=description["width"],
        )

    @classmethod
    def create(cls, method: str, *, backbone: str, **options: Any) -> "Segmenter":
        return create_segmenter(method, backbone=backbone, **options)


def _rows_of(logits: Tensor, image: Size, size: Size, rows: Span) -> Tensor:
    """Some rows of logits that are resized to their image, and then to the picture's size; equal to rounding."""
    first, last = source_span(image[0], size[0], rows)
    part = resize_rows(logits, image, first, last)
    return resize_rows(part, size, *rows, first=first, height=image[0])


def create_segmenter(
    method: str,
    *,
    backbone: str,
    num_classes: int = 150,
    weights: str | PathLike[str] | None = None,
    backbone_weights: str | PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    palette: Sequence[Color] | None = None,
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
        palette: colours of the classes in pictures; default: `drawing_palette`.
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
    return build_dense(
        Segmenter,
        create_segmenter,
        method,
        backbone,
        options,
        num_classes=num_classes,
        classes=classes,
        weights=weights,
        backbone_weights=backbone_weights,
        preprocessing=preprocessing,
        in_chans=in_chans,
        img_size=img_size,
        drop_path_rate=drop_path_rate,
        palette=palette,
        width=width,
    )

"""Object detection and instance segmentation: a box, a class and where the method has it a mask for every object."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from PIL import Image
from torch import Tensor, nn

from transept.data.channels import fit_channels
from transept.data.detection.coco_classes import COCO_CLASSES
from transept.data.detection.sets import DetectionSplits, load_detection_splits
from transept.data.detection.transforms import DetectionPreprocessing
from transept.errors import TranseptError, UsageError
from transept.export.detector import export_detector
from transept.export.onnx import DEFAULT_FORMATS, Exported
from transept.heads.instances import Detections, Size, Target
from transept.heads.roi import BoxHead, MaskHead
from transept.heads.rpn import RPNOutputs
from transept.inference.compile import Precision
from transept.models.backbone import Backbone
from transept.tasks.coco_results import to_coco_results
from transept.tasks.data_options import DataOptions
from transept.tasks.dense import VIEW_OPTIONS, DenseTask, build_dense
from transept.tasks.detect_methods import METHODS, SingleStage, check_parts
from transept.tasks.detect_pictures import DetectionInference, detect_pictures, multi_scale_test
from transept.tasks.detect_report import SHOWN_SCORE
from transept.tasks.detect_results import DetectorResults, draw_detections, evaluate_detector, framed_detections
from transept.tasks.saving import rebuild, tuples
from transept.tasks.task import Evaluation, Halves, Item, Option


class TwoStageOutputs(NamedTuple):
    """The outputs that do not depend on proposals yet."""

    maps: list[Tensor]
    """`b c h w` of strides 4, 8, 16, 32, 64."""
    rpn: RPNOutputs


class Detector(DenseTask):
    """A backbone with a method's neck and heads, the names of its classes, and its preprocessing.

    Names of parameters are those of mmdetection's checkpoints: `backbone`, `neck`, and `bbox_head`, or `rpn_head` and
    `roi_head`.
    """

    name = "detect"
    kind = "detector"
    checkpoints = "detection"
    creator = "create_detector(method, backbone=name, "
    options: ClassVar[Mapping[str, Option]] = {
        **VIEW_OPTIONS,
        "score": Option(help=f"least score of an object (shown ones: {SHOWN_SCORE}; when scored: none)", type=float),
        "classes": Option(help="only objects of these classes", type=str, number="+", metavar="CLASS"),
        "tile": Option(
            help="overlapping tiles of so many pixels, beside the whole picture: small objects in large pictures",
            type=int,
        ),
        "overlap": Option(help="share of a tile that the next one sees again (default 0.2)", type=float),
        "batch_size": Option(help="pictures, or tiles, at once (when scored: one)", type=int),
    }
    shown_defaults: ClassVar[Mapping[str, Any]] = {"score": SHOWN_SCORE}
    data_options = frozenset({"skip_bad_annotations"})
    methods = METHODS.keys()
    preprocessing_type = DetectionPreprocessing
    published_classes = COCO_CLASSES

    bbox_head: nn.Module
    rpn_head: nn.Module
    roi_head: nn.Module

    def __init__(
        self,
        method: str,
        backbone: Backbone,
        classes: Sequence[str],
        *,
        width: int = 256,
        anchor_scale: float = 1.0,
        preprocessing: DetectionPreprocessing | None = None,
    ) -> None:
        super().__init__()
        check_parts(method, width, anchor_scale)
        if not classes:
            raise UsageError("there are no classes; give one or more")
        levels = backbone.feature_info
        if list(levels.reduction()) != [4, 8, 16, 32]:
            raise UsageError(f"the backbone has levels of strides {list(levels.reduction())}; give one of 4, 8, 16, 32")
        self.method = method
        self.width = width
        self.anchor_scale = anchor_scale
        self.classes = list(classes)
        self.backbone = backbone
        self.preprocessing = fit_channels(preprocessing or DetectionPreprocessing(), self.in_chans)
        self.neck, heads, self.stages, self.has_masks = METHODS[method](levels.channels(), len(classes), width)
        if anchor_scale != 1:
            self.stages = self.stages.with_anchors(anchor_scale)
        for name, head in heads.items():
            self.add_module(name, head)
        # What no loss reads does not learn: training on several processes waits for every gradient there should be.
        for level in range(self.neck.start_level):
            name = levels.module_name(level)
            if "." not in name:  # else a stage, which the next levels come from
                backbone.get_submodule(name).requires_grad_(False)

    def forward(self, images: Tensor) -> Any:
        """Normalised images `b 3 H W`, padded on the right and at the bottom, to the raw outputs of the method."""
        maps = self.neck(self.backbone(images))
        if isinstance(self.stages, SingleStage):
            return self.bbox_head(maps)
        return TwoStageOutputs(maps, self.rpn_head(maps))

    def run_layers(self, images: Tensor, *, boxes: int = 1000, masks: int = 100) -> None:
        """Each layer once, to be counted: box heads on so many regions, mask heads on so many, whatever the image.

        The numbers are those of the published costs. What the heads see is not read from the image.
        """
        self(images)
        for head in self.modules():
            if isinstance(head, BoxHead | MaskHead):
                size = head.features.size
                head(images.new_empty(boxes if isinstance(head, BoxHead) else masks, self.width, size, size))

    def losses(self, outputs: Any, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The method's losses by name, each with its weight.

        Raises:
            TranseptError: targets that do not fit the batch or the classes, or lack masks that the method learns from.
        """
        self._check(outputs, targets)
        if isinstance(self.stages, SingleStage):
            return self.stages.loss(outputs, targets)
        losses = self.stages.rpn_loss(outputs.rpn, targets)
        proposals = self.stages.train_proposals(outputs.rpn, [target.size for target in targets])
        return losses | self.stages.loss(self.roi_head, outputs.maps, [image.boxes for image in proposals], targets)

    def loss(self, outputs: Any, targets: Sequence[Target]) -> Tensor:
        """The sum of `losses`."""
        return torch.stack(list(self.losses(outputs, targets).values())).sum()

    def decode(
        self, outputs: Any, image_sizes: Sequence[Size] | Tensor, original_sizes: Sequence[Size] | Tensor | None = None
    ) -> list[Detections]:
        """Raw outputs to the detections of each image.

        `image_sizes` are height and width of the resized images without padding. With `original_sizes`, those of the
        images as they were, boxes come back in their pixels.
        """
        if isinstance(self.stages, SingleStage):
            return self.stages.decode(outputs, image_sizes, original_sizes)
        boxes = [image.boxes for image in self.stages.test_proposals(outputs.rpn, image_sizes)]
        return self.stages.decode(self.roi_head, outputs.maps, boxes, image_sizes, original_sizes)

    @torch.inference_mode()
    def predict(
        self, pictures: Sequence[Image.Image | Tensor], inference: DetectionInference | None = None
    ) -> list[Detections]:
        """RGB pictures (or bytes `3 H W`) of any sizes to what is on each, in its own pixels, best first.

        Masks are drawn into the picture: `n H W` bool.

        Raises:
            TranseptError: a tensor that is no picture.
            UsageError: `inference` names a class that the detector does not know.
        """
        return detect_pictures(self, pictures, inference or DetectionInference())

    def inference(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *,
        multi_scale: bool | None = None,
        flip: bool | None = None,
        score: float | None = None,
        classes: Sequence[str] | None = None,
        tile: int | None = None,
        overlap: float | None = None,
        batch_size: int | None = None,
    ) -> DetectionInference:
        if score is not None and not 0 <= score < 1:
            raise UsageError(f"score={score:g} is not in [0, 1)")
        if overlap is not None and tile is None:
            raise UsageError(f"overlap={overlap:g} is of tiles; give their size as tile, too")
        return DetectionInference(
            score_threshold=score or 0.0,
            classes=None if classes is None else tuple(classes),
            scales=multi_scale_test(self.preprocessing.scale) if multi_scale else (),
            flip=bool(flip),
            tile=tile,
            overlap=DetectionInference().overlap if overlap is None else overlap,
            batch_size=1 if batch_size is None else batch_size,
        )

    def pictures_at_once(self, inference: DetectionInference) -> int:
        return inference.batch_size

    def items(self, prediction: Detections) -> list[Item]:
        """The objects."""
        rows = zip(prediction.labels.tolist(), prediction.scores.tolist(), prediction.boxes.tolist(), strict=True)
        return [Item(self.classes[label], score, (x1, y1, x2, y2)) for label, score, (x1, y1, x2, y2) in rows]

    def columns(self, inference: DetectionInference) -> dict[str, type]:
        return super().columns(inference) | dict.fromkeys(("x1", "y1", "x2", "y2"), float)

    def records(self, prediction: Detections) -> list[tuple[Any, ...]]:
        """A row for each object."""
        return [(item.label, item.score, *(item.box or ())) for item in self.items(prediction)]

    def picture_columns(self, inference: DetectionInference) -> dict[str, Any]:
        """With masks `mask`, too: COCO's run lengths as text, of the picture's height and width."""
        return super().picture_columns(inference) | ({"mask": list[str]} if self.has_masks else {})

    def picture_record(self, prediction: Detections, inference: DetectionInference, size: Size) -> tuple[Any, ...]:
        record = super().picture_record(prediction, inference, size)
        if not self.has_masks:
            return record
        results = to_coco_results([prediction], [0], range(len(self.classes)), [size])
        return (*record, [result["segmentation"]["counts"] for result in results])

    def compact(self, inference: DetectionInference) -> DetectionInference:
        """Masks stay grids over their boxes."""
        return dataclasses.replace(inference, draw_masks=False)

    def draw(self, picture: Image.Image, prediction: Detections, path: Path) -> None:
        draw_detections(picture, prediction, self.classes, path)

    def draw_frame(self, picture: Image.Image, prediction: Detections) -> Image.Image:
        return framed_detections(picture, prediction, self.classes)

    def results(self, out: Path | None, *, inputs: Iterable[Path] = (), **options: Any) -> DetectorResults:
        return DetectorResults(self, out or Path("predictions"), inputs)

    def load_data(self, options: DataOptions, halves: Halves = "both") -> DetectionSplits:
        return load_detection_splits(
            str(options.data),
            halves=halves,
            choice=self.choice(options),
            known=self.classes if halves == "val" else None,
            val_fraction=options.val_fraction,
            masks=self.has_masks,
            skip_bad_annotations=options.skip_bad_annotations,
            scenes=options.scenes,
            reading=self.reading_of(options),
        )

    def evaluate(
        self,
        data: DataOptions,
        inference: DetectionInference | None = None,
        *,
        batch_size: int | None = None,
        workers: int = 0,
        progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> Evaluation:
        """See `Task.evaluate`. By default every object counts, whatever its score."""
        inference = inference or DetectionInference()
        if inference.classes is not None:
            raise UsageError("--classes is for predict; average precision is given for each class")
        splits = self.load_data(data, "val")
        return evaluate_detector(self, splits, str(data.data), inference, workers, progress, masks=self.has_masks)

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
        if dynamic_size:
            raise UsageError(
                "a detector's graph is for one size, to which pictures are padded; leave out --dynamic-size"
            )
        return export_detector(
            self, folder, img_size=img_size, formats=formats, picture=picture, dtype=dtype, opset=opset
        )

    @property
    def max_detections(self) -> int:
        """How many objects the list of a picture holds at most."""
        decode: Any = self.stages.decode
        return (decode.select if isinstance(self.stages, SingleStage) else decode.boxes).max_detections

    def description(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "width": self.width,
            "anchor_scale": self.anchor_scale,
            "classes": self.classes,
            "preprocessing": dataclasses.asdict(self.preprocessing),
        }

    @classmethod
    def build(cls, description: Mapping[str, Any]) -> Self:
        return cls(
            description["method"],
            rebuild(description, features_only=True),
            description["classes"],
            width=description["width"],
            anchor_scale=description.get("anchor_scale", 1.0),
            preprocessing=DetectionPreprocessing(**tuples(description["preprocessing"])),
        )

    @classmethod
    def create(cls, method: str, *, backbone: str, **options: Any) -> "Detector":
        return create_detector(method, backbone=backbone, **options)

    def _check(self, outputs: Any, targets: Sequence[Target]) -> None:
        logits = outputs.rpn.logits if isinstance(outputs, TwoStageOutputs) else outputs.logits
        if len(targets) != len(logits[0]):
            raise TranseptError(f"{len(targets)} targets for {len(logits[0])} images; give one for each")
        for i, target in enumerate(targets):
            if target.boxes.ndim != 2 or target.boxes.shape[1] != 4 or len(target.labels) != len(target.boxes):
                raise TranseptError(
                    f"target {i} of the batch has boxes {tuple(target.boxes.shape)} and labels"
                    f" {tuple(target.labels.shape)}; give n x 4 and n"
                )
            if target.boxes.device.type != "cpu":  # elsewhere the look would make the processor wait
                continue
            wrong = target.labels[(target.labels < 0) | (target.labels >= len(self.classes))]
            if len(wrong):
                raise TranseptError(
                    f"target {i} of the batch has the label {int(wrong[0])}; classes are 0 to {len(self.classes) - 1}"
                )
            sound = (target.boxes[:, 2:] > target.boxes[:, :2]).all(dim=1) & target.boxes.isfinite().all(dim=1)
            if not sound.all():
                box = target.boxes[~sound][0].tolist()
                raise TranseptError(f"target {i} of the batch has the box {box}; give x1 < x2 and y1 < y2, all finite")


def create_detector(
    method: str,
    *,
    backbone: str,
    num_classes: int = 80,
    weights: str | PathLike[str] | None = None,
    backbone_weights: str | PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: DetectionPreprocessing | None = None,
    width: int = 256,
    anchor_scale: float = 1.0,
    in_chans: int = 3,
    img_size: int | Sequence[int] | None = None,
    drop_path_rate: float = 0.0,
    **options: Any,
) -> Detector:
    """A detector by name, on any model of `transept.list_models()`.

    Methods are "retinanet", "fcos", "atss", "mask_rcnn", "cascade_rcnn" and "cascade_mask_rcnn". CrossFormer's groups
    and grouping rule, CAT-B's heads and the pictures of CAT's FCOS (blue first, not scaled) are those of the published
    detectors, where nothing else is given.

    Args:
        method: one of `METHODS`.
        backbone: a model's name; without its image size (`xcit_small_12_p16`), as detectors are published.
        num_classes: number of classes; labels begin at 0, and the background has none.
        weights: load the whole detector: what `transept.load_weights` takes.
        backbone_weights: load the backbone from a classification checkpoint instead.
        classes: names of the classes, `num_classes` of them; default: their numbers.
        preprocessing: default: the published one, pictures within 1333 x 800 pixels.
        width: channels of neck and heads, a multiple of 32 (FCOS, ATSS: from 64 on), for models smaller than the
            published; box heads have four times as many hidden units.
        anchor_scale: factor of the anchors' sides, less than 1 where objects are smaller than those of everyday
            photographs. FCOS has no anchors.
        in_chans: channels of the image.
        img_size: native size of the backbone in pixels, which its position table is made for. Any size can be given
            to the detector.
        drop_path_rate: stochastic depth of the backbone.
        options: fields of the family's config, under the paper's names.

    Raises:
        UsageError: an unknown method, backbone or option (with the nearest name), or values that contradict each other.
        TranseptError: the weights cannot be found or do not fit.
    """
    return build_dense(
        Detector,
        create_detector,
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
        width=width,
        anchor_scale=anchor_scale,
    )

"""Image classification."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor

from transept import draw
from transept.data.channels import fit_channels
from transept.data.classification.sets import Splits, load_splits
from transept.data.classification.transforms import Preprocessing, eval_transform, preprocessing_of
from transept.data.loading import TransformedSet, make_loader
from transept.errors import UsageError
from transept.export.logits import export_logits
from transept.export.onnx import DEFAULT_FORMATS, Exported
from transept.inference.compile import Precision
from transept.models.backbone import Backbone
from transept.tasks.data_options import DataOptions
from transept.tasks.labelling import (
    Classification,
    ClassificationInference,
    Labelling,
    SingleLabel,
    labelling_of,
)
from transept.tasks.saving import rebuild, tuples
from transept.tasks.task import (
    PICTURE_ENDINGS,
    Evaluation,
    Halves,
    Item,
    ModelTask,
    Option,
    Picture,
    Prepare,
    Results,
    Table,
    check_classes,
    evaluating,
)
from transept.weights.catalogue.records import Checkpoint
from transept.weights.load import create_model


class Classifier(ModelTask):
    """A model with the names of its classes and the preprocessing it was trained for."""

    name = "classify"
    kind = "classifier"
    checkpoints = "classification"
    creator = "create_model(name, "
    options: ClassVar[Mapping[str, Option]] = {
        "top": Option(help="how many classes to show", type=int),
        "threshold": Option(help="several labels: the least probability of each, in 0..1", type=float),
        "batch_size": Option(help="pictures at once", type=int),
    }
    has_one_row = True
    explains = True
    has_int8 = True

    def __init__(
        self,
        model: Backbone,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        *,
        label_smoothing: float = 0.0,
        labelling: Labelling | None = None,
    ) -> None:
        """`labelling`: `MultiLabel()` where a picture has any number of labels; default: it has one."""
        super().__init__()
        if model.num_classes != len(classes):
            raise ValueError(f"the model has {model.num_classes} classes, and {len(classes)} names were given")
        self.model = model
        self.classes = list(classes)
        self.preprocessing = fit_channels(preprocessing, self.in_chans)
        self.label_smoothing = label_smoothing
        self.labelling = labelling or SingleLabel()
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)
        """Of each class in the loss of training; None: all alike."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images `b 3 H W` to logits `b num_classes`."""
        return self.model(images)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of logits `b num_classes`.

        Args:
            labels: class numbers `b`, or each class's share `b num_classes`; where a picture has any number of labels,
                0 or 1 of each class, or a share, `b num_classes`. Only in training mode they are smoothed, and classes
                count by their weights.
        """
        weights, smoothing = (self.class_weights, self.label_smoothing) if self.training else (None, 0.0)
        return self.labelling.loss(logits, labels, weights, smoothing)

    def decode(self, logits: Tensor, top: int = 5) -> Classification:
        """The `top` most probable classes of each image, or all where there are fewer: `b k`."""
        scores, labels = self.labelling.probabilities(logits).topk(min(top, len(self.classes)), dim=-1)
        return Classification(labels, scores)

    def inference(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, top: int | None = None, threshold: float | None = None, batch_size: int | None = None
    ) -> ClassificationInference:
        defaults = ClassificationInference()
        inference = ClassificationInference(
            top=defaults.top if top is None else top,
            threshold=threshold,
            batch_size=defaults.batch_size if batch_size is None else batch_size,
        )
        self.labelling.check(inference)
        return inference

    def pictures_at_once(self, inference: ClassificationInference) -> int:
        return inference.batch_size

    @torch.inference_mode()
    def predict(
        self, pictures: Sequence[Picture], inference: ClassificationInference | None = None
    ) -> list[Classification]:
        """RGB pictures (or bytes `3 H W`) of any sizes to the best classes of each, or to all of its labels."""
        inference = inference or ClassificationInference()
        return [self.labelling.said(best, inference) for best in self._ranked(pictures, inference.batch_size)]

    @torch.inference_mode()
    def best(self, picture: Picture, count: int) -> Classification:
        """The `count` most probable classes of a picture, whatever is said of it."""
        (ranked,) = self._ranked([picture], 1)
        return Classification(*(values[:count] for values in ranked))

    def _ranked(self, pictures: Sequence[Picture], batch_size: int) -> list[Classification]:
        """All classes of each picture, the most probable first."""
        transform, predictions = self.input_of(), []
        for start in range(0, len(pictures), batch_size):
            predictions += self._rank(torch.stack([transform(each) for each in pictures[start : start + batch_size]]))
        return predictions

    def _rank(self, inputs: Tensor) -> list[Classification]:
        with evaluating(self):
            batch = self.decode(self(inputs.to(next(self.parameters()).device)), len(self.classes))
        return [Classification(labels, scores) for labels, scores in zip(*batch, strict=True)]

    def input_of(self, *, exact: bool = True) -> Callable[[Picture], Tensor]:
        return Prepare(self.preprocessing, self.in_chans, exact=exact)

    @torch.inference_mode()
    def answers(self, inputs: Tensor, inference: ClassificationInference) -> list[Classification]:
        return [self.labelling.said(best, inference) for best in self._rank(inputs)]

    def items(self, prediction: Classification) -> list[Item]:
        labels, scores = prediction.labels.tolist(), prediction.scores.tolist()
        return [Item(self.classes[label], score) for label, score in zip(labels, scores, strict=True)]

    def columns(self, inference: ClassificationInference) -> dict[str, type]:
        return self.labelling.columns(min(inference.top, len(self.classes)))

    def records(self, prediction: Classification) -> list[tuple[Any, ...]]:
        """One row."""
        return [self.labelling.record(self.items(prediction))]

    def draw(self, picture: Image.Image, prediction: Classification, path: Path) -> None:
        draw.draw_sheet([self._labelled(picture, prediction, "")], path)

    def results(
        self, out: Path | None, *, inputs: Iterable[Path] = (), no_sheet: bool = False, **options: Any
    ) -> "ClassifierResults":
        out = out or Path("predictions.png")
        if out.suffix.lower() not in PICTURE_ENDINGS:
            endings = ".png, .jpg, .pdf, .svg or .webp, or .csv or .parquet"
            raise UsageError(f"--out {out}: give a name that ends in {endings}")
        return ClassifierResults(self, out, sheet=not no_sheet)

    def _labelled(self, picture: Image.Image, prediction: Classification, title: str) -> "draw.Labelled":
        return draw.Labelled(title, picture, [(item.label, item.score) for item in self.items(prediction)])

    def load_data(self, options: DataOptions, halves: Halves = "both") -> Splits:
        return load_splits(
            str(options.data),
            halves=halves,
            choice=self.choice(options),
            known=self.classes if halves == "val" else None,
            val_fraction=options.val_fraction,
            multi_label=self.labelling.is_multi,
            label_separator=options.label_separator,
            skip_bad_images=options.skip_bad_images,
            reading=self.reading_of(options),
        )

    def evaluate(
        self,
        data: DataOptions,
        inference: ClassificationInference | None = None,
        *,
        batch_size: int | None = None,
        workers: int = 0,
        progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> Evaluation:
        splits = self.load_data(data, "val")
        if not len(self.classes) == len(splits.classes) == 1000:  # ImageNet's folders have numbers, in the same order
            check_classes(self.classes, splits.classes, str(data.data))
        images = TransformedSet(splits.val, eval_transform(self.preprocessing))
        loader = make_loader(images, batch_size or 64, workers=workers)
        device = next(self.parameters()).device
        meter, start = self.labelling.meter(), monotonic()
        self.eval()
        with torch.inference_mode():
            for batch, labels in progress(loader):
                logits, labels = self(batch.to(device)), labels.to(device)
                meter.update(self.loss(logits, labels), logits, labels)
        inference = inference or ClassificationInference()
        seconds = monotonic() - start
        evaluation = self.labelling.evaluation(
            meter, self.classes, splits.val, inference, seconds=seconds, skipped=splits.skipped
        )
        measured = splits.parts.measured(len(splits.val), splits.measured_classes, str(data.data))
        return dataclasses.replace(evaluation, split=splits.parts.split, measured=measured)

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
        return export_logits(
            self,
            folder,
            img_size=img_size,
            formats=formats,
            picture=picture,
            dynamic_size=dynamic_size,
            dtype=dtype,
            opset=opset,
            about=self.labelling.description(),
        )

    def graph_size(self, img_size: tuple[int, int] | None) -> tuple[int, int]:
        """Height and width of an exported graph's images."""
        return img_size or self.preprocessing.img_size

    def prepare(self, picture: Picture, img_size: tuple[int, int]) -> Tensor:
        """A picture as an exported graph takes it: `3 H W`."""
        return eval_transform(dataclasses.replace(self.preprocessing, img_size=img_size))(picture)

    def description(self) -> dict[str, Any]:
        preprocessing = dataclasses.asdict(self.preprocessing)
        return {"classes": self.classes, "preprocessing": preprocessing} | self.labelling.description()

    @classmethod
    def build(cls, description: Mapping[str, Any]) -> Self:
        model = rebuild(description, num_classes=len(description["classes"]))
        preprocessing = Preprocessing(**tuples(description["preprocessing"]))
        return cls(model, description["classes"], preprocessing, labelling=labelling_of(description))

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        model = create_model(checkpoint.name, pretrained=True)
        classes = [description.partition(",")[0] for description in ImageNetInfo().label_descriptions()]
        return cls(model, classes, preprocessing_of(model)).eval()


class ClassifierResults(Results):
    """One sheet of the first hundred pictures."""

    task: Classifier
    _limit = 100

    def __init__(self, task: Classifier, out: Path, *, sheet: bool) -> None:
        super().__init__(task, out)
        self._labelled: list[draw.Labelled] = []
        self.about = {"sheet": str(out) if sheet else None}

    def add(self, path: Path, picture: Image.Image, prediction: Classification) -> None:
        best = self.task.items(prediction)
        self.rows.append(
            {"image": str(path), "predictions": [{"label": item.label, "score": item.score} for item in best]}
        )
        if len(self._labelled) < self._limit:
            picture = picture.copy()
            picture.thumbnail((256, 256))
            self._labelled.append(draw.Labelled(path.name, picture, [(item.label, item.score) for item in best]))

    def finish(self) -> str:
        if self.about["sheet"] is None:
            return ""
        draw.draw_sheet(self._labelled, self.out)
        return f"{self.out}{f' (the first {self._limit})' if len(self.rows) > self._limit else ''}"

    def table(self, top: int) -> Table:
        ranks = min(top, len(self.task.classes))
        best = [[(entry["label"], entry["score"]) for entry in row["predictions"]] for row in self.rows]
        return self.task.labelling.table([row["image"] for row in self.rows], best, ranks)

"""What detectors and segmenters share: how they are built on a backbone, and scored picture by picture."""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from os import PathLike
from time import monotonic
from typing import Any, ClassVar, Self, TypeVar

from torch import nn

from transept.data.loading import JointlyTransformedSet, make_loader
from transept.errors import UsageError, unknown
from transept.models.registry import find_model
from transept.tasks.task import Option, Task, check_classes
from transept.weights.catalogue.records import Checkpoint
from transept.weights.load import create_model, load_weights

Source = str | PathLike[str] | None

VIEW_OPTIONS: Mapping[str, Option] = {
    "multi_scale": Option(
        help="the published test at several scales: segmenters take the mean, detectors merge the objects of short "
        "sides of 0.6 to 1 of their scale"
    ),
    "flip": Option(help="the picture and its mirror image, too"),
}


class DenseTask(Task):
    """A method's neck and heads on a backbone, whose answers have places in the picture."""

    is_dense = True
    preprocessing_type: ClassVar[Callable[..., Any]]
    published_classes: ClassVar[Sequence[str]]
    """Those of the published weights."""

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        task: Any = cls.create(
            checkpoint.method,
            backbone=checkpoint.model,
            num_classes=len(cls.published_classes),
            classes=cls.published_classes,
            weights=checkpoint.name,
        )
        return task.eval()


_Dense = TypeVar("_Dense", bound=DenseTask)


def build_dense(
    kind: type[_Dense],
    create: Callable[..., nn.Module],
    method: str,
    backbone: str,
    options: Mapping[str, Any],
    *,
    num_classes: int,
    classes: Sequence[str] | None,
    weights: Source,
    backbone_weights: Source,
    preprocessing: Any,
    in_chans: int,
    img_size: int | Sequence[int] | None,
    drop_path_rate: float,
    **parts: Any,
) -> _Dense:
    """The work of `create_detector` and `create_segmenter` (`create`), which say what the arguments are.

    Options and preprocessing of the published system fill in for those not given; `parts` go to the task as they are.

    Raises:
        UsageError: an unknown method or model, an option that is neither the family's nor `create`'s, or values that
            contradict each other.
        TranseptError: the weights cannot be found or do not fit.
    """
    if method not in kind.methods:
        raise unknown(f"{kind.checkpoints} method", method, kind.methods)
    name, family = find_model(backbone.partition(".")[0])
    names = _class_names(classes, num_classes)
    if weights is not None and backbone_weights is not None:
        raise UsageError(f"weights hold the whole {kind.kind}, backbone included; give them or backbone_weights")
    fields = {field.name for field in dataclasses.fields(family.variants[name])}
    _check_options(options, fields, f"option of a {kind.kind} on {name}", create)
    model = create_model(
        backbone,
        in_chans=in_chans,
        img_size=img_size,
        drop_path_rate=drop_path_rate,
        features_only=True,
        **{**family.dense_options.get((method, name), {}), **options},
    )
    preprocessing = preprocessing or kind.preprocessing_type(**family.dense_preprocessing.get((method, name), {}))
    task = kind(method, model, names, preprocessing=preprocessing, **parts)
    if backbone_weights is not None:
        load_weights(model, backbone_weights)
    if weights is not None:
        load_weights(task, weights)
    return task


def predict_all(
    task: Task,
    splits: Any,
    data: str,
    inference: Any,
    add: Callable[[Any, Any, Any], None],
    *,
    workers: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]],
) -> float:
    """Predict each validation picture and hand it to `add`, with its prediction and its truth; the seconds it took.

    Raises:
        TranseptError: the data has other classes than the task.
    """
    check_classes(task.classes, splits.classes, data)
    start = monotonic()
    # Pictures keep their own sizes, so each is a batch of its own.
    pictures = JointlyTransformedSet(splits.val, _untouched)
    for picture, truth in progress(make_loader(pictures, 1, workers=workers, collate=_only)):
        (prediction,) = task.predict([picture], inference)
        add(picture, prediction, truth)
    return monotonic() - start


def _untouched(*sample: Any) -> Any:
    return sample


def _only(samples: Sequence[Any]) -> Any:
    return samples[0]


def _check_options(options: Mapping[str, Any], fields: Collection[str], what: str, create: Callable[..., Any]) -> None:
    arguments = set(inspect.signature(create).parameters) - {"options"}
    for option in options:
        if option not in fields:
            raise unknown(what, option, arguments.union(fields))


def _class_names(classes: Sequence[str] | None, num_classes: int) -> Sequence[str]:
    """The names given, or the numbers from 0."""
    if classes is None:
        return [str(i) for i in range(num_classes)]
    if len(classes) != num_classes:
        raise UsageError(f"{len(classes)} names of classes were given for num_classes={num_classes}; make them agree")
    return classes

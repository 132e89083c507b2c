"""What a user may mean by RUN_OR_NAME: a run folder, a weights file of ours, or a published model."""

from pathlib import Path

from timm.data import ImageNetInfo

from transept.data.transforms import preprocessing_of
from transept.errors import TranseptError, UsageError
from transept.tasks.classify import Classifier
from transept.train.folder import BEST, CONFIG
from transept.weights.create import create_model, default_checkpoint, find_checkpoint


def load_classifier(source: str) -> tuple[Classifier, Path | None]:
    """The classifier, and its run folder where it has one.

    Raises:
        TranseptError: the source is none of the three, or cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        if not (path / BEST).is_file():
            state = "has not finished an epoch yet" if (path / CONFIG).is_file() else "is no run folder"
            raise TranseptError(f"{source!r} {state}: it has no {BEST}")
        return Classifier.load(path / BEST), path
    if path.suffix == ".safetensors":
        return Classifier.load(path), path.parent if (path.parent / CONFIG).is_file() else None
    if path.exists() or "/" in source:
        raise TranseptError(f"{source!r} is no run folder; give one, a .safetensors file of one, or a model's name")
    try:
        weights = find_checkpoint(source) if "." in source else default_checkpoint(source)
        if weights.task != "classification":
            raise TranseptError(
                f"{source!r} are {weights.task} weights, which have no classifier; "
                f"'transept models --weights {weights.model}*' lists those that do"
            )
        model = create_model(source, pretrained=True)
    except UsageError as error:
        raise UsageError(f"{source!r} is no run folder, and {error}") from error
    classes = [description.partition(",")[0] for description in ImageNetInfo().label_descriptions()]
    return Classifier(model, classes, preprocessing_of(model)).eval(), None

"""Trained and published tasks by what people call them: a run folder, a weights file of ours, or a name."""

from os import PathLike
from pathlib import Path

from transept.errors import TranseptError, UsageError
from transept.models.registry import find_model
from transept.tasks.classify import Classifier
from transept.tasks.pretrain import FeatureExtractor
from transept.tasks.registry import TASKS
from transept.tasks.run_folder import BEST, CONFIG, FOLDS
from transept.tasks.task import Task, read_task
from transept.weights.catalogue.records import Checkpoint, checkpoints_of
from transept.weights.files.reading import PUBLISHED
from transept.weights.load import default_checkpoint, find_checkpoint


def load(source: str | PathLike[str]) -> Task:
    """A trained or published task, in evaluation mode on the CPU: it can `predict`, `evaluate`, `export` and `save`.

    Args:
        source: a run folder; a .safetensors file of one; a model's name (`xcit_small_12_p16_224`), with a tag for one
            of several published weights; or `METHOD/BACKBONE` for a published detector or segmenter
            (`mask_rcnn/xcit_small_12_p16`, `semantic_fpn/cat_small.TAG`).

    Returns:
        A `Classifier`, `Detector`, `Segmenter` or, of self-supervised weights, a `FeatureExtractor`. Its `run` is the
        run folder, where it has one.

    Raises:
        UsageError: no model has this name.
        TranseptError: the source is none of these, or its weights cannot be found or read.
    """
    name = str(source)
    path = Path(source)
    if path.is_dir() or path.suffix == ".safetensors":
        file = trained_file(path)
        task = read_task(file, TASKS)
        task.run = file.parent if (file.parent / CONFIG).is_file() else None
        return task
    method, _, backbone = name.partition("/")
    systems = [kind for kind in TASKS if method in kind.methods]
    if backbone and systems:
        return systems[0].from_checkpoint(_system_checkpoint(systems[0], method, backbone))
    if path.suffix.lower() in PUBLISHED and path.is_file():
        raise TranseptError(
            f"{name!r} is a checkpoint, which does not say what its model is for; 'transept train RECIPE "
            "--model.weights FILE' starts from it, create_model(NAME, weights=FILE) loads it, 'transept convert "
            "FILE' says what it is"
        )
    if path.exists() or "/" in name:
        raise TranseptError(f"{name!r} is no run folder; give one, a .safetensors file of one, or a model's name")
    try:
        checkpoint = named_checkpoint(name)
        kinds = [kind for kind in TASKS if kind.checkpoints == checkpoint.task]
        if not kinds:
            raise TranseptError(
                f"{name!r} are {checkpoint.task} weights, which answer nothing by themselves; "
                f"'transept models --weights {checkpoint.model}*' lists those that do"
            )
        return kinds[0].from_checkpoint(checkpoint)
    except UsageError as error:
        raise UsageError(f"{name!r} is no run folder, and {error}") from error


def trained_file(path: Path) -> Path:
    """The weights file behind a run folder, or the file itself.

    Raises:
        TranseptError: the folder has none.
    """
    if not path.is_dir():
        return path
    if (path / FOLDS).is_file():
        raise TranseptError(f"{str(path)!r} holds the runs of several folds; give one of them, e.g. {path / 'fold-1'}")
    if not (path / BEST).is_file():
        state = "has not finished an epoch yet" if (path / CONFIG).is_file() else "is no run folder"
        raise TranseptError(f"{str(path)!r} {state}: it has no {BEST}")
    return path / BEST


def load_features(source: str | PathLike[str]) -> FeatureExtractor:
    """The backbone of a classifier of one label or of a pretraining run, without any head.

    Raises:
        TranseptError: the source is no such model, or cannot be read.
    """
    task = load(source)
    if isinstance(task, Classifier) and task.labelling.is_multi:
        raise TranseptError(
            f"{str(source)!r} gives a picture any number of labels; --knn and --linear are for classifiers of one"
        )
    return _features_of(task, source)


def load_backbone(source: str | PathLike[str]) -> FeatureExtractor:
    """The backbone of any classifier or of a pretraining run, without any head.

    Raises:
        TranseptError: the source is no such model, or cannot be read.
    """
    return _features_of(load(source), source)


def _features_of(task: Task, source: str | PathLike[str]) -> FeatureExtractor:
    if task.is_dense:
        raise TranseptError(
            f"{str(source)!r} is a {task.kind}, whose backbone gives maps; give a classifier or a pretrained model"
        )
    features = FeatureExtractor(task.backbone, task.preprocessing).eval()
    features.run = task.run
    features.reading = task.reading
    return features


def names_model(source: str) -> bool:
    """Whether it is a model's or checkpoint's name: no path, and no `METHOD/BACKBONE`."""
    path = Path(source)
    return not path.exists() and "/" not in source and path.suffix != ".safetensors"


def named_checkpoint(name: str) -> Checkpoint:
    """The published weights of this name; of a model's, its default ones."""
    return find_checkpoint(name) if "." in name else default_checkpoint(name)


def _system_checkpoint(kind: type[Task], method: str, backbone: str) -> Checkpoint:
    """No method detects as well as segments, so its name says which of the two."""
    if "." in backbone:
        checkpoint = find_checkpoint(backbone)
        if checkpoint.task != kind.checkpoints or checkpoint.method != method:
            raise UsageError(f"{backbone!r} are no weights of {method}, but of {checkpoint.method or checkpoint.task}")
        return checkpoint
    name, _ = find_model(backbone)
    for checkpoint in checkpoints_of(name):
        if checkpoint.task == kind.checkpoints and checkpoint.method == method:
            return checkpoint
    raise TranseptError(
        f"no weights of {method} on {backbone} were published; 'transept models --weights {backbone}*' lists those of "
        "the backbone, and 'transept count' needs none"
    )

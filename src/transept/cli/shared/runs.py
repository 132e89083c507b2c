"""What a user may mean by RUN_OR_NAME: a run folder, a weights file of ours, or a published model."""

from pathlib import Path

import torch
from timm.data import ImageNetInfo

from transept.data.classification.transforms import preprocessing_of
from transept.data.detection.coco_classes import COCO_CLASSES
from transept.data.segmentation.ade20k_classes import ADE20K_CLASSES
from transept.errors import TranseptError, UsageError
from transept.models.registry import find_model
from transept.tasks.classify import Classifier
from transept.tasks.detect import METHODS as DETECTION_METHODS
from transept.tasks.detect import Detector, create_detector
from transept.tasks.pretrain import FeatureExtractor
from transept.tasks.run_folder import BEST, CONFIG
from transept.tasks.saving import task_of
from transept.tasks.segment import METHODS as SEGMENTATION_METHODS
from transept.tasks.segment import Segmenter, create_segmenter
from transept.weights.catalogue.records import Checkpoint, checkpoints_of
from transept.weights.load import create_model, default_checkpoint, find_checkpoint


def load_run(source: str) -> tuple[Classifier | Segmenter | Detector, Path | None]:
    """The trained task, and its run folder where it has one.

    Published detectors and segmenters are called `METHOD/BACKBONE` (`mask_rcnn/xcit_small_12_p16`), with a tag where
    there are several (`semantic_fpn/cat_small.TAG`), or by the checkpoint's name (`cat_small.retinanet_1x_coco`).

    Raises:
        TranseptError: the source is none of the three, or cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        if not (path / BEST).is_file():
            state = "has not finished an epoch yet" if (path / CONFIG).is_file() else "is no run folder"
            raise TranseptError(f"{source!r} {state}: it has no {BEST}")
        return _load(path / BEST), path
    if path.suffix == ".safetensors":
        return _load(path), path.parent if (path.parent / CONFIG).is_file() else None
    method, _, backbone = source.partition("/")
    if backbone and method in (*DETECTION_METHODS, *SEGMENTATION_METHODS):
        return _published_system(_system_checkpoint(method, backbone)), None
    if path.exists() or "/" in source:
        raise TranseptError(f"{source!r} is no run folder; give one, a .safetensors file of one, or a model's name")
    try:
        weights = named_checkpoint(source)
        if weights.task in _SYSTEMS:
            return _published_system(weights), None
        if weights.task != "classification":
            features = ", and --knn or --linear measures features" if weights.task == "self-supervised" else ""
            raise TranseptError(
                f"{source!r} are {weights.task} weights, which have no classifier; "
                f"'transept models --weights {weights.model}*' lists those that do{features}"
            )
        model = create_model(source, pretrained=True)
    except UsageError as error:
        raise UsageError(f"{source!r} is no run folder, and {error}") from error
    classes = [description.partition(",")[0] for description in ImageNetInfo().label_descriptions()]
    return Classifier(model, classes, preprocessing_of(model)).eval(), None


def load_features(source: str) -> tuple[FeatureExtractor, Path | None]:
    """The backbone of a classifier or of a pretraining run, without any head, and the run folder where it has one.

    Raises:
        TranseptError: the source is no such model, or cannot be read.
    """
    path = Path(source)
    file = path / BEST if path.is_dir() else path
    if file.is_file() and task_of(file) == "pretrain":
        return FeatureExtractor.load(file), file.parent if (file.parent / CONFIG).is_file() else None
    if names_model(source):
        weights = named_checkpoint(source)
        if weights.task in ("classification", "self-supervised"):
            model = create_model(source, pretrained=True, num_classes=0)
            return FeatureExtractor(model, preprocessing_of(model)).eval(), None
    task, folder = load_run(source)
    if not isinstance(task, Classifier):
        raise TranseptError(f"{source!r} is a {type(task).__name__.lower()}; --knn and --linear are for classifiers")
    return FeatureExtractor(task.model, task.preprocessing).eval(), folder


def names_model(source: str) -> bool:
    """Whether it is a model's or checkpoint's name: no path, and no `METHOD/BACKBONE`."""
    path = Path(source)
    return not path.exists() and "/" not in source and path.suffix != ".safetensors"


def named_checkpoint(name: str) -> Checkpoint:
    """Of a checkpoint's name, or a model's, whose default it is then."""
    return find_checkpoint(name) if "." in name else default_checkpoint(name)


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _load(path: Path) -> Classifier | Segmenter | Detector:
    if task_of(path) == "pretrain":
        raise TranseptError(
            f"{str(path)!r} was pretrained without classes; measure its features with 'transept eval --knn' or "
            "'--linear', or train a classifier from it with --model.weights"
        )
    tasks = {"segment": Segmenter, "detect": Detector}
    return tasks.get(task_of(path), Classifier).load(path)


_SYSTEMS = ("detection", "segmentation")


def _system_checkpoint(method: str, backbone: str) -> Checkpoint:
    """No method detects as well as segments, so its name says which of the two."""
    if "." in backbone:
        checkpoint = find_checkpoint(backbone)
        if checkpoint.task not in _SYSTEMS or checkpoint.method != method:
            raise UsageError(f"{backbone!r} are no weights of {method}, but of {checkpoint.method or checkpoint.task}")
        return checkpoint
    name, _ = find_model(backbone)
    for checkpoint in checkpoints_of(name):
        if checkpoint.task in _SYSTEMS and checkpoint.method == method:
            return checkpoint
    raise TranseptError(
        f"no weights of {method} on {backbone} were published; 'transept models --weights {backbone}*' lists those of "
        "the backbone, and 'transept count' needs none"
    )


def _published_system(checkpoint: Checkpoint) -> Detector | Segmenter:
    """Detectors are for COCO, segmenters for ADE20K."""
    if checkpoint.task == "detection":
        create, classes = create_detector, COCO_CLASSES
    else:
        create, classes = create_segmenter, ADE20K_CLASSES
    return create(
        checkpoint.method,
        backbone=checkpoint.model,
        num_classes=len(classes),
        classes=classes,
        weights=checkpoint.name,
    ).eval()

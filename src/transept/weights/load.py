"""Models by name, with or without weights: the functions behind `transept.create_model` and `transept.load_weights`."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from transept.errors import TranseptError, UsageError, unknown
from transept.models import registry
from transept.models.backbone import Backbone
from transept.weights.catalogue.records import CHECKPOINTS, Checkpoint, checkpoints_of, set_preprocessing, unpublished
from transept.weights.fetch.download import fetch
from transept.weights.fetch.locate import locate
from transept.weights.files.reading import PUBLISHED, check_is_file, read_checkpoint
from transept.weights.fit import load_contents
from transept.weights.report import LoadReport, Reason
from transept.weights.timm_entries import register_models

_DEFAULT_CLASSES = 1000


def list_models(pattern: str = "*", *, tag: bool = False) -> list[str]:
    """Sorted names of the registered models that match a shell pattern; with `tag`, of their weights (`name.tag`)."""
    names = registry.list_models(pattern)
    return sorted(checkpoint.name for name in names for checkpoint in checkpoints_of(name)) if tag else names


def create_model(
    name: str,
    pretrained: bool = False,
    weights: str | PathLike[str] | None = None,
    *,
    num_classes: int = _DEFAULT_CLASSES,
    in_chans: int = 3,
    img_size: int | Sequence[int] | None = None,
    drop_path_rate: float = 0.0,
    features_only: bool = False,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    **options: Any,
) -> Backbone:
    """A model by name, as in `timm.create_model`.

    Args:
        name: one of `list_models()`, or of `list_models(tag=True)` to choose among its published weights.
        pretrained: load the published weights (the default ones where `name` has no tag).
        weights: load these instead: a path, an URL, or `name.tag`.
        num_classes: size of the logits; 0 makes the model return pooled features. Where it differs from the
            weights', the classifier starts fresh.
        in_chans: channels of the image.
        img_size: native size in pixels, an int or (height, width); default: the variant's.
        drop_path_rate: stochastic depth.
        features_only: build the pyramid instead: a list of maps of strides 4, 8, 16, 32.
        out_indices: which of the four levels.
        options: fields of the family's config, under the paper's names, e.g. `depth=6`.

    Raises:
        UsageError: an unknown name or option (with the nearest match), or values that contradict each other.
        TranseptError: the weights cannot be found or do not fit.
    """
    name, _, tag = name.partition(".")
    if tag:
        options = {**find_checkpoint(f"{name}.{tag}").options, **options}
        img_size = options.pop("img_size", None) if img_size is None else img_size
    model = registry.build_model(
        name,
        num_classes=num_classes,
        in_chans=in_chans,
        img_size=img_size,
        drop_path_rate=drop_path_rate,
        features_only=features_only,
        out_indices=out_indices,
        **options,
    )
    source = weights
    if source is None and pretrained:
        source = f"{name}.{tag}" if tag else default_checkpoint(name).name
    if source is not None:
        report = load_weights(model, source)
        if any(key.fresh and key.reason is Reason.NO_CLASSIFIER for key in report.keys):
            warnings.warn(
                f"{source} has no classifier, so that of {name} starts fresh; num_classes=0 gives its features",
                stacklevel=2,
            )
        others = [key.why for key in report.keys if key.reason is Reason.OTHER_CLASSES and "dropped" in key.actions]
        if others and num_classes == _DEFAULT_CLASSES:  # any other number was asked for
            warnings.warn(
                f"the classifier of {source} is {others[0]}, so that of {name} starts fresh; num_classes=N takes its N",
                stacklevel=2,
            )
    return model


def default_checkpoint(name: str) -> Checkpoint:
    """The published weights that `pretrained=True` means: the authors' classifier, if possible one to be fetched.

    Raises:
        UsageError: no such model.
        TranseptError: nobody released weights of it.
    """
    full, _ = registry.find_model(name)
    published = checkpoints_of(full)
    if not published:
        why = unpublished(full) or f"no checkpoint of {full} was published"
        raise TranseptError(f"there are no weights of {full} to fetch: {why}; load your own with weights=FILE")
    return published[0]


def find_checkpoint(name: str) -> Checkpoint:
    """The catalogue's entry of `name.tag`, whose name may lack its image size, as in `create_model`."""
    model, _, tag = name.partition(".")
    with suppress(UsageError):  # a teacher's name is none of ours
        model, _ = registry.find_model(model)
    for checkpoint in CHECKPOINTS:
        if checkpoint.tag == tag and checkpoint.registered == model:
            return checkpoint
    raise unknown("published checkpoint", name, (checkpoint.name for checkpoint in CHECKPOINTS))


def load_weights(
    model: nn.Module, source: str | PathLike[str], strict: bool = True, *, wrapper: str | None = None
) -> LoadReport:
    """Load a checkpoint into `model`: a path, an URL, or the `name.tag` of published weights.

    Takes the official files of each family, old and new, for classifiers, dense backbones and whole detectors or
    segmenters; those of other code bases (timm, PASSL, PaddleViT, MMPretrain, MindCV, birder, ...); ours. Names and
    layouts are converted, and what depends on the image size is resized; a warning says where a code base computes
    otherwise than ours. A classifier for another number of classes, and parts that a pyramid lacks or has in addition,
    keep the values they had. The report accounts for every name.

    Args:
        model: from `create_model`, a detector or a segmenter; it is changed in place.
        source: what to load.
        strict: any difference without a known reason is an error. Shapes that do not fit always are one.
        wrapper: the entry of the file to take, e.g. "model_ema"; default: the one that the authors evaluate.

    Raises:
        TranseptError: the file cannot be read, or does not fit. The model is then unchanged.
    """
    source = str(source)
    path, published = find_file(source)
    report = load_contents(model, read_checkpoint(path, wrapper), source, strict)
    if report.departs:
        warnings.warn(
            f"{source} has the names of {report.dialect}, whose outputs differ somewhat: {report.departs}",
            stacklevel=2,
        )
    if published:
        set_preprocessing(getattr(model, "backbone", model), published)
    return report


def find_file(source: str) -> tuple[Path, Checkpoint | None]:
    """The file behind a path, an URL or a `name.tag`, downloaded where necessary, and its entry in the catalogue."""
    if source.startswith(_SCHEMES):
        return fetch(source), next((entry for entry in CHECKPOINTS if entry.url == source), None)
    if _is_published(source):
        published = find_checkpoint(source)
        return locate(published), published
    return Path(source), None


def check_source(source: str) -> None:
    """Whether there is such a source, as far as can be said without a network: of an URL nothing.

    Raises:
        UsageError: no published weights have this name.
        TranseptError: there is no file at this path.
    """
    if source.startswith(_SCHEMES):
        return
    if _is_published(source):
        find_checkpoint(source)
    else:
        check_is_file(Path(source))


def _is_published(source: str) -> bool:
    """Whether it is written as the `name.tag` of published weights."""
    path = Path(source)
    return "." in source and "/" not in source and path.suffix.lower() not in _ENDINGS and not path.exists()


register_models(create_model)

_SCHEMES = ("http://", "https://")
_ENDINGS = (".safetensors", *PUBLISHED)

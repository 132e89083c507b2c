"""The building of detectors and segmenters alike: their backbone, and the checks of what was asked for."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

from torch import nn

from transept.errors import UsageError, unknown
from transept.models.backbone import Backbone
from transept.models.registry import find_model
from transept.tasks.task import Option
from transept.weights.load import create_model, load_weights

Source = str | PathLike[str] | None

VIEW_OPTIONS: Mapping[str, Option] = {
    "multi_scale": Option(
        help="the published test at several scales: segmenters take the mean, detectors merge the objects of short "
        "sides of 0.6 to 1 of their scale"
    ),
    "flip": Option(help="the picture and its mirror image, too"),
}


def build_pyramid(
    what: str,
    create: Callable[..., nn.Module],
    backbone: str,
    published: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    in_chans: int,
    img_size: int | Sequence[int] | None,
    drop_path_rate: float,
) -> Backbone:
    """The backbone of a detector or segmenter (`what`) that `create` builds, with its levels as outputs.

    `published` are the options of the published system; `options` are the caller's, and come first.

    Raises:
        UsageError: an unknown model, or an option that is neither the family's nor `create`'s.
    """
    name, family = find_model(backbone.partition(".")[0])
    fields = {field.name for field in dataclasses.fields(family.variants[name])}
    arguments = set(inspect.signature(create).parameters) - {"options"}
    for option in options:
        if option not in fields:
            raise unknown(f"option of a {what} on {name}", option, fields | arguments)
    return create_model(
        backbone,
        in_chans=in_chans,
        img_size=img_size,
        drop_path_rate=drop_path_rate,
        features_only=True,
        **{**published, **options},
    )


def class_names(classes: Sequence[str] | None, num_classes: int) -> Sequence[str]:
    """The names given, or the numbers from 0.

    Raises:
        UsageError: another number of names.
    """
    if classes is None:
        return [str(i) for i in range(num_classes)]
    if len(classes) != num_classes:
        raise UsageError(f"{len(classes)} names of classes were given for num_classes={num_classes}; make them agree")
    return classes


def check_sources(what: str, weights: Source, backbone_weights: Source) -> None:
    if weights is not None and backbone_weights is not None:
        raise UsageError(f"weights hold the whole {what}, backbone included; give them or backbone_weights")


def load_sources(whole: nn.Module, backbone: Backbone, weights: Source, backbone_weights: Source) -> None:
    """Load what is given of the two."""
    if backbone_weights is not None:
        load_weights(backbone, backbone_weights)
    if weights is not None:
        load_weights(whole, weights)

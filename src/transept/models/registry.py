"""Names to models. A new family is one file beside this one and one line in `FAMILIES`."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._pytree import tree_leaves

from transept.errors import UsageError, unknown
from transept.machine import machine_memory
from transept.models import bixt, cabvit, cait, cat, crossformer, crossvit, xcit
from transept.models.backbone import Backbone, Family, ModelConfig, native_size
from transept.models.undrawn import UndrawnWeights

FAMILIES: list[Family] = [
    cat.FAMILY,
    cabvit.FAMILY,
    crossformer.FAMILY,
    xcit.FAMILY,
    cait.FAMILY,
    crossvit.FAMILY,
    bixt.FAMILY,
]


def register_family(family: Family) -> None:
    """Add a family that lives elsewhere, for this process: every function and verb then knows its variants.

    Raises:
        UsageError: a name of the family or of one of its variants is taken.
    """
    taken = {name for known in FAMILIES for name in (known.name, *known.variants)}
    if clashes := sorted(taken & {family.name, *family.variants}):
        raise UsageError(f"{', '.join(map(repr, clashes))}: registered already; choose another name")
    FAMILIES.append(family)


def unregister_family(family: Family) -> None:
    """Take away what `register_family` added."""
    FAMILIES.remove(family)


def list_models(pattern: str = "*") -> list[str]:
    """The sorted names that match a shell pattern, e.g. `list_models("cait_s*")`."""
    return sorted(name for family in FAMILIES for name in family.variants if fnmatchcase(name, pattern))


def find_model(name: str) -> tuple[str, Family]:
    """The registered name and family behind `name`.

    A name without its image size, as the dense models are published (`xcit_small_12_p16`), means the smallest.
    """
    for family in FAMILIES:
        if name in family.variants:
            return name, family
    sized = [full for full in list_models(f"{name}_*") if re.fullmatch(rf"{re.escape(name)}_\d+", full)]
    if sized:
        return find_model(min(sized, key=lambda full: int(full.rsplit("_", 1)[1])))
    raise unknown("model", name, list_models(), hint="'transept models' lists them all")


def family_of(model: nn.Module) -> Family | None:
    """The family of a model that `build_model` made; None for any other."""
    for family in FAMILIES:
        if getattr(model, "pretrained_cfg", {}).get("architecture") in family.variants:
            return family
    return None


def build_model(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | Sequence[int] | None = None,
    drop_path_rate: float = 0.0,
    features_only: bool = False,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    **options: Any,
) -> Backbone:
    """A freshly initialised model; see `transept.create_model`, which adds weights.

    Raises:
        UsageError: an unknown name or option, values that contradict each other, or more parameters than memory.
    """
    name, family = find_model(name)
    config: ModelConfig = family.variants[name]
    if img_size is not None:
        options["img_size"] = native_size(img_size)
    known = {field.name for field in dataclasses.fields(config)}
    for option in options:
        if option not in known:
            raise unknown(f"option of {name}", option, known | _ARGUMENTS)
    for argument, value in (("num_classes", num_classes), ("in_chans", in_chans)):
        if value < (argument == "in_chans"):
            raise UsageError(f"{argument}={value} is too small for {name}")
    if not 0 <= drop_path_rate < 1:
        raise UsageError(f"drop_path_rate={drop_path_rate} is not in [0, 1)")

    def build() -> Backbone:
        common: dict[str, Any] = dict(in_chans=in_chans, drop_path_rate=drop_path_rate)
        if features_only:
            return family.pyramid(config, out_indices=out_indices, **common)
        return family.classifier(config, num_classes=num_classes, **common)

    try:
        check_numbers(options)
        config = dataclasses.replace(config, **options)
        numbers = sorted(n for n in tree_leaves([num_classes, in_chans, options]) if isinstance(n, int | float))
        if math.prod(numbers[-2:]) > _LARGE and torch.get_default_device().type == "cpu":
            _check_memory(build)
        model = build()
    except (ValueError, ArithmeticError) as error:
        raise UsageError(f"{name}: {error}") from error
    model.pretrained_cfg["architecture"] = name
    if family.first_conv:
        model.pretrained_cfg["first_conv"] = family.first_conv
    return model


_LARGE = 1_000_000
"""The product of the two largest numbers asked for, below which a model is not built a second time to be measured."""


def _check_memory(build: Callable[[], nn.Module]) -> None:
    """Raises `ValueError` where this machine could not hold the parameters, before it tries to."""
    memory, size = machine_memory(), 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal size
        size += parameter.numel() * parameter.element_size()
        if memory is not None and size > memory:
            raise ValueError(
                f"its parameters would take more than this machine's {memory / 2**30:.0f} GiB of memory; give smaller "
                "options"
            )

    hook = register_module_parameter_registration_hook(add)
    try:
        with skeletons():
            build()
    finally:
        hook.remove()


def check_numbers(options: Mapping[str, Any]) -> None:
    """Numbers of a configuration that no machine could build, however they are written.

    Raises:
        ValueError: one is negative, not finite or out of all bounds.
    """
    for name, value in options.items():
        least, most = int(name == "depth"), _DEEPEST if name.startswith("depth") else _WIDEST
        for number in _flat(value):
            if isinstance(number, int | float) and not least <= number <= most:
                raise ValueError(f"{name}={value} is not in [{least}, {most}]")


_DEEPEST, _WIDEST = 1000, 16_384


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _flat(each)
    else:
        yield value


def build_skeleton(name: str, **options: Any) -> Backbone:
    """The model of `build_model` on the meta device: names, shapes and modules, without memory or values."""
    with skeletons():
        return build_model(name, **options)


@contextmanager
def skeletons() -> Iterator[None]:
    """Modules made within have no memory and no values; drawing them would still take most of the time."""
    with torch.device("meta"), UndrawnWeights():
        yield


_ARGUMENTS = {
    "num_classes",
    "in_chans",
    "img_size",
    "drop_path_rate",
    "features_only",
    "out_indices",
    "pretrained",
    "weights",
}

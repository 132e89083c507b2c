"""One file for a trained task: its weights, and in the header all that is needed to build it again."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from transept.errors import TranseptError
from transept.files import write_atomically
from transept.models.backbone import Backbone
from transept.weights.files.reading import StateDict, read_state_dict

_METADATA_KEY = "transept"

Task = Literal["classify", "detect", "segment", "pretrain"]


def describe(model: Backbone) -> dict[str, Any]:
    """What `build_model` needs to build `model` again, but for its number of classes."""
    return {
        "architecture": model.pretrained_cfg["architecture"],
        "options": {field.name: getattr(model.config, field.name) for field in dataclasses.fields(model.config)},
        "in_chans": model.pretrained_cfg["input_size"][0],
    }


def save_task(path: Path, task: Task, module: nn.Module, about: dict[str, Any]) -> None:
    """Weights and description in one safetensors file, written atomically."""
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    metadata = {_METADATA_KEY: json.dumps({"task": task} | about)}
    write_atomically(path, lambda temporary: save_file(state, temporary, metadata))


def task_of(path: Path) -> Task:
    """What the model in a file was trained to do; `classify` where the file does not say (loading it tells why)."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()[_METADATA_KEY]).get("task", "classify")
    except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError):
        return "classify"


@contextmanager
def loading_task(path: Path, task: Task) -> Iterator[tuple[StateDict, dict[str, Any]]]:
    """Weights and description of a file that `save_task` wrote; lists in the description come back as they are.

    Raises:
        TranseptError: the file is missing, damaged, of another task, was not written by `save_task`, or the body of
            the `with` finds something missing.
    """
    state, _ = read_state_dict(path)
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()[_METADATA_KEY])
        if about.get("task", "classify") != task:
            raise TranseptError(f"{str(path)!r} holds a model that was trained to {about['task']}, not to {task}")
        yield state, about
    except TranseptError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        creator = {
            "classify": "create_model(name, ",
            "pretrain": "create_model(name, num_classes=0, ",
            "detect": "create_detector(method, backbone=name, ",
            "segment": "create_segmenter(method, backbone=name, ",
        }[task]
        raise TranseptError(
            f"{str(path)!r} does not say which model it is for; load it with {creator}weights=...)"
        ) from error


def tuples(options: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists only; our configurations have tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}

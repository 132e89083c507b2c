"""One file for a trained task: its weights, and in the header all that is needed to build it again."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from transept.files import write_atomically
from transept.models.backbone import Backbone
from transept.models.registry import build_model

METADATA_KEY = "transept"


def describe(model: Backbone) -> dict[str, Any]:
    """Plain data from which `rebuild` makes `model` again, but for its number of classes."""
    return {
        "architecture": model.pretrained_cfg["architecture"],
        "options": {field.name: getattr(model.config, field.name) for field in dataclasses.fields(model.config)},
        "in_chans": model.pretrained_cfg["input_size"][0],
    }


def rebuild(description: Mapping[str, Any], **arguments: Any) -> Backbone:
    """The model that `describe` described, freshly initialised; `arguments` are those of `build_model`."""
    in_chans, options = description["in_chans"], description["options"]
    return build_model(description["architecture"], in_chans=in_chans, **arguments, **options)


def save_task(path: Path, name: str, module: nn.Module, description: Mapping[str, Any]) -> None:
    """Weights and description of the task called `name` in one safetensors file, written atomically."""
    state = {key: value.contiguous() for key, value in module.state_dict().items()}
    metadata = {METADATA_KEY: json.dumps({"task": name} | dict(description))}
    write_atomically(path, lambda temporary: save_file(state, temporary, metadata))


def tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists only; our configurations have tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}

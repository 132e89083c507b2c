"""One file for a trained task: its weights, and in the header all that is needed to build it again."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors.torch import save_file
from torch import nn

from transept.errors import TranseptError
from transept.files import write_atomically
from transept.models.backbone import Backbone
from transept.models.registry import build_model
from transept.weights.files.reading import read_checkpoint

if TYPE_CHECKING:
    from transept.tasks.task import Task

METADATA_KEY = "transept"
_Task = TypeVar("_Task", bound="Task")


def describe(model: Backbone) -> dict[str, Any]:
    """Plain data from which `rebuild` makes `model` again, but for its number of classes."""
    return {
        "architecture": model.pretrained_cfg["architecture"],
        "options": {field.name: getattr(model.config, field.name) for field in dataclasses.fields(model.config)},
        "in_chans": model.pretrained_cfg["input_size"][0],
    }


def rebuild(about: Mapping[str, Any], **arguments: Any) -> Backbone:
    """The model that `describe` described, freshly initialised; `arguments` are those of `build_model`."""
    return build_model(about["architecture"], in_chans=about["in_chans"], **arguments, **about["options"])


def save_task(path: Path, name: str, module: nn.Module, about: Mapping[str, Any]) -> None:
    """Weights and description of the task called `name` in one safetensors file, written atomically."""
    state = {key: value.contiguous() for key, value in module.state_dict().items()}
    metadata = {METADATA_KEY: json.dumps({"task": name} | dict(about))}
    write_atomically(path, lambda temporary: save_file(state, temporary, metadata))


def read_task(path: Path, kinds: Sequence[type[_Task]]) -> _Task:
    """The task in a file that `save_task` wrote, in evaluation mode. The file is opened once.

    Args:
        path: of the file.
        kinds: which tasks are welcome.

    Raises:
        TranseptError: the file is missing, damaged, of another task, or was not written by `save_task`.
    """
    contents = read_checkpoint(path)
    kind = kinds[0]
    try:
        about = json.loads(contents.metadata[METADATA_KEY])
        name = about.get("task", "classify")
        if name not in (known.name for known in kinds):
            wanted = " or ".join(known.name for known in kinds)
            raise TranseptError(f"{str(path)!r} holds a model that was trained to {name}, not to {wanted}")
        kind = next(known for known in kinds if known.name == name)
        task = kind.build(about)
        # Our own names are whole: what other code's wrappers put before all of theirs is part of them.
        task.stored.load_state_dict({contents.prefix + key: value for key, value in contents.tensors.items()})
        return task.eval()
    except TranseptError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise TranseptError(
            f"{str(path)!r} does not say which model it is for; load it with {kind.creator}weights=...)"
        ) from error


def tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists only; our configurations have tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}

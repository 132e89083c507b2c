"""Trained tasks in the verbs: loading them, and the options of inference."""

import argparse
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from transept.checks import check_most
from transept.errors import TranseptError, UsageError
from transept.tasks.data_options import DataOptions
from transept.tasks.load import load, named_checkpoint, names_model
from transept.tasks.registry import TASKS
from transept.tasks.task import Option, Task
from transept.tasks.use import data_of


def load_task(source: str) -> Task:
    """`transept.load`, on the fastest device of this machine, of what answers by itself.

    Raises:
        TranseptError: as `transept.load`; published weights that have no classifier, before they are downloaded.
    """
    if names_model(source) and "." in source and (weights := named_checkpoint(source)).task == "self-supervised":
        raise TranseptError(
            f"{source!r} are self-supervised weights, which have no classifier; 'transept models --weights "
            f"{weights.model}*' lists those that do, and --knn or --linear measures features"
        )
    return load(source).to(best_device())


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def add_options(parser: argparse.ArgumentParser, *, but: Collection[str] = ()) -> None:
    """Every option of inference that some task has, under the names of the tasks that have it."""
    groups: dict[str, Any] = {}
    for name in option_names(but):
        kinds = kinds_with(name)
        title = _named(kinds)
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        option = kinds[0].options[name]
        helps: dict[str, list[type[Task]]] = {}
        for kind in kinds:
            helps.setdefault(kind.options[name].help, []).append(kind)
        several = "; ".join(f"{_named(whose)}: {text}" for text, whose in helps.items())
        groups[title].add_argument(_flag(name), help=option.help if len(helps) == 1 else several, **_arguments(option))


def options_of(args: argparse.Namespace, task: Task, *, but: Collection[str] = ()) -> dict[str, Any]:
    """The options of inference that were given.

    Raises:
        UsageError: one is another task's.
    """
    values: dict[str, Any] = {}
    for name in option_names(but):
        if not was_given(args, name):
            continue
        if name not in task.options:
            refuse(name, kinds_with(name), f"{args.model!r} is a {task.kind}")
        values[name] = getattr(args, name)
    return values


def option_names(but: Collection[str] = ()) -> list[str]:
    """Every option of inference that some task has, once."""
    return list(dict.fromkeys(name for kind in TASKS for name in kind.options if name not in but))


def kinds_with(name: str) -> list[type[Task]]:
    """The tasks that have an option of inference."""
    return [kind for kind in TASKS if name in kind.options]


def was_given(args: argparse.Namespace, name: str) -> bool:
    """Whether the option is on the command line; 0 is a value."""
    value = getattr(args, name)
    return value is not None and value is not False


def refuse(name: str, kinds: Collection[type[Task]], instead: str) -> None:
    """Raises the `UsageError` of an option of other tasks."""
    raise UsageError(f"{_flag(name)} is for {_named(kinds)}, and {instead}")


def inference_of(task: Task, options: dict[str, Any]) -> Any:
    """The task's `...Inference`; what is wrong with an option is said of it as it is written on the command line."""
    try:
        # Python counts further than what it is given to.
        check_most(**{name: value for name, value in options.items() if type(value) is int})
        return task.inference(**options)
    except UsageError as error:
        name, _, rest = str(error).partition("=")
        raise UsageError(f"{_flag(name)}={rest}" if name in task.options else str(error)) from error


def named_data(args: argparse.Namespace, task: Task) -> DataOptions:
    """The data of --data, or of the task's run: read as the run reads its own, but for --split.

    Raises:
        TranseptError: no data is named.
    """
    if args.data is None and task.run is None:
        raise TranseptError(f"{args.model!r} names no data; give --data FOLDER")
    data = data_of(task, args.data)
    return data if args.split is None else replace(data, split=args.split)


def _arguments(option: Option) -> dict[str, Any]:
    if option.type is bool:
        return {"action": "store_true"}
    return {"type": option.type, "nargs": option.number, "metavar": option.metavar}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _named(kinds: Collection[type[Task]]) -> str:
    *others, last = [f"{kind.kind}s" for kind in kinds]
    return f"{', '.join(others)} and {last}" if others else last

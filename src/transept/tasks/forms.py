"""The form in which a task computes: as it is, fused, compiled, or from a package.

Forms cost time to make. "auto" therefore begins with the task as it is, and goes over to the next form once that would
have saved as much as it takes to make: few pictures are answered at once, and many take little longer than they would
have in the form that is best for them.
"""

import copy
import warnings
from collections.abc import Callable
from time import perf_counter
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from torch import Tensor

from transept.errors import TranseptError, TranseptWarning, unknown
from transept.inference.compile import Dtype, Precision, best_precision, checked_precision, compile, in_precision
from transept.inference.fuse import fuse
from transept.inference.package import ENDING, load_package, weights_digest
from transept.inference.processor import instructions
from transept.tasks.task import Task

FormName = Literal["auto", "eager", "fused", "compiled"]
T = TypeVar("T", bound=Task)

_FUSING, _COMPILING = 4.0, 75.0
"""Seconds that it takes, the first calls of what was made among them."""
_SAVED_BY_FUSING: dict[str, float] = {"bfloat16": 0.5, "float32": 0.1}
"""The share of the time in float32 and eager mode. This and the next by benchmarks/README.md."""
_SAVED_BY_COMPILING, _WITH_MATRIX_UNITS = 0.1, 0.3
"""The share of the fused form's time: it is what lies between products, which is more where these are quick (AMX)."""


def in_form(task: T, form: str, dtype: Precision = "auto", report: Callable[[str], None] = lambda sentence: None) -> T:
    """The task in a form: a second task on the same weights, which predicts and evaluates as the first does.

    Args:
        form: "eager", "fused", "compiled" (at the first call, for images of its size), "auto", or a package that was
            exported from the task.
        dtype: of the layers where they are fused or compiled.
        report: is told which form was taken, and why.

    Raises:
        UsageError: an unknown form.
        TranseptError: the package cannot be loaded here, or is not the task's.
    """
    changed = copy.copy(task)
    if form.endswith(ENDING):
        package = load_package(form)
        if package.about.get("weights") != weights_digest(task):
            raise TranseptError(f"{form!r} was not made of these weights; export it again with --format package")
        changed._compiled_call_impl = package
        report(f"package in {package.about['dtype']}")
        return changed
    if form not in get_args(FormName):
        raise unknown("form", form, get_args(FormName), f"known: {', '.join(get_args(FormName))}, or a file {ENDING}")
    if form == "fused":
        return _fused(task, dtype, report)
    steps = {"eager": [], "compiled": [_Step(0.0, _compiled)], "auto": _worthwhile(task, dtype)}[form]
    if steps:
        changed._compiled_call_impl = _Growing(changed, dtype, steps, report)
    return changed


class _Step(NamedTuple):
    after: float
    """Seconds of computing."""
    make: Callable[[Any, Precision, Callable[[str], None], Tensor], Any]


class _Growing:
    """Calls a task, and makes it into the next form when it has computed for long enough."""

    def __init__(self, task: Task, dtype: Precision, steps: list[_Step], report: Callable[[str], None]) -> None:
        self.task = task
        self.source = copy.copy(task)
        self.dtype: Precision = dtype
        self.steps = list(steps)
        self.report = report
        self.seconds = 0.0

    def __call__(self, images: Tensor, *options: Any) -> Any:
        if self.steps and self.seconds >= self.steps[0].after:
            made = self.steps.pop(0).make(self.source, self.dtype, self.report, images)
            vars(self.task).update(vars(made))
            return self.task(images, *options)
        started = perf_counter()
        outputs = self.task._call_impl(images, *options)
        self.seconds += perf_counter() - started
        return outputs


def _worthwhile(task: Task, dtype: Precision) -> list[_Step]:
    """The forms that "auto" goes through on this machine."""
    if next(task.parameters()).device.type != "cpu":
        return []
    precision, _ = best_precision(dtype, next(task.parameters()).device)
    fusing, compiling = seconds_before_forms(precision)
    return [_Step(fusing, _fused), _Step(compiling, _compiled)]


def seconds_before_forms(dtype: Dtype) -> tuple[float, float]:
    """How long "auto" computes on this processor before it fuses a model, and before it compiles it."""
    by_compiling = _WITH_MATRIX_UNITS if "amx_bf16" in instructions() else _SAVED_BY_COMPILING
    return _FUSING / _SAVED_BY_FUSING[dtype], _COMPILING / by_compiling


def _fused(task: T, dtype: Precision, report: Callable[[str], None], images: Tensor | None = None) -> T:
    precision, reason, made = checked_precision(task, dtype, images)
    report(f"fused in {precision}: {reason}")
    return in_precision(fuse(task), precision) if made is None else made


def _compiled(task: T, dtype: Precision, report: Callable[[str], None], images: Tensor) -> T:
    made = compile(task, dtype, img_size=images.shape[-2:])
    form: Any = made.form
    if form.name != "compiled":
        warnings.warn(f"the model runs {form}", TranseptWarning, stacklevel=2)
    report(str(form))
    return made

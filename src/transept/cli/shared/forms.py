"""`--form` and `--dtype` of the verbs that run a model."""

import argparse
import sys
from typing import TypeVar, get_args

from transept.errors import UsageError
from transept.inference.compile import Precision
from transept.tasks.forms import FormName, in_form
from transept.tasks.task import Task

T = TypeVar("T", bound=Task)


def check_form(args: argparse.Namespace) -> None:
    """Raises `UsageError` where `--dtype` is given and the form has its own."""
    if args.dtype is not None and args.form not in ("auto", "fused", "compiled"):
        raise UsageError(f"--dtype is for --form fused and compiled, and {args.form!r} has its own; leave it out")


def add_form(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--form",
        default="auto",
        metavar="FORM",
        help=f"how the model is run: {', '.join(get_args(FormName))}, or a package of 'transept export' (default auto: "
        "the quickest for as many pictures as come)",
    )
    parser.add_argument(
        "--dtype",
        choices=get_args(Precision),
        help="of a fused or compiled model (default auto: bfloat16 where it is faster and close enough; eval: float32)",
    )


def formed(args: argparse.Namespace, task: T, *, dtype: Precision = "auto") -> T:
    """The task in the form of `--form`, which is said on stderr when it is taken.

    Raises:
        UsageError: an unknown form, or `--dtype` where the form has its own.
        TranseptError: the package is not this task's, or not for this machine.
    """
    check_form(args)
    return in_form(task, args.form, args.dtype or dtype, lambda sentence: print(f"form: {sentence}", file=sys.stderr))

"""`transept VERB ...`: finds the verb, runs it, and turns errors into one sentence and an exit code."""

import argparse
import atexit
import gc
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from transept import __version__
from transept.allocator import keep_freed_memory
from transept.errors import TranseptError, UsageError, rank_of_environment, say, unknown, warnings_as_sentences
from transept.extras import EXTRA_OF, install, pip_install
from transept.words import fitted

CODES = "Exit codes: 0 it worked, 1 the work failed, 2 the call is wrong, 130 stopped by Ctrl-C."

# A verb is a module of this package with `add_arguments(parser)` and `run(args)`, imported when it is called:
# the help of one verb must not wait for the libraries of another.
VERBS = {
    "models": "list the models, with costs and published accuracy",
    "info": "show one model: costs, paper, published weights",
    "count": "count a model's parameters and multiply-accumulates, part by part",
    "bench": "time models, beside timm's in the same run",
    "train": "train a model by a recipe",
    "eval": "measure a trained model: accuracy, or mIoU",
    "predict": "label pictures and videos, or each of their pixels",
    "features": "write what a model sees in many pictures, a vector of each",
    "explain": "draw where a classifier looks in a picture",
    "convert": "convert a checkpoint, or say what it is",
    "export": "write a trained model as ONNX and for torch.export, and check both",
    "serve": "open a page on this machine to try a model in the browser",
    "doctor": "say what this installation has, and test it",
    "completion": "print the completion script of a shell",
}


class Parser(argparse.ArgumentParser):
    """Raises instead of exiting, so that every error takes the same way out."""

    rest: str | None = None
    """The attribute that takes words which argparse does not know, for the verb to read; None: they are errors."""

    def parse(self, words: list[str]) -> argparse.Namespace:
        """`parse_args`, but for the verb's `rest`."""
        if self.rest is None:
            return self.parse_args(words)
        own, rest = self._apart(words)
        args, more = self.parse_known_args(own)
        setattr(args, self.rest, more + rest)
        return args

    def _apart(self, words: list[str]) -> tuple[list[str], list[str]]:
        """This parser's own words, and options that it does not know, each with the word behind it.

        argparse would take the value of such an option for a positional argument.
        """
        own, rest = [], []
        remaining = iter(words)
        for word in remaining:
            name, equals, _ = word.partition("=")
            if name.startswith("--") and name not in self._option_string_actions:
                rest += [word] if equals else [word, *([value] if (value := next(remaining, None)) else [])]
            else:
                own.append(word)
        return own, rest

    def error(self, message: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise UsageError(f"{message}; see '{self.prog} --help'")


def command() -> int:
    """The console script: `main`, and Ctrl-C that is pressed again while the process ends changes nothing."""
    try:
        code = main()
    except KeyboardInterrupt:  # while the first one was answered
        code = 130
    if code == 130:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code


def main(argv: list[str] | None = None) -> int:
    """The entry point of the command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    try:
        return _run([word for word in argv if word != "--debug"])
    except TranseptError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except BrokenPipeError:  # `transept models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        if debug or (error.name or "").startswith("transept"):
            raise
        package, _, part = (error.name or "").partition(".")
        if part and find_spec(package):
            return _fail(f"{package!r} is installed, but lacks {error.name}: {pip_install('-U', package)}", 2)
        hint = install(EXTRA_OF[package]) if package in EXTRA_OF else pip_install(package)
        return _fail(f"this needs the package {package!r}: {hint}", 2)
    except OSError as error:
        if debug or error.filename is None or error.errno is None:
            return _unexpected(error, debug)
        return _fail(f"cannot use {str(error.filename)!r}: {error.strerror}", 1)
    except Exception as error:
        return _unexpected(error, debug)


def _unexpected(error: Exception, debug: bool) -> int:
    if debug:
        raise error
    text = " ".join(str(error).split()) or "no message"
    return _fail(f"unexpected {type(error).__name__}: {text}; run again with --debug for the traceback", 1)


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"transept {__version__}")
        return 0
    verb = argv[0]
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    keep_freed_memory()
    with warnings_as_sentences(quiet=rank_of_environment() > 0):
        with _kept_modules():
            module = import_module(f"transept.cli.{verb}")
        parser = Parser(prog=f"transept {verb}", description=module.__doc__, epilog=CODES, allow_abbrev=False)
        add_arguments(parser, module)
        return module.run(parser.parse(argv[1:])) or 0


@contextmanager
def _kept_modules() -> Iterator[None]:
    """Python looks for no garbage while the verb's libraries are imported, and never among what they made.

    A million objects that stay to the end: looking through them again and again took a quarter of a verb's start. A
    process that imported torch before, a notebook's, keeps its own ways.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
        atexit.register(gc.unfreeze)  # else extensions report at the end what nobody freed
    finally:
        gc.enable()


def add_arguments(parser: argparse.ArgumentParser, verb: ModuleType) -> None:
    """Those of a verb, and of all."""
    verb.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable output on stdout")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _overview() -> str:
    indent, wide = max(map(len, VERBS)) + 4, shutil.get_terminal_size().columns - 2  # as argparse takes it
    verbs = (
        textwrap.fill(what, wide, initial_indent=f"  {verb}".ljust(indent), subsequent_indent=" " * indent)
        for verb, what in VERBS.items()
    )
    return "\n".join(
        [
            textwrap.fill("transept: cross-attention vision transformers", wide),
            "\nusage: transept VERB ... (transept VERB --help)\n",
            *verbs,
            "",
            textwrap.fill(f"Every verb takes --json and --debug. {CODES}", wide),
        ]
    )


def _fail(message: str, code: int) -> int:
    # Processes that train together fail together; what is one's own begins with its number.
    if rank_of_environment() == 0 or message.startswith("process "):
        say(fitted(message))
    return code


if __name__ == "__main__":
    sys.exit(command())

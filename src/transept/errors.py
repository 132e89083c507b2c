"""Errors and warnings that are meant to be read: one sentence with what, where and how to mend it."""

import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, ClassVar

from transept.words import visible


class TranseptError(ValueError):
    """Something about the input is wrong. The command line prints it as it is and exits with `exit_code`."""

    exit_code: ClassVar[int] = 1


class TranseptWarning(UserWarning):
    """Something about the input deserves a look, but the work goes on. The command line prints it to stderr, once."""


class UsageError(TranseptError):
    """The call itself is wrong: an unknown name, a misspelt option."""

    exit_code = 2


class StoppedError(TranseptError):
    """Ctrl-C ended the work early; what was done is kept and was reported."""

    exit_code = 130


def say(sentence: object) -> None:
    """A sentence for the person at the terminal, on stderr."""
    print(f"transept: {visible(sentence)}", file=sys.stderr)


def is_live() -> bool:
    """Whether stderr is a terminal that can write a line anew: a log, and `TERM=dumb`, want whole lines instead.

    Colours that are forced (`FORCE_COLOR`) make no terminal of a file.
    """
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def warn(sentence: str) -> None:
    """A `TranseptWarning`, said to whoever called the library."""
    warnings.warn(sentence, TranseptWarning, stacklevel=3)


def unknown(kind: str, name: object, known: Iterable[str], hint: str = "") -> UsageError:
    """`no model is called 'xcit_nano'; did you mean 'xcit_nano_12_p16_224'?`, or the known names where none is near.

    A name may be what YAML makes of a key that is not text: a number, a date, nothing.
    """
    text = str(name)
    return UsageError(f"no {kind} is called {text!r}; {advice(text, known, hint)}")


_MOST_NAMED = 16


def advice(name: str, known: Iterable[str], hint: str = "") -> str:
    """The nearest of the known names; where none is near the hint, or all of them."""
    names = sorted(known)
    close = get_close_matches(name, names, n=3, cutoff=0.6) or [each for each in names if name and name in each]
    ends = [each for each in names if each.endswith(f".{name}")]  # of an option without its section
    near = list(dict.fromkeys([*ends, *close]))[:3]
    if near:
        return "did you mean " + " or ".join(map(repr, near)) + "?"
    return hint or (f"known: {', '.join(names)}" if len(names) <= _MOST_NAMED else f"one of {len(names)} names")


def rank_of_environment() -> int:
    """The number of this process among those that `torchrun`, `srun` or Ray started together: only 0 speaks."""
    return int(os.environ.get("RANK") or (os.environ.get("SLURM_PROCID") if "SLURM_STEP_ID" in os.environ else 0) or 0)


@contextmanager
def warnings_as_sentences(*, quiet: bool) -> Iterator[None]:
    """Ours as sentences on stderr, unless `quiet`; third parties' advice to programmers only where -W asks for it."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        warnings.simplefilter("ignore" if quiet else "always", TranseptWarning)
        show = warnings.showwarning

        def show_ours(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, TranseptWarning):
                say(message)
            else:
                show(message, category, *place, **more)

        # The library's own hook: "you may replace this function"; catch_warnings puts the former one back.
        warnings.showwarning = show_ours
        yield

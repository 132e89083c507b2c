"""Errors and warnings that are meant to be read: one sentence with what, where and how to mend it."""

import os
from collections.abc import Iterable
from difflib import get_close_matches


class TranseptError(ValueError):
    """Something about the input is wrong. The command line prints it as it is and exits with 1."""


class TranseptWarning(UserWarning):
    """Something about the input deserves a look, but the work goes on. The command line prints it to stderr, once."""


class UsageError(TranseptError):
    """The call itself is wrong: an unknown name, a misspelt option. The command line exits with 2."""


def unknown(kind: str, given: str, known: Iterable[str], hint: str = "") -> UsageError:
    """`no model is called 'xcit_nano'; did you mean 'xcit_nano_12_p16_224'?`, or the known names where none is near."""
    names = sorted(known)
    near = get_close_matches(given, names, n=3, cutoff=0.6) or [name for name in names if given and given in name][:3]
    if near:
        advice = "did you mean " + " or ".join(repr(name) for name in near) + "?"
    elif hint:
        advice = hint
    else:
        advice = "known: " + ", ".join(names)
    return UsageError(f"no {kind} is called {given!r}; {advice}")


def rank_of_environment() -> int:
    """Which of the processes that `torchrun`, `srun` or Ray started together this is: only number 0 speaks."""
    return int(os.environ.get("RANK") or (os.environ.get("SLURM_PROCID") if "SLURM_STEP_ID" in os.environ else 0) or 0)

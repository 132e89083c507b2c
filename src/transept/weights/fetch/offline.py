"""Whether the environment forbids the network: one rule for every way to a file."""

import os

from transept.errors import UsageError

VARIABLES = ("TRANSEPT_OFFLINE", "HF_HUB_OFFLINE")
_YES = ("1", "true", "yes", "on", "y", "t")
_NO = ("0", "false", "no", "off", "n", "f", "")


def offline_variable() -> str:
    """The variable that forbids the network; "" where none does.

    Raises:
        UsageError: a variable says neither yes nor no.
    """
    for variable in VARIABLES:
        value = os.environ.get(variable, "").strip().lower()
        if value in _YES:
            return variable
        if value not in _NO:
            raise UsageError(
                f"{variable}={value!r} is neither of {', '.join(_YES)} nor of {', '.join(filter(None, _NO))}; "
                "correct or unset it"
            )
    return ""

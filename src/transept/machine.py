"""What the machine has, as far as the system says it."""

import os
from contextlib import suppress
from pathlib import Path


def machine_memory() -> int | None:
    """Bytes that this machine, or the container, has; None where the system does not say."""
    limits = []
    with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(ValueError, OSError):  # "max" is no number
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits, default=None)

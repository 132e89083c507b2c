"""Ray: the cluster that processes are started on, or this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from transept.errors import TranseptError


@contextmanager
def connected() -> Iterator[bool]:
    """The cluster that RAY_ADDRESS names, or without it Ray on this machine for as long; whether it is the latter.

    By itself Ray might join what another program has started for its own use, and would end with it. A program that
    is connected stays so. Ray's statistics of use stay off unless the environment asks for them.

    Raises:
        ModuleNotFoundError: Ray, an extra, is not installed.
        TranseptError: Ray does not start, or there is no such cluster.
    """
    import ray  # an extra

    if ray.is_initialized():
        yield False
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS") or "local"
    try:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TranseptError(f"Ray does not start (RAY_ADDRESS={address}: {reason})") from error
    try:
        yield address == "local"
    finally:
        ray.shutdown()

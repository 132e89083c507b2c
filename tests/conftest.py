"""Fixtures of all tests."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.stand_in_hub import Hub, running_hub

pytest.register_assert_rewrite("tests.contract")

SHARED = Path(__file__).parents[2] / "shared"


gc.disable()  # until all tests are collected: what was imported by then stays


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where a shell has it ignored, as in the background
    # Small models gain nothing from a second thread, and threads that wait for each other's turn burn the whole core.
    torch.set_num_threads(1)
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start


def pytest_collection_finish() -> None:
    # Else every full collection would walk through a million objects again.
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture
def shared_data() -> Path:
    """The folder of small real data sets beside the repository."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data sets at {folder}")
    return folder


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub

"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest
import torch

pytest.register_assert_rewrite("tests.contract")

SHARED = Path(__file__).parents[2] / "shared"


def pytest_configure(config: pytest.Config) -> None:
    # Two workers share two cores: one thread each, or they wait for each other.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // workers))


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

"""Fixtures of the tests that train."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from transept.training.loop.run import train


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums in another order differ in the last bit; the runs compared must use as many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a module's `recipe()`, in one process and not interrupted, with which the others are compared."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(request.module.recipe(), folder, progress=False)
    return folder

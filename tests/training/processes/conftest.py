"""A run that the others are compared with."""

from pathlib import Path

import pytest
import torch

from tests.training.processes.runs import recipe
from transept.training.loop.run import train


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In one process, with the batch that two processes share in the other tests."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(recipe(), folder, progress=False)
    return folder

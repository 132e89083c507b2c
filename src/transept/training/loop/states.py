"""Saved states of a run: of the last two, one is always whole."""

import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from transept.errors import TranseptError, TranseptWarning
from transept.files import write_atomically
from transept.tasks.run_folder import PREVIOUS, STATE


class StateFiles(TorchCheckpointIO):
    """Writes a state beside the one before it.

    Lightning's own way goes through the temporary folder, which may lie on another disk.
    """

    def __init__(self, *, overwrite: bool = False) -> None:
        """With `overwrite`, the first state takes the place of one that is damaged."""
        super().__init__()
        self.overwrite = overwrite

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:  # given a path, torch reports a full disk as an internal error
                torch.save(checkpoint, file)
            if path.exists() and not self.overwrite:
                _also_called(path, path.with_name(PREVIOUS))

        write_atomically(path, write)
        self.overwrite = False


def _also_called(path: Path, other: Path) -> None:
    """Gives a file a second name, so that a kill at any moment leaves one under the first."""
    spare = other.with_suffix(".link")
    spare.unlink(missing_ok=True)
    try:
        os.link(path, spare)
    except OSError:  # not every file system has links
        path.replace(other)
        return
    spare.replace(other)
    spare.unlink(missing_ok=True)  # it stays where both were the same file already


def read_state(folder: Path) -> tuple[dict[str, Any], Path]:
    """The last state that is whole, and its file. Warns where that is the one before the last.

    Raises:
        TranseptError: there is none.
    """
    last, previous = folder / STATE, folder / PREVIOUS
    if not last.is_file() and not previous.is_file():
        raise TranseptError(f"{str(folder)!r} has no {STATE} to resume from; start it anew with 'transept train'")
    try:
        return _read(last), last
    except Exception as error:
        reason = _reason(error)
    try:
        state = _read(previous)
    except Exception as error:
        if not previous.is_file():
            raise TranseptError(
                f"{str(last)!r} is damaged ({reason}), and there is none before it; start the run anew"
            ) from error
        raise TranseptError(
            f"{str(last)!r} is damaged ({reason}), and so is {previous.name!r} ({_reason(error)}); start the run anew"
        ) from error
    warnings.warn(
        f"{str(last)!r} is damaged ({reason}); going on from {previous.name!r}, the state before it, "
        f"at step {state['global_step']}",
        TranseptWarning,
        stacklevel=2,
    )
    return state, previous


def position(state: dict[str, Any] | None) -> tuple[int, int]:
    """Epochs finished, and batches (or parts of them) finished in the next one."""
    if state is None:
        return 0, 0
    loop = state["loops"]["fit_loop"]
    epoch = loop["epoch_progress"]["current"]["processed"]
    inside = loop["epoch_progress"]["current"]["started"] > epoch
    return epoch, loop["epoch_loop.batch_progress"]["current"]["completed"] if inside else 0


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as file:
        if (member := file.testzip()) is not None:  # torch itself does not look at the checksums
            raise TranseptError(f"the checksum of {member!r} is wrong")
    state = torch.load(path, map_location="cpu", weights_only=True)
    position(state)  # raises where it is no state of a run
    return state


def _reason(error: Exception) -> str:
    return "it is missing" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())

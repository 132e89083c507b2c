"""Failures that libraries report in their own words, in ours."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from transept.errors import TranseptError, UsageError
from transept.training.loop.recorder import Recorder
from transept.training.options.recipe import Recipe
from transept.training.processes.world import LostProcessError, kept, lost_process


@contextmanager
def clear_errors(recorder: Recorder) -> Iterator[None]:
    """Lack of memory, and lost processes."""
    world = recorder.world
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if (sentence := _out_of_memory(error, recorder)) is not None:
            raise TranseptError(sentence if world.rank == 0 else f"process {world.rank}: {sentence}") from error
        if world.size > 1 and lost_process(error):
            raise LostProcessError(f"another process of the job ended; {kept(recorder.folder)}") from error
        raise


@contextmanager
def enough_to_normalise(recipe: Recipe) -> Iterator[None]:
    """Raises `UsageError` where a batch norm would learn of a single number in each channel."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            f"batch_size={recipe.batch_size} with accumulate={recipe.accumulate}: a batch norm sees one number of each "
            "channel in a part of so few such small pictures, and needs two; give more pictures, or larger ones"
        ) from error


def _out_of_memory(error: Exception, recorder: Recorder) -> str | None:
    """The sentence for lack of memory; None where the error is another."""
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
        return None
    recipe, images = recorder.recipe, recorder.images
    count = images[0] if images else recipe.part_size // recorder.world.size
    what = f"a batch of {count} images" + (f" of {images[-2]} x {images[-1]} pixels" if images else "")
    remedies = [f"--accumulate {2 * recipe.accumulate} (the same batch in more parts)"]
    if not recipe.hardware.grad_checkpointing:
        remedies.append("--hardware.grad_checkpointing true")
    if recipe.precision == "32-true":
        remedies.append("--precision bf16-mixed")
    remedies.append(f"a batch_size below {recipe.batch_size}")
    remedies.append("smaller images")
    return f"out of memory with {what}; try {', '.join(remedies[:2])} or {remedies[2]}"

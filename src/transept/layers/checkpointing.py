"""Gradient checkpointing that changes nothing but memory."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorms inside work as before, but on copies of their running statistics, so that those stay as they are.

    Switching the tracking off instead would save fewer tensors for the backward pass, which `checkpoint` refuses.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    statistics = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, statistics, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, statistics, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


def run_block(block: nn.Module, *args: object, checkpointing: bool) -> Any:
    """`block(*args)`; with `checkpointing`, its activations are recomputed in the backward pass.

    The recomputation must not update BatchNorm statistics a second time, which the plain
    `torch.utils.checkpoint` does.
    """
    if not checkpointing or not torch.is_grad_enabled():
        return block(*args)
    if torch.compiler.is_compiling():  # Dynamo traces checkpoint itself but takes no Python context managers
        return checkpoint(block, *args, use_reentrant=False)
    return checkpoint(
        block,
        *args,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _frozen_statistics(block)),
    )

"""What this processor computes fast, and what a form compiled for it needs."""

import os
import platform
from collections.abc import Iterable
from functools import cache

import torch

_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")
"""Of x86's matrix units, its vector units, and Arm's."""
_INSTRUCTIONS = ("avx2", "fma3", "avx512_f", "avx512_vnni", *_BFLOAT16[:2], "amx_int8", "sve", "bf16", "i8mm")
"""Those that Inductor and oneDNN choose their kernels by: what a compiled form may contain."""


@cache
def instructions() -> frozenset[str]:
    """The names of the instruction sets that this processor has, of those that kernels are chosen by."""
    found = torch.cpu.get_capabilities()
    return frozenset(name for name in _INSTRUCTIONS if found.get(name))


def fast_bfloat16() -> str | None:
    """The instruction set with which this processor multiplies bfloat16 faster than float32; None: it does not."""
    return next((name for name in _BFLOAT16 if name in instructions()), None)


def missing(needed: Iterable[str]) -> list[str]:
    """The instruction sets that this processor lacks."""
    return sorted(set(needed) - instructions())


def available_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def architecture() -> str:
    """`x86_64`, `aarch64`: what machine code is for."""
    return platform.machine()

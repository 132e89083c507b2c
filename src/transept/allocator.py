"""Memory that was freed stays with the process, for the next image or step."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""`mallopt`'s names, of glibc's malloc.h."""
_KEPT_BLOCK = 128 << 20
"""Activations of some dozens of images. Larger ones, of a picture of many megapixels, go back when they are freed."""
_KEPT_FREE = (1 << 31) - 1
"""The most that an int can say: all that a training step frees."""
_SET_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed; gives whether it does.

    By itself it returns each block of 32 MiB or more to the system, and what is free at the end of its memory, and the
    next forward pass waits for the same pages to be mapped and zeroed again: at batch 32 or 64 that is a third of the
    time of a model on the CPU, and a tenth of a training step. The most memory that the process holds may grow by a
    tenth, because a freed block is not always of the size that is asked for next, and it is held between batches, too.

    Threads that are started later take their memory from where the first one does. By themselves they have pools of
    their own, of pieces of 64 MiB, which go back when they are free whatever is set here: labelling, with a batch in
    each thread, spent a tenth of its processor time on that. `MALLOC_ARENA_MAX` in the environment decides instead.

    Nothing is changed on other systems, or where the environment sets this allocator up (`GLIBC_TUNABLES`,
    `MALLOC_TRIM_THRESHOLD_`, ...). With another allocator in its place (jemalloc, tcmalloc) it has no effect.
    """
    chosen = any(name in os.environ for name in _SET_BY_USER) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or not _has_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_M_MMAP_THRESHOLD: _KEPT_BLOCK, _M_TRIM_THRESHOLD: _KEPT_FREE}
    if "MALLOC_ARENA_MAX" not in os.environ:
        settings[_M_ARENA_MAX] = 1
    return all(bool(mallopt(name, value)) for name, value in settings.items())


def _has_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError):  # Windows, macOS
        return False

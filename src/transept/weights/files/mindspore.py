"""Checkpoints of MindSpore: protocol buffers, read as they lie, without MindSpore.

A file is a row of values `1: {1: name, 2: {1: size of an axis, ..., 2: type, 3: bytes}}`.
"""

from collections.abc import Iterator
from mmap import mmap
from pickle import UnpicklingError

import torch
from torch import Tensor

_DTYPES = {
    "Float16": torch.float16,
    "BFloat16": torch.bfloat16,
    "Float32": torch.float32,
    "Float64": torch.float64,
    "Int8": torch.int8,
    "Int16": torch.int16,
    "Int32": torch.int32,
    "Int64": torch.int64,
    "UInt8": torch.uint8,
    "Bool": torch.bool,
}
_Part = tuple[int, int]
"""Where bytes begin and end."""


def is_mindspore(source: mmap) -> bool:
    """Whether it begins as a value with a name, whose tensor has a type of MindSpore's."""
    try:
        start, end = next(_values(source))
        name, tensor = _named(source, start, end)
        return bool(name) and _described(source, *tensor)[0] in _DTYPES
    except (UnpicklingError, StopIteration):
        return False


def read_mindspore(source: mmap) -> dict[str, Tensor]:
    """The tensors by name, copied out of the file.

    Raises:
        UnpicklingError: it is damaged.
    """
    tensors: dict[str, Tensor] = {}
    for start, end in _values(source):
        name, place = _named(source, start, end)
        if name in tensors:  # MindSpore cuts tensors of more than 512 MB
            raise UnpicklingError(f"{name} comes in several parts, which is not read here")
        kind, shape, (first, last) = _described(source, *place)
        dtype = _DTYPES.get(kind)
        if dtype is None:
            raise UnpicklingError(f"{name} is of the unknown type {kind!r}")
        count = torch.Size(shape).numel() if min(shape, default=0) >= 0 else -1
        if count * dtype.itemsize != last - first:
            raise UnpicklingError(f"{name} claims the shape {tuple(shape)}, but has {last - first} bytes of {kind}")
        data = torch.frombuffer(bytearray(source[first:last]), dtype=dtype) if count else torch.empty(0, dtype=dtype)
        tensors[name] = data.reshape(shape)
    return tensors


def _values(source: mmap) -> Iterator[_Part]:
    for _, part in _fields(source, 0, len(source)):
        if isinstance(part, int):
            raise UnpicklingError("it holds a number where a tensor should be")
        yield part


def _named(source: mmap, start: int, end: int) -> tuple[str, _Part]:
    parts = {field: part for field, part in _fields(source, start, end) if not isinstance(part, int)}
    if 1 not in parts or 2 not in parts:
        raise UnpicklingError(f"what lies at byte {start} is no tensor with a name")
    first, last = parts[1]
    return source[first:last].decode("utf-8", "replace"), parts[2]


def _described(source: mmap, start: int, end: int) -> tuple[str, list[int], _Part]:
    """Type, shape, and where the numbers lie."""
    kind, shape, place = "", [], (end, end)
    for field, part in _fields(source, start, end):
        if isinstance(part, int):
            shape += [part] if field == 1 else []
        elif field == 2:
            kind = source[part[0] : part[1]].decode("utf-8", "replace")
        elif field == 3:
            place = part
    return kind, shape, place


def _fields(source: mmap, at: int, end: int) -> Iterator[tuple[int, int | _Part]]:
    """Number and value of each field: a whole number, or where its bytes lie."""
    while at < end:
        key, at = _number(source, at, end)
        value, at = _number(source, at, end)
        match key & 7:
            case 0:
                yield key >> 3, value
            case 2 if at + value <= end:
                yield key >> 3, (at, at + value)
                at += value
            case _:
                raise UnpicklingError(f"it breaks off, or is something else, at byte {at}")


def _number(source: mmap, at: int, end: int) -> tuple[int, int]:
    """Seven bits a byte, the lowest first; and where it ends."""
    value = 0
    for place in range(10):
        if at + place >= end:
            break
        byte = source[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise UnpicklingError(f"it breaks off, or is something else, at byte {at}")

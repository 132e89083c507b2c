"""Tensors of PyTorch and PaddlePaddle files, made from what the pickle says of them.

The file is mapped into memory, and a tensor is a view of the map (copy on write), so that nothing is read before it is
used and the optimiser's state never is. Only tensors that lie askew in the file are read at once.
"""

import codecs
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from mmap import mmap
from pickle import UnpicklingError
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, UntypedStorage

from transept.weights.files.unpickling import Call, Global, Persistent, Span, Unpickler, plain

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first object of a file of torch.save before 1.6."""

_STORAGES = {  # torch.FloatStorage, torch.cuda.FloatStorage, torch.storage.UntypedStorage: by the last word
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
    "_UntypedStorage": torch.uint8,
}
_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_ARRAYS = {  # numpy's codes; Paddle writes bfloat16 as u2
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "u2": torch.uint16,
    "u4": torch.uint32,
    "u8": torch.uint64,
    "b1": torch.bool,
    "c8": torch.complex64,
    "c16": torch.complex128,
}
_REBUILT = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
_WRAPPED = (  # calls whose first argument is the tensor
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
)
# Protocols 0 to 2 know no bytes: they write _codecs.encode(text, "latin1").
_BYTES = ("_codecs.encode", "builtins.bytes", "builtins.bytearray")
_PIECE = 2**22
_NUMPY = ("numpy.core.", "numpy._core.")


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the file, in bytes."""

    offset: int
    length: int


@dataclass(slots=True)
class StoredTensors:
    """The bytes behind the tensors of one file."""

    source: mmap
    file: BufferedReader
    """The same file: what must be copied is read, since the pages of a map would count as memory too."""
    regions: Mapping[str, Region] = field(default_factory=dict)
    """Where PyTorch's storages lie, by key."""
    _storages: dict[Region, UntypedStorage] = field(default_factory=dict)

    def build(self, value: Any) -> Tensor:
        """The tensor that `value`, of which `is_tensor` holds, describes; tied tensors share their storage.

        Raises:
            UnpicklingError: what it says of its size contradicts the file.
        """
        call = _unwrap(value)
        try:
            tensor = self._rebuilt(call) if str(call.function) in _REBUILT else self._array(call)
        except UnpicklingError:
            raise
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, RuntimeError, OverflowError) as error:
            raise UnpicklingError("its description is damaged") from error
        return tensor

    def _rebuilt(self, call: Call) -> Tensor:
        storage, offset, size, stride, *rest = call.args
        of_type, key, count, view = storage_of(storage)
        dtype = _DTYPES[str(rest[2])] if str(call.function).endswith("v3") else of_type
        if view is not None:  # before 1.6, of a storage that is part of another
            offset += view[1]
        region = self.regions.get(key)
        if region is None or region.length < count * of_type.itemsize:
            raise UnpicklingError(f"its storage {plain(key)!r} is {'absent' if region is None else 'cut short'}")
        (offset,) = _integers((offset,))
        return self._view(region, dtype, offset, _integers(size), _integers(stride))

    def _array(self, call: Call) -> Tensor:
        shape, kind, by_columns, data = _array_parts(call)
        dtype, swapped = _array_dtype(kind)
        shape = _integers(shape)
        if isinstance(data, Span) and not data.is_text and not swapped:
            stride = _strides(shape, by_columns)
            self._check_length(shape, dtype, data.length)
            return self._view(Region(data.offset, data.length), dtype, 0, shape, stride)
        data = self._bytes(data)
        self._check_length(shape, dtype, len(data))
        array = np.frombuffer(data, f"{'>' if swapped else '<'}{_code(kind)}") if data else np.empty(0, _code(kind))
        array = array.reshape(shape, order="F" if by_columns else "C")
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="K", copy=False))

    @staticmethod
    def _check_length(shape: tuple[int, ...], dtype: torch.dtype, length: int) -> None:
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != length:
            raise UnpicklingError(f"it claims the shape {shape}, but has {length} bytes of {dtype}")

    def _bytes(self, data: Any) -> bytearray:
        if isinstance(data, Call) and str(data.function) in _BYTES:
            data = data.args[0] if data.args else b""
        if isinstance(data, str | bytes | bytearray):
            return bytearray(data.encode("latin-1") if isinstance(data, str) else data)
        if not isinstance(data, Span):
            raise UnpicklingError("it has no bytes")
        if not data.is_text:
            return bytearray(_buffer(self._read(data.offset, data.length)))
        decoder, plain_bytes = codecs.getincrementaldecoder("utf-8")(), bytearray()
        for start in range(data.offset, data.offset + data.length, _PIECE):  # all at once would take thrice the room
            piece = self._read(start, min(_PIECE, data.offset + data.length - start))
            plain_bytes += decoder.decode(_buffer(piece)).encode("latin-1")
        return plain_bytes

    def _read(self, offset: int, length: int) -> Tensor:
        data = torch.empty(length, dtype=torch.uint8)
        self.file.seek(offset)
        if self.file.readinto(_buffer(data)) < length:
            raise UnpicklingError("the file was cut short while it was read")
        return data

    def _view(
        self, region: Region, dtype: torch.dtype, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
    ) -> Tensor:
        if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
            raise UnpicklingError(f"it claims the impossible shape {size} with strides {stride}")
        last = offset + sum((steps - 1) * step for steps, step in zip(size, stride, strict=True))
        if math.prod(size) and (last + 1) * dtype.itemsize > region.length:
            raise UnpicklingError(f"it claims the shape {size}, which is more than its {region.length} bytes hold")
        if math.prod(size) * dtype.itemsize > len(self.source):
            raise UnpicklingError(f"it claims the shape {size}, which repeats {region.length} bytes without need")
        return torch.empty(0, dtype=dtype).set_(self._storage(region, dtype.itemsize), offset, size, stride)  # pyright: ignore

    def _storage(self, region: Region, itemsize: int) -> UntypedStorage:
        storage = self._storages.get(region)
        if storage is None:
            if region.offset % itemsize:
                storage = self._read(region.offset, region.length).untyped_storage()
            elif region.length:
                storage = cast(UntypedStorage, self._whole()[region.offset : region.offset + region.length])
            else:
                storage = UntypedStorage(0)
            self._storages[region] = storage
        return storage

    def _whole(self) -> UntypedStorage:
        whole = Region(0, len(self.source))
        if whole not in self._storages:
            self._storages[whole] = torch.frombuffer(self.source, dtype=torch.uint8).untyped_storage()
        return self._storages[whole]


def _buffer(data: Tensor) -> memoryview:
    return memoryview(cast(Any, data.numpy()))


def _strides(shape: tuple[int, ...], by_columns: bool) -> tuple[int, ...]:
    steps, step = [], 1
    for size in shape if by_columns else reversed(shape):
        steps.append(step)
        step *= max(size, 1)
    return tuple(steps if by_columns else reversed(steps))


def is_tensor(value: Any) -> bool:
    """Whether the pickle describes a dense tensor of PyTorch, or an array of numbers."""
    call = _unwrap(value)
    if not isinstance(call, Call):
        return False
    if str(call.function) in _REBUILT:
        return isinstance(call.args, tuple) and len(call.args) >= 4
    if not is_array(call):
        return False
    try:
        return _array_dtype(_array_parts(call)[1]) is not None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return False


def is_array(value: Any) -> bool:
    """Whether the pickle describes an array of numpy, of whatever is in it."""
    name = str(value.function) if isinstance(value, Call) else ""
    return name.startswith(_NUMPY) and name.endswith((".multiarray._reconstruct", ".numeric._frombuffer"))


def _unwrap(value: Any) -> Any:
    """Without what surrounds a tensor: Parameter, a subclass, and Paddle's pair of a name and an array."""
    for _ in range(4):  # a file can wrap without end
        if not isinstance(value, Call) or not isinstance(value.args, tuple) or not value.args:
            break
        name = str(value.function)
        if name in _WRAPPED:
            value = value.args[0]
        elif name == "torch._tensor._rebuild_from_type_v2" and len(value.args) == 4:
            value = Call(value.args[0], value.args[2])
        elif name == "builtins.tuple" and isinstance(value.args[0], tuple | list) and len(value.args[0]) == 2:
            value = value.args[0][1]
        else:
            break
    return value


def _array_parts(call: Call) -> tuple[Any, Any, bool, Any]:
    """Shape, dtype, whether the first index runs fastest, and bytes."""
    if str(call.function).endswith("_frombuffer"):
        data, kind, shape, order = call.args
        return shape, kind, order == "F", data
    _, shape, kind, by_columns, data = call.state
    return shape, kind, bool(by_columns), data


def _code(kind: Call) -> str:
    return str(kind.args[0]).lstrip("<>=|")


def _array_dtype(kind: Call) -> tuple[torch.dtype, bool]:
    """The type, and whether its bytes are in the other order."""
    if str(kind.function) != "numpy.dtype":
        raise ValueError("no dtype")
    return _ARRAYS[_code(kind)], kind.state is not None and kind.state[1] == ">"


def storage_of(value: Any) -> tuple[torch.dtype, Any, int, Any]:
    """The parts of a persistent id: type, key, number of elements, and the view of files before 1.6."""
    if isinstance(value, Call) and str(value.function) == "torch.storage._load_from_bytes":
        raise UnpicklingError("it was written by pickle.dump, where torch.save was needed")
    if not isinstance(value, Persistent):
        raise UnpicklingError("it has no storage")
    kind, of_type, key, _, count, *view = value.id
    dtype = _STORAGES.get(of_type.name) if isinstance(of_type, Global) else None
    if kind != "storage" or dtype is None or not isinstance(count, int) or not 0 <= count < 2**60:
        raise UnpicklingError("its storage is of a kind that PyTorch does not have")
    return dtype, str(key), count, view[0] if view else None


def _integers(values: Any) -> tuple[int, ...]:
    if isinstance(values, Call) and str(values.function) == "torch.Size":
        (values,) = values.args
    if (
        not isinstance(values, tuple | list)
        or len(values) > 64
        or not all(type(value) is int and abs(value) < 2**60 for value in values)
    ):
        raise UnpicklingError("its shape is no row of numbers")
    return tuple(values)


def open_zip(source: mmap, file: BufferedReader, archive: zipfile.ZipFile) -> tuple[Any, StoredTensors]:
    """The content of a file of `torch.save` since 1.6; `source`, `file` and `archive` are the same file.

    Raises:
        UnpicklingError: it is damaged, or its entries are compressed.
    """
    regions = {info.filename: _entry(source, info) for info in archive.infolist()}
    pickles = [name for name in regions if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UnpicklingError("it has no single data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    order = regions.get(f"{folder}byteorder")
    if order and source[order.offset : order.offset + order.length] != b"little":
        raise UnpicklingError("it was written on a big-endian machine")
    source.seek(regions[pickles[0]].offset)
    content = Unpickler(source, source.tell() + regions[pickles[0]].length).load()
    prefix = f"{folder}data/"
    data = {name.removeprefix(prefix): region for name, region in regions.items() if name.startswith(prefix)}
    return content, StoredTensors(source, file, data)


def _entry(source: mmap, info: zipfile.ZipInfo) -> Region:
    """Where an entry's bytes lie. PyTorch stores them as they are; anything else could grow without bounds."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise UnpicklingError(f"its entry {plain(info.filename)!r} is compressed, which PyTorch never does")
    header = source[info.header_offset : info.header_offset + 30]
    offset = info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if header[:4] != b"PK\3\4" or info.file_size != info.compress_size or offset + info.file_size > len(source):
        raise UnpicklingError(f"its entry {plain(info.filename)!r} reaches beyond the file")
    return Region(offset, info.file_size)


def open_pickle(source: mmap, file: BufferedReader) -> tuple[Any, StoredTensors, bool]:
    """The content of a file of `torch.save` before 1.6, or of a plain pickle of arrays; whether it is the former.

    Raises:
        UnpicklingError: it is damaged.
    """
    end = len(source)
    source.seek(0)
    unpickler = Unpickler(source, end)
    content = unpickler.load()
    if content != LEGACY_MAGIC:
        return content, StoredTensors(source, file), False
    unpickler.load()  # the protocol
    unpickler.load()  # the machine's sizes of numbers
    content, keys = unpickler.load(), unpickler.load()
    sizes = {}
    for reference in unpickler.persistent:
        if isinstance(reference.id, tuple) and reference.id[:1] != ("module",):
            dtype, key, *_ = _described(reference)
            sizes[key] = dtype.itemsize
    regions = {}
    for key in keys if isinstance(keys, list) else ():
        count = source.read(8)
        length = int.from_bytes(count, "little", signed=True) * sizes.get(key, 0) if isinstance(key, str) else -1
        if len(count) < 8 or length < 0 or source.tell() + length > end:
            raise UnpicklingError(f"it breaks off at byte {end}")
        regions[key] = Region(source.tell(), length)
        source.seek(length, 1)
    return content, StoredTensors(source, file, regions), True


def _described(reference: Persistent) -> tuple[torch.dtype, Any, int, Any]:
    try:
        return storage_of(reference)
    except (ValueError, TypeError) as error:
        raise UnpicklingError("a storage's description is damaged") from error

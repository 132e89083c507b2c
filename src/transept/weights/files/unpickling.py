"""A pickle read as data: its instructions are followed, the calls among them written down and never made.

A pickle is a small program for a stack machine. Here lists, tuples and dicts become what they are; a class or function
becomes a `Global`, which is two words; calling one becomes a `Call`, which is the function and its arguments. Nothing
is imported, looked up or run, so an unknown class is no obstacle and a hostile file has nothing to act with. Long
strings stay where they are in the file, as a `Span`.
"""

import pickletools
import warnings
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # what Python 2 called things; the table of pickle itself
from dataclasses import dataclass, field
from mmap import mmap
from pickle import UnpicklingError
from typing import IO, Any, cast

from transept.words import visible

MAX_INSTRUCTIONS = 2_000_000
"""A checkpoint with 1000 tensors and its optimiser's state has about 10^5. An instruction of one byte can take a
hundred bytes of memory, so without an end to them a file could fill the machine."""

LONG_STRING = 1024


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function, as `module` and `name`."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Call:
    """Stands for the result of calling `function` on `args`, the state it was then given, and its `[key] = value`."""

    function: Any
    args: Any = ()
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Persistent:
    """A reference to something outside the pickle; in PyTorch's files, to a storage."""

    id: Any


@dataclass(frozen=True, slots=True)
class Span:
    """A string that was left in the file: where it begins and its length in bytes; `is_text` where it is UTF-8."""

    offset: int
    length: int
    is_text: bool


@dataclass(frozen=True, slots=True)
class OddKey:
    """A key of a dict that is neither text nor number. Hashing it could take for ever: tuples of tuples of tuples."""

    key: int


class ActingGlobalError(Exception):
    """The pickle names a function that can act on the machine; its text is that name."""


class Unpickler:
    """Reads the pickles that lie one after another in `source` from its present position, none beyond `end`."""

    def __init__(self, source: mmap, end: int) -> None:
        self.source, self.end = source, end
        self.persistent: list[Persistent] = []
        self._left = MAX_INSTRUCTIONS

    def load(self) -> Any:
        """The next object.

        Raises:
            UnpicklingError: it is damaged, or ends too early, or is endless.
            ActingGlobalError: it names a function that can act.
        """
        try:
            return self._load()
        except UnpicklingError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise UnpicklingError(f"not a pickle at byte {self.source.tell()}") from error

    def _load(self) -> Any:
        stack: list[Any] = []
        outer: list[list[Any]] = []  # the stacks below the marks
        memo: dict[int, Any] = {}
        while True:
            code, value = self._next()
            match code:
                case "BINPUT" | "LONG_BINPUT" | "PUT":
                    memo[value] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET" | "GET":
                    stack.append(memo[value])
                case _ if code in _VALUES:
                    stack.append(_CONSTANTS.get(code, value))
                case "MARK":
                    outer.append(stack)
                    stack = []
                case "TUPLE" | "LIST" | "DICT" | "FROZENSET" | "POP_MARK":
                    items, stack = stack, outer.pop()
                    if code == "DICT":
                        stack.append({})
                        _set_items(stack[-1], items)
                    elif code != "POP_MARK":
                        stack.append(tuple(items) if code == "TUPLE" else items)
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(code[-1])
                    items = [stack.pop() for _ in range(count)]
                    stack.append(tuple(reversed(items)))
                case "EMPTY_TUPLE":
                    stack.append(())
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST" | "EMPTY_SET":  # a set is kept as a list: its members need not be hashable here
                    stack.append([])
                case "SETITEMS":
                    items, stack = stack, outer.pop()
                    _set_items(stack[-1], items)
                case "SETITEM":
                    item, key = stack.pop(), stack.pop()
                    _set_items(stack[-1], [key, item])
                case "APPENDS" | "ADDITEMS":
                    items, stack = stack, outer.pop()
                    _extend(stack[-1], items)
                case "APPEND":
                    item = stack.pop()
                    _extend(stack[-1], [item])
                case "GLOBAL":
                    stack.append(_global(*value.split(" ", 1)))
                case "STACK_GLOBAL":
                    name, module = stack.pop(), stack.pop()
                    stack.append(_global(module, name))
                case "REDUCE" | "NEWOBJ":
                    args, function = stack.pop(), stack.pop()
                    stack.append(Call(function, args))
                case "NEWOBJ_EX":
                    _, args, function = stack.pop(), stack.pop(), stack.pop()
                    stack.append(Call(function, args))
                case "OBJ":
                    items, stack = stack, outer.pop()
                    stack.append(Call(items[0], tuple(items[1:])))
                case "INST":
                    items, stack = stack, outer.pop()
                    stack.append(Call(_global(*value.split(" ", 1)), tuple(items)))
                case "BUILD":
                    state = stack.pop()
                    if isinstance(stack[-1], Call):
                        stack[-1].state = state
                case "BINPERSID" | "PERSID":
                    self.persistent.append(Persistent(stack.pop() if code == "BINPERSID" else value))
                    stack.append(self.persistent[-1])
                case "EXT1" | "EXT2" | "EXT4":  # a number that stands for a class, in a table nobody fills
                    stack.append(Global("copyreg", f"extension_{value}"))
                case "POP":
                    if stack:
                        stack.pop()
                    else:
                        stack = outer.pop()
                case "DUP":
                    stack.append(stack[-1])
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop()
                case _:
                    raise UnpicklingError(f"the instruction {code} is for data outside the file")

    def _next(self) -> tuple[str, Any]:
        """The next instruction's name and argument."""
        self._left -= 1
        if self._left < 0:
            raise UnpicklingError(f"it has more than {MAX_INSTRUCTIONS} instructions, far beyond any checkpoint")
        start = self.source.tell()
        opcode = _OPCODES.get(self.source.read(1)) if start < self.end else None
        if opcode is None:
            raise UnpicklingError(f"it breaks off at byte {start}" if start >= self.end else f"not a pickle at {start}")
        value = None
        if opcode.arg is not None:
            prefix = _LENGTH_BYTES.get(opcode.arg.n, 0)
            length = int.from_bytes(self.source.read(prefix), "little")
            offset = start + 1 + prefix
            if offset + length > self.end:
                raise UnpicklingError(f"it breaks off at byte {self.end}")
            if length >= LONG_STRING:
                value = Span(offset, length, is_text="UNICODE" in opcode.name)
                self.source.seek(offset + length)
            else:
                self.source.seek(start + 1)
                value = _read_argument(opcode.arg, cast(IO[bytes], self.source))
        if self.source.tell() > self.end:
            raise UnpicklingError(f"it breaks off at byte {self.end}")
        return opcode.name, value


_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = frozenset(
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 UNICODE BININT1 BININT BININT2 INT LONG LONG1 LONG4 FLOAT BINFLOAT STRING "
    "BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 NONE NEWTRUE NEWFALSE".split()
)


def _read_argument(argument: pickletools.ArgumentDescriptor, source: IO[bytes]) -> Any:
    if argument.n != pickletools.UP_TO_NEWLINE:
        return argument.reader(source)
    with warnings.catch_warnings(action="ignore"):  # an unknown escape in such text is a warning, or an error
        return argument.reader(source)


def _set_items(target: Any, items: list[Any]) -> None:
    if len(items) % 2:
        raise ValueError("a key without a value")
    entries = target.entries if isinstance(target, Call) else target
    if isinstance(entries, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            entries[key if isinstance(key, str | int | float | bytes | None) else OddKey(id(key))] = value


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):  # what is appended to an unknown object is not kept
        target.extend(items)


def _global(module: Any, name: Any) -> Global:
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a class whose name is no text")
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    global_name = Global(module, name)
    words = f"{module}.{name}".split(".")
    paths = {".".join(words[:count]) for count in range(1, len(words) + 1)}
    if str(global_name) not in _INERT and not paths.isdisjoint(_ACTING):
        raise ActingGlobalError(plain(global_name))
    return global_name


def plain(text: object) -> str:
    """Text from a file, fit for a message: short, and without characters that a terminal obeys."""
    shown = visible(str(text)[:81])
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


# Naming one of these makes a file hostile, for no checkpoint needs them. This list is for the reader's sake, who should
# hear of it: an unlisted function is not run either.
_ACTING = frozenset(
    """
    builtins os posix nt posixpath ntpath sys subprocess _posixsubprocess shutil socket _socket ssl pty tty fcntl mmap
    importlib _frozen_importlib _frozen_importlib_external imp zipimport pkgutil runpy site ctypes _ctypes cffi pickle
    _pickle marshal shelve dill cloudpickle joblib code codeop codecs _codecs ast dis inspect webbrowser antigravity
    multiprocessing _multiprocessing concurrent asyncio threading _thread sched signal atexit gc faulthandler resource
    tempfile fileinput io _io _pyio pathlib glob linecache urllib http ftplib smtplib poplib imaplib nntplib telnetlib
    xmlrpc socketserver requests httpx platform timeit cProfile profile pdb bdb trace doctest unittest pytest pydoc cmd
    pip setuptools distutils ensurepip venv idlelib lib2to3 operator _operator functools.reduce types.FunctionType
    types.LambdaType types.CodeType types.MethodType types.ModuleType types.BuiltinFunctionType logging.config sqlite3
    winreg _winapi msvcrt IPython zipfile tarfile copyreg.add_extension uuid._get_command_stdout
    torch.load torch.save torch.hub torch.jit torch.package torch.compile torch.ops torch.classes torch.library
    torch.serialization.load torch.serialization.save torch.utils.cpp_extension torch.utils.model_zoo
    torch.utils.collect_env torch.utils.bottleneck torch.multiprocessing torch.distributed.rpc torch.from_file
    torch._dynamo torch._inductor numpy.load numpy.save numpy.savez numpy.fromfile numpy.memmap numpy.loadtxt
    numpy.genfromtxt numpy.testing numpy.f2py numpy.distutils numpy.ctypeslib numpy.lib.npyio
    """.split()
)
_INERT = frozenset(
    [f"builtins.{name}" for name in "bool bytearray bytes complex dict float frozenset int list object".split()]
    + [f"builtins.{name}" for name in "range set slice str tuple type Ellipsis NotImplemented NoneType".split()]
    + [f"pathlib.{pure}{kind}Path" for pure in ("", "Pure") for kind in ("", "Posix", "Windows")]
    + ["_codecs.encode", "io.BytesIO", "_io.BytesIO", "io.StringIO", "_io.StringIO"]
)

"""Linear layers whose weights lie in memory as the CPU's matrix product wants them.

oneDNN reads a weight in blocks of its own. `torch.nn.functional.linear` hands it, or another library, the plain matrix
at every call. Packed once, products take 0.5 to 1.2 of their time, by processor, precision and shape, and GELU is done
while the outputs are still in the cache. So both are tried on the first input of a shape, and the quicker one stays.
Inductor's frozen graphs contain the same operator.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from transept.inference.processor import fast_bfloat16
from transept.layers.linear import linear, mkl_is_narrow

_WORTH_PACKING = 20_000_000
"""Multiply-accumulates, about half a millisecond: in less, the choice costs as much as it can save."""
_TRIES = 3
_CLEARLY = 0.95
"""Measured alone, with everything in the cache, what is only as quick loses in a whole model."""
_ROWS, _IMAGES = 1024, 4
"""What is tried is this much of a larger batch: some milliseconds, not half of the first batch's time."""
_measured: dict[tuple, bool] = {}
"""Kinds of work, and whether the second way of doing it was quicker when both were tried in this process."""
_trial = RLock()
"""Held by the thread that tries, for which those that want to know the same wait."""
_tries = ContextVar("_tries", default=True)


@contextmanager
def no_trials() -> Iterator[None]:
    """What runs within takes the first way of any work that was not tried before."""
    token = _tries.set(False)
    try:
        yield
    finally:
        _tries.reset(token)


def quicker(kind: tuple, first: Callable[[], object], second: Callable[[], object]) -> bool:
    """Whether the second way takes clearly less time than the first; each kind of work is measured once, in turns."""
    kind = (torch.get_num_threads(), kind)
    if kind not in _measured:
        if not _tries.get():
            return False
        with _trial:
            if kind not in _measured:
                _measured[kind] = _try(first, second)
    return _measured[kind]


def _try(first: Callable[[], object], second: Callable[[], object]) -> bool:
    seconds: list[list[float]] = [[], []]
    for way in (0, 1) * _TRIES:
        started = perf_counter()
        (first, second)[way]()
        seconds[way].append(perf_counter() - started)
    return min(seconds[1]) < _CLEARLY * min(seconds[0])


def runs_on_cpu(x: Tensor) -> bool:
    """Whether what is done to `x` is done now (not captured in a graph), on the CPU, without gradients, in float32 or
    the bfloat16 that this processor multiplies."""
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and type(x) is Tensor  # not a stand-in
        and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and fast_bfloat16() is not None))
        and x.device.type == "cpu"
        and not x.requires_grad
        and not torch.is_autocast_enabled("cpu")
    )


class _Capture:
    sizes_are_fixed = False


@contextmanager
def fixed_sizes(fixed: bool) -> Iterator[None]:
    """What is compiled within is for the CPU and, where this is `fixed`, for one size of all inputs.

    In graphs of a fixed size Inductor gives float32 products to MKL (torch 2.15), also where oneDNN is quicker; in
    others to oneDNN, with packed weights.
    """
    _Capture.sizes_are_fixed = fixed and mkl_is_narrow()
    try:
        yield
    finally:
        _Capture.sizes_are_fixed = False


@torch.compiler.assume_constant_result  # of the time of compiling: later calls do not ask again
def _sizes_are_fixed() -> bool:
    return _Capture.sizes_are_fixed


class PackedLinear(nn.Linear):
    """`linear`, or GELU of it.

    The plain weight stays: it is saved, moved and cast, and is what runs on other devices, in other dtypes, under
    autograd, in captured graphs, and where it is quicker. On the CPU the packed one is made at the first call.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, activate: bool = False) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
        self.activate = activate
        self._packed: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:  # ... c -> ... d
        if torch.compiler.is_compiling() and _sizes_are_fixed() and input.dtype == torch.float32:
            # As rows: of more dimensions, with a reshape on either side, Inductor fails at this operation (torch 2.15).
            rows = input.reshape(-1, self.in_features)
            return self._by_onednn(rows, self.weight).reshape(*input.shape[:-1], self.out_features)
        return self.multiply(input, packed=self._packs(input) and self._is_quicker_packed(input))

    def multiply(self, input: Tensor, *, packed: bool) -> Tensor:
        """The one way or the other."""
        if not packed:
            out = linear(input, self.weight, self.bias)
            return gelu(out) if self.activate else out
        return self._by_onednn(input, self.packed())

    def _by_onednn(self, input: Tensor, weight: Tensor) -> Tensor:
        activation = "gelu" if self.activate else "none"
        return torch.ops.mkldnn._linear_pointwise(input, weight, self.bias, activation, [], "none")

    @property
    def is_packed(self) -> bool:
        return self._packed is not None

    def packed(self) -> Tensor:
        """The weight in oneDNN's layout, made anew when it was replaced, moved or written to."""
        state = self.weight.data_ptr(), self.weight._version
        kept = self._packed  # which another thread may put away meanwhile
        if kept is None or kept[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                kept = self._packed = state, torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
        return kept[1]

    def _packs(self, input: Tensor) -> bool:
        weight = self.weight
        return (
            type(input) is Tensor
            and not torch.compiler.is_compiling()
            and input.numel() * self.out_features >= _WORTH_PACKING
            and runs_on_cpu(input)
            and type(weight) is nn.Parameter
            and weight.dtype == input.dtype
            and weight.device.type == "cpu"
            and not (weight.requires_grad or weight.is_inference())
            and torch.backends.mkldnn.is_available()
        )

    def _is_quicker_packed(self, input: Tensor) -> bool:
        rows = input.reshape(-1, self.in_features)[:_ROWS]
        kind = "linear", len(rows).bit_length(), self.in_features, self.out_features, self.activate, input.dtype
        packed = quicker(kind, lambda: self.multiply(rows, packed=False), lambda: self.multiply(rows, packed=True))
        if not packed:
            self._packed = None
        return packed

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files leave out what is packed: oneDNN's layouts can be neither copied nor written."""
        return {**self.__dict__, "_packed": None}


class GeluConv2d(nn.Conv2d):
    """GELU of a convolution, with the weights and under the name of that."""

    def __init__(self, conv: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(conv.__dict__)

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        plain = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        if not (plain and runs_on_cpu(input) and torch.backends.mkldnn.is_available() and not weight.requires_grad):
            return gelu(super().forward(input))
        shape = self.padding, self.stride, self.dilation, self.groups

        def apart(input: Tensor) -> Tensor:
            return gelu(super(GeluConv2d, self).forward(input))

        def joint(input: Tensor) -> Tensor:
            return torch.ops.mkldnn._convolution_pointwise(input, weight, bias, *shape, "gelu", [], "none")

        some = input[:_IMAGES]
        layout = input.is_contiguous(memory_format=torch.channels_last)
        kind = "conv", some.numel().bit_length(), *weight.shape, *self.stride, self.groups, layout, input.dtype
        return joint(input) if quicker(kind, lambda: apart(some), lambda: joint(some)) else apart(input)


def pack(layer: nn.Linear, *, activate: bool = False) -> PackedLinear:
    return PackedLinear(layer.weight, layer.bias, activate=activate)

"""Linear layers whose weights lie in memory as the CPU's matrix product wants them.

oneDNN reads a weight in blocks of its own. `torch.nn.functional.linear` hands it, or another library, the plain matrix
at every call. Packed once, products take 0.75 to 0.95 of their time, and GELU is done while the outputs are still in
the cache. Inductor's frozen graphs contain the same operator.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

_WORTH_PACKING = 5_000_000
"""Multiply-accumulates, a tenth of a millisecond: each call of oneDNN costs 15 microseconds more than a plain one."""


def runs_on_cpu(x: Tensor) -> bool:
    """Whether what is done to `x` is done now (not captured in a graph), on the CPU, in float32, without gradients."""
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and type(x) is Tensor  # not a stand-in
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and not x.requires_grad
        and not torch.is_autocast_enabled("cpu")
    )


class PackedLinear(nn.Linear):
    """`linear`, or GELU of it.

    The plain weight stays: it is saved, moved and cast, and is what runs on other devices, in other dtypes than
    float32, under autograd, and in captured graphs. On the CPU the packed one is made at the first call.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, activate: bool = False) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
        self.activate = activate
        self._packed: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:  # ... c -> ... d
        if not self._packs(input):
            out = linear(input, self.weight, self.bias)
            return gelu(out) if self.activate else out
        activation = "gelu" if self.activate else "none"
        return torch.ops.mkldnn._linear_pointwise(input, self.packed(), self.bias, activation, [], "none")

    @property
    def is_packed(self) -> bool:
        return self._packed is not None

    def packed(self) -> Tensor:
        """The weight in oneDNN's layout, made anew when it was replaced, moved or written to."""
        state = self.weight.data_ptr(), self.weight._version
        if self._packed is None or self._packed[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._packed = state, torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
        return self._packed[1]

    def _packs(self, input: Tensor) -> bool:
        weight = self.weight
        return (
            runs_on_cpu(input)
            and input.numel() * self.out_features >= _WORTH_PACKING
            and type(weight) is nn.Parameter
            and weight.dtype == torch.float32
            and weight.device.type == "cpu"
            and not (weight.requires_grad or weight.is_inference())
            and torch.backends.mkldnn.is_available()
        )

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
        return torch.ops.mkldnn._convolution_pointwise(input, weight, bias, *shape, "gelu", [], "none")


def pack(layer: nn.Linear, *, activate: bool = False) -> PackedLinear:
    return PackedLinear(layer.weight, layer.bias, activate=activate)

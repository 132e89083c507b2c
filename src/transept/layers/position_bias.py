"""Biases that attention adds to its logits for the distance of query and key."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transept.ops.interpolation import same_size
from transept.ops.windows import relative_offsets, relative_position_index


class KeepsBias(nn.Module):
    """A module whose bias depends on its parameters and a size, and is kept from one evaluation to the next.

    In evaluation without gradients the last size's result is returned as long as no parameter changes. What autograd
    cannot see, it cannot see either: after writing to a parameter through `.data`, call `eval()`.
    """

    fixed: Tensor | None
    """The bias of `fixed_size`, kept for good: parameters of a fused model do not change."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: _Kept | None = None
        self.fixed_size: tuple | None = None
        self.register_buffer("fixed", None, persistent=False)

    def fix(self) -> None:
        """Hold what is kept now as a buffer: it moves with the module, and graphs have it as a constant."""
        if self._kept is not None:
            self.fixed_size, self.fixed = self._kept.state[0], self._kept.bias

    def keep(self, size: tuple, parameters: Sequence[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """`compute()`, or what it gave before for this size (a flat tuple) and these parameters."""
        if self.fixed is not None and self.fixed_size is not None and same_size(size, self.fixed_size):
            return self.fixed
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return compute()
        # Inference tensors have no version; functional calls and transforms bring tensors that are no parameters.
        if not all(type(p) is nn.Parameter and not p.is_inference() and not p.is_meta for p in parameters):
            return compute()
        device = parameters[0].device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        state = (size, autocast, *map(_identity, parameters))
        kept = self._kept
        if kept is not None and kept.state == state:
            return kept.bias
        with torch.inference_mode(False), torch.no_grad():
            bias = compute()
        if type(bias) is Tensor:  # not a stand-in, as of a fake-tensor mode
            self._kept = _Kept(state, parameters, bias)
        return bias

    def train(self, mode: bool = True) -> "KeepsBias":
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files leave out what is kept: its state names the tensors of this very module."""
        return {**self.__dict__, "_kept": None}


class DynamicPositionBias(KeepsBias):
    """DPB: a small network from the offset of query and key to one bias per head (CrossFormer, Section 3.2.2).

    No parameter depends on the size of a group, so any group can be used. The offsets are whole numbers of tokens
    of the group, not normalised. Calling it with the sides `(g, k)` gives `m (g k) (g k)`.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        width = dim // 16
        self.pos_proj = nn.Linear(2, width)
        self.pos1 = self._layer(width, width)
        self.pos2 = self._layer(width, width)
        self.pos3 = self._layer(width, num_heads)

    @staticmethod
    def _layer(width_in: int, width_out: int) -> nn.Sequential:
        return nn.Sequential(nn.LayerNorm(width_in), nn.ReLU(), nn.Linear(width_in, width_out))

    def forward(self, sides: tuple[int, int]) -> Float[Tensor, "m n n"]:
        return self.keep(sides, list(self.parameters()), lambda: self.compute(sides))

    def compute(self, sides: tuple[int, int]) -> Float[Tensor, "m n n"]:
        weight = self.pos_proj.weight
        table = self.pos_proj(relative_offsets(sides, device=weight.device, dtype=weight.dtype))
        table = self.pos3(self.pos2(self.pos1(table)))
        index = relative_position_index(sides, device=weight.device)
        return table.t().index_select(1, index.flatten()).unflatten(1, index.shape)


class _Kept(NamedTuple):
    state: tuple
    parameters: Sequence[Tensor]
    """Held so that the identities in `state` are not used again."""
    bias: Tensor


def _identity(parameter: Tensor) -> tuple:
    """Changes when the parameter is replaced, moved, cast or written to."""
    return id(parameter), parameter.data_ptr(), parameter.dtype, parameter.device, parameter._version

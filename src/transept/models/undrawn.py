"""Models whose weights are about to be read from a file: none are drawn at random before."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWS = {nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_, Tensor.uniform_, Tensor.normal_}
"""The others of `nn.init` call one of the last two, which is what is seen here of them."""
_SCALES = {Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_}
"""What makes of numbers that were drawn a distribution."""


class UndrawnWeights(TorchFunctionMode):
    """A model that is built within has zeros where its weights would be random.

    Drawing them is most of the time that building takes. Constants, buffers among them, are as ever. All parameters
    must be overwritten, as a strict `load_state_dict` does.
    """

    def __init__(self) -> None:
        super().__init__()
        self._undrawn: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        # Zeros, and draws where it is no parameter: for a truncated distribution torch (2.15) draws aside what is out
        # of bounds until nothing is, which of memory as it was found might be never.
        if func in _DRAWS and isinstance(target, nn.Parameter):
            self._undrawn = target
            if not target.is_meta:
                with torch.no_grad():
                    target.zero_()
            return target
        if func in _SCALES and args[0] is self._undrawn:  # right after its draw
            return self._undrawn
        self._undrawn = None
        return func(*args, **kwargs)

"""Models whose weights are about to be read from a file: none are drawn at random before."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWS = {
    nn.init.uniform_,
    nn.init.normal_,
    nn.init.trunc_normal_,
    nn.init.xavier_uniform_,
    nn.init.xavier_normal_,
    nn.init.kaiming_uniform_,
    nn.init.kaiming_normal_,
    Tensor.uniform_,
    Tensor.normal_,
}
_SCALES = {Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_}
"""What makes of numbers that were drawn a distribution."""


class UndrawnWeights(TorchFunctionMode):
    """A model that is built within has memory of any content where its weights would be random.

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
        if func in _DRAWS:
            self._undrawn = args[0] if args else kwargs["tensor"]
            return self._undrawn
        if func in _SCALES and args[0] is self._undrawn:  # right after its draw: it would be arithmetic on anything
            return self._undrawn
        self._undrawn = None
        return func(*args, **kwargs)

"""Encodings of positions that are computed, for any grid."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from transept.layers.position_bias import KeepsBias


class FourierPositionEncoding(KeepsBias):
    """Sines and cosines of row and column, projected to the embedding (XCiT, Appendix A; BiXT): any grid."""

    temperature = 10_000.0
    num_frequencies = 32

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * self.num_frequencies, dim, kernel_size=1)

    def forward(self, grid: tuple[int, int]) -> Float[Tensor, "1 _n _c"]:
        """The encoding `1 (h w) c` of a grid `h w`.

        The 1x1 convolution is linear in its two halves, so rows and columns are projected apart and then added.
        """
        return self.keep(grid, list(self.parameters()), lambda: self.compute(grid))

    def compute(self, grid: tuple[int, int]) -> Tensor:
        vertical, horizontal = self.token_projection.weight.flatten(1).chunk(2, dim=1)  # c 32 each
        rows = linear(self._features(grid[0]), vertical)
        columns = linear(self._features(grid[1]), horizontal, self.token_projection.bias)
        return (rows[:, None] + columns).flatten(0, 1).unsqueeze(0)

    def _features(self, side: int) -> Tensor:
        """`side 32`: sin and cos in turn, a pair sharing its frequency; positions run over (0, 2 pi]."""
        weight = self.token_projection.weight
        position = torch.arange(1, side + 1, dtype=torch.float32, device=weight.device)
        position = position * (2 * math.pi) / (side + 1e-6)
        exponent = torch.arange(0, self.num_frequencies, 2, dtype=torch.float32, device=weight.device)
        angle = position[:, None] / self.temperature ** (exponent / self.num_frequencies)
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(weight.dtype)

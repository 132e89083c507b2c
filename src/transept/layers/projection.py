"""The joint projection of queries, keys and values, where not all tokens ask."""

from jaxtyping import Float
from torch import Tensor

from transept.layers.linear import Linear, linear


class QueryKeyValue(Linear):
    """One weight `3c c`, as in the released files, whose rows for queries and those for keys and values serve apart."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3 * dim)

    def query(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        dim = self.in_features
        return linear(x, self.weight[:dim], self.bias[:dim])

    def key_value(self, x: Float[Tensor, "*n c"]) -> tuple[Float[Tensor, "*n c"], Float[Tensor, "*n c"]]:
        dim = self.in_features
        k, v = linear(x, self.weight[dim:], self.bias[dim:]).chunk(2, dim=-1)
        return k, v

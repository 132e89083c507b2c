"""Softmax attention: both ways compute the same, and which one is taken."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from transept.ops.attention import softmax_attention, spelt_out

FUSED = "_scaled_dot_product_flash_attention_for_cpu"


class Operators(TorchDispatchMode):
    """The names of those that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.add(operator._schema.name.removeprefix("aten::"))
        return operator(*args, **(kwargs or {}))


def query_key_value(batch: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(batch, 3, n, 32, dtype=dtype) for n in (49, 60, 60)]


@pytest.mark.parametrize("biased", [False, True])
def test_spelt_out_it_is_the_same(biased: bool):
    q, k, v = query_key_value(2)
    bias = torch.randn(1, 3, 49, 60) if biased else None
    assert torch.allclose(spelt_out(q, k, v, bias), softmax_attention(q, k, v, bias), atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "batch", "gradients"),
    [
        (torch.float32, 64, False),
        (torch.bfloat16, 1, False),  # too little work to gain
        (torch.bfloat16, 64, True),
    ],
)
def test_where_the_fused_kernel_stays(dtype: torch.dtype, batch: int, gradients: bool):
    with torch.set_grad_enabled(gradients), Operators() as called:
        softmax_attention(*query_key_value(batch, dtype))
    assert FUSED in called.names


def test_where_it_is_spelt_out():
    found = torch.cpu.get_capabilities()
    if not found.get("avx512_bf16") or found.get("amx_bf16"):
        pytest.skip("needs a processor that multiplies bfloat16 by its vector units alone")
    q, k, v = query_key_value(64, torch.bfloat16)
    with torch.no_grad(), Operators() as called:
        out = softmax_attention(q, k, v)
    assert FUSED not in called.names
    exact = softmax_attention(q.float(), k.float(), v.float())
    assert (out.float() - exact).square().mean().sqrt() < 0.01 * exact.std()


@pytest.mark.slow  # compiles
def test_a_compiler_does_not_put_the_fused_kernel_back():
    from torch._inductor.utils import run_and_get_code  # a second, which the other tests would wait for

    inputs = query_key_value(4, torch.bfloat16)
    with torch.no_grad():
        _, (code,) = run_and_get_code(torch.compile(spelt_out, dynamic=False), *inputs)
    assert "bmm" in code
    assert FUSED not in code

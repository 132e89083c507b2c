"""What every registered variant promises (tests/contract.py)."""

import dataclasses
import re

import pytest

import transept
from tests import contract
from tests.helpers import FAMILIES, slim, tiny
from transept.models import registry

NAMES = transept.list_models()
# 224 and 384 are the same modules, as the first test says: the others run once for each shape.
SHAPES = sorted({re.sub(r"_(ft)?\d+$", "", name): name for name in NAMES}.values())
# One of each kind of network; the others differ in widths alone, which graphs and checkpointing do not see.
KINDS = ("bixt_ti_cnv_l64_d13_p8", "bixt_ti_l64_p16", "cabvit_h_l1", "cabvit_p_l0_cross", "cait_xxs24_384", "cat_tiny",
         "crossformer_pp_small", "crossformer_tiny", "crossvit_9_dagger_240", "xcit_nano_12_p8_384")  # fmt: skip


# The quick suite looks at the smallest variant of every kind and patch size, with few channels; names and shapes of
# all: test_golden.py.
SMALLEST = (*KINDS, "cabvit_p_l0", "xcit_nano_12_p16_384", "xcit_tiny_12_p8_384")
QUICK = [pytest.param(n, slim, id=n) for n in SMALLEST]
QUICK += [pytest.param(n, tiny, id=f"{n}-own widths", marks=pytest.mark.slow) for n in SHAPES]


LIKE_OTHERS = ("crossformer_tiny", "cabvit_p_l0_cross", "bixt_ti_cnv_l64_d13_p8", "crossvit_9_dagger_240")
"""CrossFormer++ has all layers of CrossFormer, and more, as CabViT of CabViT-P; BiXT's stem is XCiT's; the graph of
CrossViT, three times both branches, takes long, and tests/export makes one."""


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(SHAPES)))
def test_another_size_is_the_same_network(name: str):
    (same,) = (shape for shape in SHAPES if re.sub(r"_(ft)?\d+$", "", shape) == re.sub(r"_(ft)?\d+$", "", name))
    configs = [dataclasses.asdict(registry.find_model(n)[1].variants[n]) for n in (name, same)]
    assert {key for key in configs[0] if configs[0][key] != configs[1][key]} == {"img_size"}


@pytest.mark.parametrize(("name", "make"), QUICK)
def test_forward_of_any_size_and_batch(name: str, make: contract.Make):
    contract.check_forward_of_any_size_and_batch(name, make)


# In a narrow CrossFormer some units of the bias networks are dead from the start.
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in SMALLEST else [pytest.mark.slow]) for n in SHAPES])
def test_gradients_reach_every_parameter(name: str):
    contract.check_gradients_reach_every_parameter(name)


@pytest.mark.parametrize(("name", "make"), QUICK)
def test_head(name: str, make: contract.Make):
    contract.check_head(name, make)


@pytest.mark.parametrize(("name", "make"), QUICK)
def test_pyramid(name: str, make: contract.Make):
    contract.check_pyramid(name, make)


@pytest.mark.parametrize(("name", "make"), QUICK)
def test_intermediates(name: str, make: contract.Make):
    contract.check_intermediates(name, make)


@pytest.mark.parametrize("name", KINDS)
def test_gradient_checkpointing_changes_nothing(name: str):
    contract.check_gradient_checkpointing_changes_nothing(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_evaluation_keeps_follows_the_parameters(name: str):
    contract.check_what_evaluation_keeps_follows_the_parameters(name)


@pytest.mark.parametrize("name", KINDS)
def test_other_channels_and_precision(name: str):
    contract.check_other_channels_and_precision(name)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in KINDS and n not in LIKE_OTHERS else [pytest.mark.slow]) for n in SHAPES],
)
def test_captured_whole_and_exported(name: str):
    contract.check_captured_whole_and_exported(name)


@pytest.mark.slow  # a C++ compiler at work for half a minute; what is captured, the test above says of every family
@pytest.mark.parametrize("name", FAMILIES)
def test_compiled(name: str):
    contract.check_compiled(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_learns(name: str):
    contract.check_learns(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_full_size(name: str):
    contract.check_full_size(name)

"""What every registered variant promises (tests/contract.py)."""

import re

import pytest

import transept
from tests import contract

NAMES = transept.list_models()
# 224 and 384 are the same modules; what is slow runs once for each shape.
SHAPES = sorted({re.sub(r"_\d+$", "", name): name for name in NAMES}.values())
# The small variants of each kind of network; the others differ in widths alone, which the graph does not see.
EXPORTED = re.compile(r"cat_tiny$|cabvit_h_l1|cabvit_p|crossformer_pp_small|crossformer_tiny|xcit_nano|cait_xxs24")


@pytest.mark.parametrize("name", NAMES)
def test_forward_of_any_size_and_batch(name: str):
    contract.check_forward_of_any_size_and_batch(name)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name: str):
    contract.check_gradients_reach_every_parameter(name)


@pytest.mark.parametrize("name", NAMES)
def test_head(name: str):
    contract.check_head(name)


@pytest.mark.parametrize("name", NAMES)
def test_pyramid(name: str):
    contract.check_pyramid(name)


@pytest.mark.parametrize("name", SHAPES)
def test_intermediates(name: str):
    contract.check_intermediates(name)


@pytest.mark.parametrize("name", SHAPES)
def test_gradient_checkpointing_changes_nothing(name: str):
    contract.check_gradient_checkpointing_changes_nothing(name)


@pytest.mark.parametrize("name", contract.EXAMPLES)
def test_what_evaluation_keeps_follows_the_parameters(name: str):
    contract.check_what_evaluation_keeps_follows_the_parameters(name)


@pytest.mark.parametrize("name", SHAPES)
def test_other_channels_and_precision(name: str):
    contract.check_other_channels_and_precision(name)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if EXPORTED.match(n) else [pytest.mark.slow]) for n in SHAPES]
)
def test_captured_whole_and_exported(name: str):
    contract.check_captured_whole_and_exported(name)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n[:3] in ("cab", "cat", "cro") else []) for n in contract.EXAMPLES],
)
def test_compiled(name: str):
    contract.check_compiled(name)


@pytest.mark.parametrize("name", contract.EXAMPLES)
def test_learns(name: str):
    contract.check_learns(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_full_size(name: str):
    contract.check_full_size(name)

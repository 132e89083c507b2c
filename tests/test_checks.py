"""The ranges that options are held to, and the sentences about those outside."""

import pytest

from transept.checks import (
    check_known,
    check_not_negative,
    check_positive,
    check_range,
    check_share,
    check_within,
    shown,
)
from transept.errors import UsageError, advice


def test_the_ends_of_an_interval():
    for interval, inside, outside in (
        ("[0, 1]", (0, 0.5, 1), (-0.1, 1.1)),
        ("[0, 1)", (0, 0.5), (-0.1, 1)),
        ("(0, 1]", (0.5, 1), (0, 1.1)),
        ("(0, 1)", (0.5,), (0, 1)),
        ("[1, inf)", (1, 10**9), (0, float("inf"))),
    ):
        for value in inside:
            check_within(interval, flip=value)
        for value in (*outside, float("nan")):
            with pytest.raises(UsageError) as error:
                check_within(interval, flip=value)
            assert str(error.value) == f"flip={value:g} is not in {interval}"


def test_every_number_of_a_sequence_is_checked():
    check_share(std=(0, 0.5, 1), mean=[])
    with pytest.raises(UsageError, match=r"^std=\[0\.5, 2\] is not in \[0, 1\]$"):
        check_share(mean=(0.1, 0.2), std=[0.5, 2.0])
    with pytest.raises(UsageError, match=r"^sides=\[3, 0\] must be greater than 0$"):
        check_positive(sides=(3, 0))
    with pytest.raises(UsageError, match=r"^sides=\[3, -1\] must not be negative$"):
        check_not_negative(sides=(3, -1))


@pytest.mark.parametrize("check", [check_share, check_positive, check_not_negative])
def test_none_is_no_number(check):
    check(crop_pct=None)
    with pytest.raises(UsageError, match="^lr=-1 "):
        check(crop_pct=None, lr=-1)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("check", [check_share, check_positive, check_not_negative])
def test_numbers_are_finite(check, value: float):
    with pytest.raises(UsageError, match=f"^lr={value:g} "):
        check(lr=value)


def test_zero():
    check_not_negative(weight_decay=0.0)
    with pytest.raises(UsageError, match="^lr=0 must be greater than 0$"):
        check_positive(lr=0.0)


def test_a_range_rises():
    check_range("[0, 1]", scale=(0.25, 1), ratio=(0.5, 0.5))
    with pytest.raises(UsageError, match=r"^scale=\[1, 0\.25\] falls; give \[low, high\] with low <= high$"):
        check_range("[0, 1]", scale=(1, 0.25))
    with pytest.raises(UsageError, match=r"^scale=\[0\.25, 2\] is not in \[0, 1\]$"):
        check_range("[0, 1]", scale=(0.25, 2))


def test_names():
    names = ("bilinear", "bicubic")
    check_known(names, interpolation="bicubic")
    with pytest.raises(UsageError, match=r"^interpolation='bicubik' is not known; did you mean 'bicubic'"):
        check_known(names, interpolation="bicubik")
    with pytest.raises(UsageError, match=r"^interpolation='x' is not known; known: bicubic, bilinear$"):
        check_known(iter(names), interpolation="x")
    with pytest.raises(UsageError, match=r"^model='x' is not known; see transept models$"):
        check_known(names, "see transept models", model="x")


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.0, "2"), (2, "2"), (1e-5, "1e-05"), ("a", "'a'"), (None, "None"), ((1.0, [0.5, "b"]), "[1, [0.5, 'b']]")],
)
def test_values_as_in_a_page(value: object, text: str):
    assert shown(value) == text


def test_an_option_without_its_section_is_the_first_that_is_named():
    names = ["ema.epoch", "pretrain.epochs_frozen", "schedule.epochs", "schedule.warmup_epochs"]
    assert advice("epochs", names).startswith("did you mean 'schedule.epochs' or ")

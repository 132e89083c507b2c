"""Imports of version 0.1 that users may have."""

import sys
from importlib import import_module

import pytest

import transept
from transept.moved import MOVED


@pytest.mark.parametrize("old", [old for old, new in MOVED.items() if new])
def test_old_modules_are_the_new_ones(old: str):
    new = import_module(f"transept.{MOVED[old]}")
    sys.modules.pop(f"transept.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"transept\.{old} is now transept\.{MOVED[old]}; the old name goes"):
        assert import_module(f"transept.{old}") is new
    assert new.__spec__ is not None
    assert new.__spec__.name == f"transept.{MOVED[old]}"


def test_other_names_are_as_unknown_as_ever():
    with pytest.raises(ModuleNotFoundError, match="transept.analysis.nothing"):
        import_module("transept.analysis.nothing")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        transept.nothing  # noqa: B018

"""`transept doctor`: what it finds, and what it says of an installation that is not as it should be."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from tests.golden.make import HERE
from transept.cli.main import main
from transept.doctor import findings
from transept.extras import install


def test_what_it_finds(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"name": "torch", "wanted": ">=2.11", "found": version("torch"), "fits": True} in found["packages"]
    assert {each["name"] for each in found["extras"]["openvino"]} >= {"openvino", "nncf", "onnxruntime"}
    assert found["form"]["dtype"] in ("float32", "bfloat16")
    assert all(free > 0 for free in found["disk"].values())
    assert set(found["self_test"]["differences"]) == set(findings.LIMITS)
    assert found["self_test"]["passed"]


def test_a_narrow_terminal_loses_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["doctor", "--no-test"]) == 0
    text = capsys.readouterr().out
    assert "self-test" not in text
    assert f"torch {version('torch')}" in " ".join(text.split())


def test_the_recorded_logits_are_the_official_ones():
    ours = json.loads(Path(findings.__file__).with_name("recorded.json").read_text())
    golden = json.loads((HERE / "xcit" / f"{ours['model']}.json").read_text())
    assert ours["logits"] == golden["outputs"]["logits"]
    assert ours["input"] == golden["input"]


def test_a_model_that_computes_something_else(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """As a broken build of torch would: here its GELU is another one."""
    monkeypatch.setattr(
        torch.nn.GELU, "forward", lambda self, x: torch.nn.functional.gelu(x, approximate="tanh") * 1.01
    )
    assert main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert "FAILED" in out
    assert "the self-test failed: " in err


def test_a_package_that_is_too_old(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    known = {"timm": "0.4.12", "gradio": None}
    real = findings.version

    def installed(name: str) -> str:
        if known.get(name, "") is None:
            raise findings.PackageNotFoundError(name)
        return known.get(name) or real(name)

    monkeypatch.setattr(findings, "version", installed)
    assert main(["doctor", "--no-test"]) == 1
    out, err = capsys.readouterr()
    assert f"transept: timm 0.4.12: {install(upgrade=True)}" in err
    assert f"no (gradio): {install('serve', upgrade=True)}" in out

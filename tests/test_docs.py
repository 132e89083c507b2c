"""The documentation site. That its Python blocks run is tested by `pytest README.md docs`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import transept
from transept.models.backbone import Family
from transept.models.registry import FAMILIES

DOCS = Path(__file__).parents[1] / "docs"


def test_every_public_name_is_documented():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\.\. \w+:: transept\.(\w+)$", page, flags=re.MULTILINE)
    assert sorted(documented) == sorted(transept.__all__)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_has_a_page(family: Family):
    page = DOCS / "families" / f"{family.name.lower()}.md"
    assert f"```{{costs}} {family.name}" in page.read_text(encoding="utf-8")
    assert f"families/{page.stem}\n" in (DOCS / "index.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_builds_without_a_warning(tmp_path: Path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "families" / "cat.html").read_text(encoding="utf-8")
    assert "16.871" in page  # parameters of cat_tiny, from the package
    assert "InnerPatchSelfAttention" in page

"""What is freed is used again, and not mapped and zeroed anew."""

import json
import subprocess
import sys

import pytest

from transept.allocator import _has_glibc, keep_freed_memory

pytestmark = pytest.mark.skipif(not _has_glibc(), reason="another C library, whose allocator is left as it is")

_COUNT_FAULTS = """
import json, resource, torch
from transept.allocator import keep_freed_memory
kept = {kept}
def step():
    activations = [torch.ones(12 << 20) for _ in range(5)]  # 48 MiB each, more than glibc keeps by itself
for _ in range(2):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(json.dumps([kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""


def faults(kept: str) -> tuple[bool, int]:
    run = subprocess.run(
        [sys.executable, "-c", _COUNT_FAULTS.format(kept=kept)],
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(json.loads(run.stdout))


def test_pages_are_mapped_once():
    asked, few = faults("keep_freed_memory()")
    _, many = faults("False")
    assert asked
    assert few < many / 2  # an aligned block needs a little more than its like that was freed


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072")],
)
def test_a_users_own_choice_stays(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory()


@pytest.mark.slow  # two processes, each of which imports all
def test_verbs_keep_it():
    script = "from transept.cli.main import main; main(['models', '--json'])"
    run = subprocess.run(
        [sys.executable, "-c", _COUNT_FAULTS.format(kept="None").replace("import json,", f"{script}\nimport json,")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout.splitlines()[-1])[1] < faults("False")[1] / 2

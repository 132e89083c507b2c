"""What is freed is used again, and not mapped and zeroed anew."""

import json
import subprocess
import sys

import pytest

from transept.allocator import _has_glibc, keep_freed_memory

pytestmark = pytest.mark.skipif(not _has_glibc(), reason="another C library, whose allocator is left as it is")

_COUNT_FAULTS = """
import json, resource, torch
from concurrent.futures import ThreadPoolExecutor
from transept.allocator import keep_freed_memory
kept = {kept}
def step():
    activations = [torch.ones({mib} << 18) for _ in range(240 // {mib})]  # more than glibc keeps by itself
def steps(count):
    for _ in range(count):
        step()
thread = ThreadPoolExecutor(1)
run = (lambda count: thread.submit(steps, count).result()) if {thread} else steps
run(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
run(3)
print(json.dumps([kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""


def faults(kept: str, *, mib: int = 48, thread: bool = False) -> tuple[bool, int]:
    run = subprocess.run(
        [sys.executable, "-c", _COUNT_FAULTS.format(kept=kept, mib=mib, thread=thread)],
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


def test_threads_map_pages_once_unless_a_user_gives_them_pools(monkeypatch: pytest.MonkeyPatch):
    asked, few = faults("keep_freed_memory()", mib=20, thread=True)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "8")
    still, many = faults("keep_freed_memory()", mib=20, thread=True)
    assert asked
    assert still
    assert few < many / 2


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
        [
            sys.executable,
            "-c",
            _COUNT_FAULTS.format(kept="None", mib=48, thread=False).replace("import json,", f"{script}\nimport json,"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout.splitlines()[-1])[1] < faults("False")[1] / 2

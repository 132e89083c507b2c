"""What is freed is used again, and not mapped and zeroed anew."""

import json
import subprocess
import sys

import pytest

from transept.allocator import _has_glibc, keep_freed_memory

pytestmark = pytest.mark.skipif(not _has_glibc(), reason="another C library, whose allocator is left as it is")

_COUNT_FAULTS = """
import json, os, resource, torch
from concurrent.futures import ThreadPoolExecutor
from transept.allocator import keep_freed_memory
torch.set_num_threads(1)
def step(count):
    for _ in range(count):
        activations = [torch.ones(MIB << 18) for _ in range(240 // MIB)]  # more than glibc keeps by itself
for keep in KEEP:
    # Each in a process of its own, which need not import torch; but a child's thread takes a pool of the parent's.
    if not THREAD and os.fork():
        os.wait()
        continue
    kept = keep()
    run = step if not THREAD else lambda count: thread.submit(step, count).result()
    thread = ThreadPoolExecutor(1)
    run(8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run(3)
    print(json.dumps([kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]), flush=True)
    os._exit(0)
"""


def faults(keep: str, before: str = "", *, mib: int = 48, thread: bool = False) -> list[tuple[bool | None, int]]:
    """For each of these functions what it answers, and the pages that were then mapped for blocks of that size."""
    code = f"{before}\n{_COUNT_FAULTS}".replace("KEEP", keep).replace("MIB", str(mib)).replace("THREAD", str(thread))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [
        tuple(json.loads(line)) for line in run.stdout.splitlines() if line.startswith(("[true", "[false", "[null"))
    ]


def test_pages_are_mapped_once():
    (asked, few), (_, many) = faults("(keep_freed_memory, bool)")
    assert asked
    assert few < many / 2  # an aligned block needs a little more than its like that was freed


def test_threads_map_pages_once_unless_a_user_gives_them_pools(monkeypatch: pytest.MonkeyPatch):
    ((asked, few),) = faults("(keep_freed_memory,)", mib=80, thread=True)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "8")
    ((still, many),) = faults("(keep_freed_memory,)", mib=80, thread=True)
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
    ((_, few),) = faults("(lambda: None,)", script)
    ((_, many),) = faults("(bool,)")
    assert few < many / 2

"""Runs that Ray starts on this machine, with the real package: two of its processes, real kills, a real Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import rows
from tests.training.processes.runs import OPTIONS, STEPS, command, difference, recipe, wait_for_file
from transept.errors import UsageError
from transept.training.loop.run import train
from transept.training.loop.states import read_state

RAY = ("--hardware.engine", "ray", "--hardware.workers", "2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--hardware.engine ray --hardware.devices 2", r"^hardware.devices=2, but .*; give hardware.workers, those of"),
        ("--hardware.workers 2", r"^hardware.workers=2 are Ray's; give hardware.engine=ray, or hardware.workers=null"),
        ("--hardware.engine ray --hardware.workers 3", r"all 3 processes \(hardware.workers\) .* a multiple of 6"),
    ],
)
def test_what_cannot_work_is_refused(options: str, message: str, tmp_path: Path):
    with pytest.raises(UsageError, match=message):
        train(recipe(*options.split()), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_without_the_extra_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"^hardware.engine=ray needs the package 'ray': pip install .*\[cluster\]'$"):
        train(recipe(*RAY), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_not_within_processes_that_others_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("ray")
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"engine=ray starts the processes, and 2 are there; leave out torchrun"):
        train(recipe(*RAY), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "tfevents" not in path.name}


def processes_below(parent: int) -> Iterator[tuple[int, str]]:
    """Numbers and titles of the processes that one has started, and those that they have."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    family = [line.split(maxsplit=2) for line in table.splitlines()]
    below = {parent}
    while more := {int(pid) for pid, above, *_ in family if int(above) in below} - below:
        below |= more
    yield from ((int(pid), title[0]) for pid, _, *title in family if int(pid) in below - {parent} and title)


def workers_of(process: "subprocess.Popen[str]") -> list[int]:
    return sorted(pid for pid, title in processes_below(process.pid) if "RayTrainWorker" in title)


def wait_for_step(folder: Path, step: int, process: "subprocess.Popen[str]") -> int:
    """The step of the state that is the first to have so many."""
    wait_for_file(folder / "last.ckpt", process)
    while (there := read_state(folder)[0]["global_step"]) < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return there


@pytest.mark.slow
def test_equals_two_processes_of_this_machine(tmp_path: Path):
    """Also where the folder, as it usually is, and the data's are named from where the command is given."""
    pytest.importorskip("ray")
    ddp, ray = tmp_path / "ddp", tmp_path / "ray"
    train(recipe("--hardware.devices", "2"), ddp, progress=False)
    done = subprocess.run(
        [sys.executable, "-m", "transept", "train", "digits", "--out", "ray", *OPTIONS, *RAY],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print("two processes of ray and of ours", difference(ray, ddp))
    assert difference(ray, ddp) < 1e-6
    assert files(ray) == files(ddp)
    assert rows(ray) == rows(ddp)
    lines = [line.partition(" ")[0] for line in done.stderr.splitlines() if line]
    assert lines == ["transept:", "epoch", "epoch"], done.stderr  # others speak, or one twice
    assert "top-1" in done.stdout


@pytest.mark.slow
def test_killed_processes_are_started_anew(whole_run: Path, tmp_path: Path):
    """In the first epoch the last of them, in the second the first; the weights are those of an undisturbed run."""
    pytest.importorskip("ray")
    folder = tmp_path / "run"
    process = command("transept", "train", "digits", "--out", str(folder), *OPTIONS, *RAY)
    step = wait_for_step(folder, 2, process)
    first = workers_of(process)
    os.kill(first[-1], signal.SIGKILL)
    assert 2 <= step < STEPS // 2, "it was not within the first epoch"
    step = wait_for_step(folder, STEPS // 2 + 2, process)
    second = workers_of(process)
    os.kill(second[0], signal.SIGKILL)
    assert STEPS // 2 < step < STEPS, "it was not within the second epoch"
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    assert len(first) == len(second) == 2
    assert not set(first) & set(second)
    assert errors.count("a process died; Ray has started all of them anew") == 2
    assert "top-1" in output
    print("killed twice", difference(folder, whole_run))
    assert difference(folder, whole_run) < 1e-6
    assert files(folder) == files(whole_run)


@pytest.mark.slow
def test_ctrl_c_saves_and_one_process_goes_on_without_ray(tmp_path: Path):
    """It comes to all processes of the terminal, Ray's among them."""
    pytest.importorskip("ray")
    folder = tmp_path / "run"
    long = ["--schedule.iterations", "2000", "--schedule.evaluate_every", "1000"]
    process = command("transept", "train", "digits", "--out", str(folder), *OPTIONS, *RAY, *long)
    wait_for_step(folder, 2, process)
    started = [pid for pid, _ in processes_below(process.pid)]
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].endswith(f"go on with: transept train --resume {folder}")
    assert "Traceback" not in errors
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()], "processes of Ray are left"
    step = read_state(folder)[0]["global_step"]
    assert f"stopped before step {step + 1};" in errors
    process = command(
        *("transept", "train", "--resume", str(folder), "--hardware.engine", "local", "--hardware.workers", "null")
    )
    wait_for_step(folder, step + 3, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors


@pytest.mark.slow
def test_an_error_of_the_run_is_its_sentence_and_not_tried_again(tmp_path: Path):
    pytest.importorskip("ray")
    (tmp_path / "data").mkdir()
    data = ["--data", str(tmp_path / "data"), "--hardware.workers", "1"]
    process = command("transept", "train", "quick", "--out", str(tmp_path / "run"), *RAY[:2], *data)
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 1, errors
    (line,) = errors.splitlines()
    assert line.startswith("transept: ")
    assert str(tmp_path / "data") in line
    assert not [path for path in (tmp_path / "run").iterdir() if path.name != ".lock"]

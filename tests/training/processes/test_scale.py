"""Runs of several processes, and runs that die: two real processes on the CPU, real kills, real lack of memory."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import metrics, rows
from tests.training.processes.runs import OPTIONS, STEPS, command, difference, recipe, wait_for_file
from transept.cli.main import main
from transept.errors import TranseptError, TranseptWarning, UsageError
from transept.tasks.classify import Classifier
from transept.training.folds import train_folds
from transept.training.loop.run import train
from transept.training.loop.states import read_state
from transept.training.options.pages import read_recipe
from transept.training.options.parsing import parse_recipe
from transept.training.processes.world import World

TWO = ("--hardware.devices", "2")
FSDP = (*TWO, "--hardware.strategy", "fsdp")


def kill_one_when(ready: Callable[[], bool]) -> threading.Thread:
    """Kills the last of this process' children, once."""

    def watch() -> None:
        while not ready():
            time.sleep(0.005)
        workers = sorted(multiprocessing.active_children(), key=lambda process: process.pid or 0)
        os.kill(workers[-1].pid or 0, signal.SIGKILL)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_two_processes_equal_one(whole_run: Path, tmp_path: Path):
    result = train(recipe(*TWO), tmp_path / "run", progress=False)
    print("ddp", difference(tmp_path / "run", whole_run))
    assert difference(tmp_path / "run", whole_run) < 1e-6
    for ours, theirs in zip(metrics(tmp_path / "run"), metrics(whole_run), strict=True):
        for name in ("epoch", "step", "lr", "train_top1", "val_top1", "val_top5"):
            assert ours[name] == theirs[name], name  # counted over both processes, and no picture twice
        assert float(ours["val_loss"]) == pytest.approx(float(theirs["val_loss"]), rel=1e-5)
    assert result.metrics["top1"] == pytest.approx(max(float(row["val_top1"]) for row in metrics(whole_run)), abs=1e-5)


DENSE = (
    "--schedule.warmup_epochs 0 --model.options.embed_dims [16,24,32,32] "
    "--model.options.depths [1,1,1,1] --model.options.num_heads [2,2]"
).split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("quick-det", "--batch_size 8 --scenes [96,11] --detect.preprocessing.scale [160,120] --schedule.epochs 12"),
        ("quick-inst", "--batch_size 8 --scenes [96,11] --detect.preprocessing.scale [160,120] --schedule.epochs 12"),
        (
            "quick-seg",
            "--batch_size 8 --segment.preprocessing.scale [128,96] --segment.augmentation.crop [96,128] "
            "--schedule.iterations 80 --schedule.evaluate_every 40",
        ),
    ],
)
def test_dense_tasks_in_two_processes(
    name: str, options: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They learn, and the scores counted over both processes are those that one measures."""
    page = parse_recipe(read_recipe(name), [*DENSE, *options.split(), *TWO])
    result = train(page, tmp_path / "run", progress=False)
    table = metrics(tmp_path / "run")
    assert float(table[-1]["train_loss"]) < 0.95 * float(table[0]["train_loss"])
    assert main(["eval", str(tmp_path / "run"), "--json"]) == 0
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])
    same = {key: value for key, value in result.metrics.items() if key in alone and key != "loss"}
    assert result.score.key in same
    assert result.metrics[result.score.key] > 0
    assert same == pytest.approx({key: alone[key] for key in same}, abs=1e-6)


@pytest.mark.slow
def test_a_killed_process_ends_a_sharded_run_which_one_process_finishes(whole_run: Path, tmp_path: Path):
    folder = tmp_path / "run"
    killer = kill_one_when((folder / "metrics.csv").exists)
    with pytest.raises(TranseptError, match=r"process 1 of 0..1 was killed \(SIGKILL\); .* transept train --resume"):
        train(recipe(*FSDP), folder, progress=False)
    killer.join()
    assert not multiprocessing.active_children()
    state, _ = read_state(folder)
    assert 0 < state["global_step"] < STEPS
    train(recipe("--hardware.strategy", "fsdp"), folder, resume=True, progress=False)
    print("fsdp killed, one resumes", difference(folder, whole_run))
    assert difference(folder, whole_run) < 1e-6


@pytest.mark.slow
def test_sharded_processes_equal_one_and_go_on_from_it(whole_run: Path, tmp_path: Path):
    """The first epoch in one process, the second in two, each with a share of the model and of the momenta."""
    folder = tmp_path / "run"
    first = start(train_until_killed, folder)
    wait_for(lambda: (folder / "metrics.csv").exists(), first)
    os.kill(first.pid or 0, signal.SIGKILL)
    first.join()
    assert read_state(folder)[0]["global_step"] < STEPS
    train(recipe(*FSDP), folder, resume=True, progress=False)
    print("one killed, fsdp resumes", difference(folder, whole_run))
    assert difference(folder, whole_run) < 1e-6
    task = Classifier.load(folder / "last.safetensors")
    assert all(type(value) is torch.nn.Parameter for value in task.parameters())
    assert metrics(folder)[-1]["val_top1"] == metrics(whole_run)[-1]["val_top1"]


def start(work: Callable[..., Any], *arguments: Any) -> Any:
    context = multiprocessing.get_context("forkserver")
    multiprocessing.set_forkserver_preload(["transept.training.loop.run"])
    process = context.Process(target=work, args=arguments)
    process.start()
    return process


def wait_for(ready: Callable[[], bool], process: Any) -> None:
    while not ready():
        assert process.is_alive()
        time.sleep(0.005)


def train_until_killed(folder: Path, resume: bool = False) -> None:
    torch.set_num_threads(1)
    train(recipe(), folder, resume=resume, progress=False)


def kill_at_random(whole_run: Path, folder: Path, times: int) -> None:
    rng = random.Random(0)
    for _ in range(times):
        process = start(train_until_killed, folder, (folder / "last.ckpt").exists())
        wait_for(lambda: (folder / "last.ckpt").exists(), process)
        process.join(rng.uniform(0, 0.5))
        process.kill()
        process.join()
        for name in ("best.safetensors", "last.safetensors"):
            assert not (folder / name).exists() or load_file(folder / name)
    train(recipe(), folder, resume=True, progress=False)
    assert difference(folder, whole_run) == 0
    assert rows(folder) == rows(whole_run)


def test_killed_at_random_moments(whole_run: Path, tmp_path: Path):
    kill_at_random(whole_run, tmp_path / "run", 2)


@pytest.mark.slow
def test_killed_at_many_random_moments(whole_run: Path, tmp_path: Path):
    kill_at_random(whole_run, tmp_path / "run", 20)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# Both files are cut off at the end of each.
@pytest.mark.parametrize("damage", [pytest.param(truncate, marks=pytest.mark.slow), flip_a_bit, Path.unlink])
def test_a_damaged_state_falls_back_to_the_one_before(damage: Callable[[Path], None], whole_run: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    assert read_state(folder)[1] == folder / "last.ckpt"
    damage(folder / "last.ckpt")
    with pytest.warns(
        TranseptWarning, match=r"last.ckpt' is damaged \(.*going on from 'previous.ckpt'.* at step 1[12]"
    ):
        train(recipe(), folder, resume=True, progress=False)
    assert difference(folder, whole_run) == 0
    assert read_state(folder)[0]["global_step"] == STEPS
    before = torch.load(folder / "previous.ckpt", weights_only=True)  # the damaged one did not take its place
    assert before["global_step"] <= STEPS
    for name in ("last.ckpt", "previous.ckpt"):
        truncate(folder / name)
    with pytest.raises(TranseptError, match=r"last.ckpt' is damaged .* and so is 'previous.ckpt' .*start the run anew"):
        train(recipe(), folder, resume=True, progress=False)


def hold(folder: Path) -> None:
    """A run that has just begun: the folder is claimed, and nothing is in it yet."""
    from transept.training.loop.folder import claim

    with claim(folder, resume=False):
        (folder / "held").touch()
        time.sleep(60)


def test_two_runs_never_share_a_folder(whole_run: Path, tmp_path: Path):
    with pytest.raises(TranseptError, match=r"holds a run already; go on with --resume .* or give another folder"):
        train(recipe(), whole_run, progress=False)
    tmp_path.joinpath("run").mkdir()
    other = start(hold, tmp_path / "run")
    wait_for(lambda: (tmp_path / "run" / "held").exists(), other)
    with pytest.raises(TranseptError, match=r"another process is training in .*run'; give another folder with --out"):
        train(recipe(), tmp_path / "run", progress=False)
    other.kill()  # the lock goes with the process
    other.join()
    train(recipe("--schedule.iterations", "1", "--schedule.evaluate_every", "1"), tmp_path / "run", progress=False)


def train_with_little_memory(folder: Path) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
    options = ["--out", str(folder), *OPTIONS, "--model.img_size", "512", "--accumulate", "1"]
    sys.stderr = (folder.parent / "errors").open("w")
    sys.exit(main(["train", "digits", *options]))


def test_out_of_memory_is_said_in_words(tmp_path: Path):
    process = start(train_with_little_memory, tmp_path / "run")
    process.join()
    errors = (tmp_path / "errors").read_text()
    assert process.exitcode == 1
    assert errors.strip().splitlines()[-1] == (
        "transept: out of memory with a batch of 32 images of 512 x 512 pixels; try --accumulate 2 (the same batch in "
        "more parts), --hardware.grad_checkpointing true or --precision bf16-mixed"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--hardware.devices 3", r"batch_size=32 is that of all 3 processes .*accumulate=2 parts .* a multiple of 6"),
        ("--hardware.nodes 2", r"hardware.nodes=2, but the processes that were started make it 1; .*torchrun or srun"),
        ("--hardware.devices 0", r"hardware.devices=0 must be greater than 0"),
        ("--precision 16-mixed", r"precision=16-mixed needs a GPU; on CPUs give bf16-mixed"),
        ("--checkpoint_seconds=-1", r"checkpoint_seconds=-1 must not be negative"),
    ],
)
def test_what_cannot_work_is_refused(options: str, message: str, tmp_path: Path):
    with pytest.raises(UsageError, match=message):
        train(recipe(*options.split()), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_what_several_processes_cannot_do_is_refused():
    from transept.training.processes.strategies import check_hardware

    with pytest.raises(UsageError, match="sync_batchnorm=true works on GPUs only"):
        check_hardware(recipe("--sync_batchnorm", "true"), World(0, 2))
    check_hardware(recipe("--sync_batchnorm", "true"), World(0, 1))


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ("--hardware.grad_checkpointing true --hardware.channels_last true", 1e-6),
        ("--precision bf16-mixed --hardware.grad_checkpointing true --hardware.channels_last true", 1e-2),
        pytest.param("--hardware.compile true --hardware.grad_checkpointing true", 1e-5, marks=pytest.mark.slow),
        pytest.param("--hardware.compile true --hardware.devices 2", 1e-5, marks=pytest.mark.slow),
        pytest.param(
            "--hardware.compile true --hardware.devices 2 --hardware.strategy fsdp", 1e-5, marks=pytest.mark.slow
        ),
        pytest.param(
            "--precision bf16-mixed --hardware.devices 2 --hardware.strategy fsdp --hardware.grad_checkpointing true",
            1e-2, marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_options_of_the_hardware_compose(options: str, limit: float, whole_run: Path, tmp_path: Path):
    train(recipe(*options.split()), tmp_path / "run", progress=False)
    print(options, difference(tmp_path / "run", whole_run))
    assert difference(tmp_path / "run", whole_run) < limit
    if "compile" in options or "bf16" in options:
        assert difference(tmp_path / "run", whole_run) > 0, "it changed nothing"


@pytest.mark.slow
def test_folds_in_two_processes_equal_those_of_one(tmp_path: Path):
    """A process of the first fold is killed, the second goes on, and the first is trained to its end afterwards."""
    one, two = tmp_path / "one", tmp_path / "two"
    expected = train_folds(recipe(), one, 2, progress=False)
    killer = kill_one_when((two / "fold-1" / "metrics.csv").exists)
    with pytest.warns(TranseptWarning, match=r"fold 1 of 2 failed, and the others go on: process 1 of 0..1 was killed"):
        stopped = train_folds(recipe(*TWO), two, 2, progress=False)
    killer.join()
    assert [each.fold for each in stopped.done] == [2]
    result = train_folds(recipe(*TWO), two, 2, resume=True, progress=False)
    for fold in ("fold-1", "fold-2"):
        assert difference(two / fold, one / fold) < 1e-6
    assert difference(one / "fold-1", one / "fold-2") > 1e-3, "both folds learn from the same pictures"
    assert result.metrics["top1"] == pytest.approx(expected.metrics["top1"], abs=1e-5)


@pytest.mark.slow
def test_ctrl_c_while_processes_start(tmp_path: Path):
    """It comes to all processes of the terminal: none of them has a traceback to show."""
    folder = tmp_path / "runs"
    process = command("transept", "train", "digits", "--folds", "2", "--out", str(folder), *OPTIONS, *TWO)
    wait_for_file(folder / "folds.json", process)
    time.sleep(0.5)  # the clean process imports for seconds
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors, errors


@pytest.mark.slow
def test_torchrun(whole_run: Path, tmp_path: Path):
    folder = tmp_path / "run"
    process = command(
        *"torch.distributed.run --standalone --nproc-per-node 2 -m transept train digits".split(),
        *("--json", "--out", str(folder)),
        *OPTIONS,
    )
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert len(output.splitlines()) == 1  # the second process says nothing
    assert errors.count("epoch 2/2") == 1
    assert difference(folder, whole_run) < 1e-6


@pytest.mark.slow
def test_processes_as_slurm_starts_them(whole_run: Path, tmp_path: Path):
    """The environment that srun makes; without SLURM itself."""
    folder = tmp_path / "run"
    shared = {
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "transept", "train", "digits", "--out", str(folder), *OPTIONS],
            env=os.environ | shared | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[1] == ("", "")
    assert difference(folder, whole_run) < 1e-6


@pytest.mark.slow
def test_interrupted_and_killed_from_the_command_line(whole_run: Path, tmp_path: Path):
    """Ctrl-C saves in both processes; a kill ends the command with one sentence within twenty seconds."""
    folder = tmp_path / "run"
    long = ["--schedule.iterations", "2000", "--schedule.evaluate_every", "1000"]
    process = command("transept", "train", "digits", "--out", str(folder), *OPTIONS, *TWO, *long)
    wait_for_file(folder / "last.ckpt", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].endswith(f"go on with: transept train --resume {folder}")
    step = read_state(folder)[0]["global_step"]
    process = command("transept", "train", "--resume", str(folder))
    while read_state(folder)[0]["global_step"] < step + 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    parents = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    family = [line.split() for line in parents.splitlines()[1:]]
    servers = [pid for pid, parent in family if parent == str(process.pid)]
    workers = [int(pid) for pid, parent in family if parent in servers]
    assert len(workers) == 2
    killed = time.monotonic()
    os.kill(min(workers), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - killed < 20
    assert process.returncode == 1
    assert "was killed (SIGKILL)" in errors.splitlines()[-1]
    assert "Traceback" not in errors

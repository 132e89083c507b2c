"""The processes that train one model together: who they are, how they are started, what they tell each other.

`torchrun`, `srun` and Ray start the processes themselves and say so in the environment. Where a recipe asks for
several and nothing started them, `launch` does, on this machine, or `cluster.run_on_ray`.
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch.multiprocessing.spawn import ProcessException, ProcessExitedException, start_processes

from transept.errors import TranseptError, UsageError, rank_of_environment, warnings_as_sentences
from transept.tasks.run_folder import STATE
from transept.training.options.recipe import Recipe

_GRACE_SECONDS = 10
"""Time for the other processes to end by themselves, once one has failed."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed", "Timed out waiting")


class World(NamedTuple):
    """All processes, and which of them this one is."""

    rank: int = 0
    size: int = 1
    here: int = 1
    """Those on this machine; but for Ray, equally many are on each."""


ALONE = World()
"""One process, which shares with none."""


class LostProcessError(TranseptError):
    """Another process of the job ended."""


def current_world() -> World:
    """The world that `torchrun`, Ray or `srun` wrote into the environment; one process where none of them did."""
    rank, names = rank_of_environment(), os.environ
    if "RANK" in names and "WORLD_SIZE" in names:
        size = int(names["WORLD_SIZE"])
        return World(rank, size, int(names.get("LOCAL_WORLD_SIZE", size)))
    if "SLURM_STEP_ID" in names:
        size = int(names.get("SLURM_NTASKS", 1))
        return World(rank, size, size // int(names.get("SLURM_NNODES", 1)))
    return World()


def environment_of_started() -> ClusterEnvironment:
    """The environment in which Lightning finds the other processes of `torchrun`, `srun` or `launch`."""
    # Lightning would save and requeue in its own way; ours is in docs/training.md.
    return TorchElasticEnvironment() if "WORLD_SIZE" in os.environ else SLURMEnvironment(auto_requeue=False)


def wanted_world(recipe: Recipe) -> World:
    """The world as it is, or as `launch` is to make it.

    Raises:
        UsageError: the recipe asks for other processes than were started.
    """
    world, hardware = current_world(), recipe.hardware
    if not _started():
        if hardware.engine == "ray":
            world = World(0, hardware.workers or 1)
        elif (hardware.nodes or 1) == 1:
            world = World(0, hardware.devices or 1, hardware.devices or 1)
    for name, asked, started in (
        ("nodes", hardware.nodes, world.size // world.here),
        ("devices", hardware.devices, world.here),
    ):
        if asked is not None and asked != started:
            raise UsageError(
                f"hardware.{name}={asked}, but the processes that were started make it {started}; "
                "start as many with torchrun or srun, or leave the option out"
            )
    parts, count = world.size * recipe.accumulate, "workers" if hardware.engine == "ray" else "devices"
    if recipe.batch_size % parts:
        raise UsageError(
            f"batch_size={recipe.batch_size} is that of all {world.size} processes (hardware.{count}) together, which "
            f"compute it in accumulate={recipe.accumulate} parts each; give a multiple of {parts}"
        )
    return world


def must_launch(world: World) -> bool:
    return world.size > 1 and not _started()


def _started() -> bool:
    return "WORLD_SIZE" in os.environ or "SLURM_STEP_ID" in os.environ


# Starting


def launch(work: Callable[..., Any], arguments: tuple[Any, ...], *, size: int, folder: Path) -> Any:
    """`work(*arguments)` in `size` new processes of this machine; returns what the first of them returns.

    When one fails, the others are ended, and its error is raised here. Ctrl-C and SIGTERM are passed on. Should this
    process die, the others save their state and stop.

    Raises:
        LostProcessError: one was killed.
    """
    # One clean process does the imports, and the others are forks of it.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    multiprocessing.set_forkserver_preload(["transept.training.loop.run"])
    if method == "forkserver":
        _start_server()
    results = multiprocessing.get_context(method).SimpleQueue()
    port = find_free_network_port()
    processes: list[int] = []
    with passed_on(processes) as stopped:
        context = start_processes(
            _process, (work, arguments, size, port, results), nprocs=size, join=False, start_method=method
        )
        assert context is not None
        processes += context.pids()
        if stopped:  # while they were started
            _terminate(processes)
        try:
            while not context.join(grace_period=_GRACE_SECONDS):
                pass
        except ProcessException as error:
            raise _cause(error, context, results, folder, stopped) from None
    return results.get()[1]


def _start_server() -> None:
    """The one clean process, which Ctrl-C is to leave alone: it comes to all processes of a terminal, and while the
    server imports it would end it with a traceback. It ends with this process.
    """
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # only the main thread may set handlers
        return
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _process(index: int, work: Callable[..., Any], arguments: tuple[Any, ...], size: int, port: int, results: Any):
    os.environ |= {
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(max(torch.get_num_threads() // size, 1))
    try:
        with warnings_as_sentences(quiet=index > 0):
            result = work(*arguments)
        if index == 0:
            results.put((0, result))
    except Exception as error:
        error.add_note(traceback.format_exc())
        results.put((index, error))
        sys.exit(1)


def _cause(error: ProcessException, context: Any, results: Any, folder: Path, stopped: list[int]) -> BaseException:
    """One process fails first, and the rest because of it: the error of the first."""
    errors = []
    while not results.empty():
        errors.append(results.get()[1])
    causes = [each for each in errors if isinstance(each, BaseException) and not isinstance(each, LostProcessError)]
    codes = [process.exitcode for process in context.processes]
    killed = [(rank, code) for rank, code in enumerate(codes) if code and code < 0 and code != -signal.SIGTERM]
    if causes and (stopped or not killed):
        return causes[0]
    if stopped:  # those that wait for one which has ended are killed
        return KeyboardInterrupt()
    rank = killed[0][0] if killed else error.error_index
    code = codes[rank] or 0
    how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
    if isinstance(error, ProcessExitedException) or killed:
        return LostProcessError(f"process {rank} of 0..{len(codes) - 1} {how}; {kept(folder)}")
    return errors[0] if errors else RuntimeError(str(error))


@contextmanager
def passed_on(processes: list[int]) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM go to the processes, which save their state; the signals that came.

    A terminal sends its Ctrl-C to all of them, so what is passed on is SIGTERM, which may come twice.
    """
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        _terminate(processes)

    try:
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread may set handlers
        yield came
        return
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(processes: list[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)


# Telling each other

asked_to_stop = threading.Event()
"""Set where the command that started this process asks it to save and stop, and has no signal to say so."""


def gather(value: Any) -> list[Any]:
    """The value of every process, by rank; all must call this."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def any_of(flags: list[bool], device: torch.device) -> list[bool]:
    """For each flag, whether it is up in any process; all must call this."""
    if not dist.is_initialized():
        return flags
    shared = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return [bool(flag) for flag in shared.tolist()]


def same_buffers(module: torch.nn.Module) -> None:
    """Those of the first process for all, such as the running statistics of batch norms."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def lost_process(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(reason in str(error) for reason in _LOST)
    )


def kept(folder: Path) -> str:
    """The sentence that says what is left after a failure, and how to go on."""
    if (folder / STATE).is_file():
        return f"what was saved last is in {str(folder)!r}; go on with: transept train --resume {folder}"
    return f"nothing was saved in {str(folder)!r} yet; start anew"

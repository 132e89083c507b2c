"""Ray Train starts the processes, on the machines of a cluster or on this one alone, and anew when one dies.

They go on from the run folder's own states, so that Ray keeps none, and this command shows what the first says.
"""

import io
import math
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy

from transept.cluster import connected
from transept.errors import TranseptError, UsageError, say, warnings_as_sentences
from transept.extras import install
from transept.tasks.run_folder import LOCK
from transept.training.processes.exchange import Exchange, Message
from transept.training.processes.world import LostProcessError, asked_to_stop, current_world, kept, passed_on

_RESTARTS = 10
"""What a machine that is taken away needs, and an error that comes back each time ends."""
_POLL_SECONDS = 0.2


def check_ray() -> None:
    """Refuse what stands in the way of `run_on_ray`.

    Raises:
        UsageError: Ray is not installed, or other processes than Ray's were started.
    """
    try:
        import ray.train.torch  # noqa: F401  # an extra
    except ImportError as error:
        raise UsageError(f"hardware.engine=ray needs the package 'ray': {install('cluster')}") from error
    if (size := current_world().size) > 1:
        raise UsageError(f"hardware.engine=ray starts the processes, and {size} are there; leave out torchrun and srun")


def run_on_ray(work: Callable[..., Any], arguments: tuple[Any, ...], *, workers: int | None, folder: Path) -> Any:
    """`work(*arguments)` in processes of Ray; returns what the first of them returns, and whether it was to stop.

    `work` goes on from where the folder stands: when a process dies, it is called again in all of them.
    Ctrl-C and SIGTERM ask it to save and stop; a second one ends the processes.

    Raises:
        LostProcessError: processes died again and again.
        TranseptError: the error of the first that failed otherwise, or Ray does not start.
    """
    import ray  # an extra
    from ray.exceptions import RayError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with (
        connected() as alone,
        passed_on([]) as signals,  # instead of Ray's own answer to SIGTERM
        tempfile.TemporaryDirectory() as rays_own,
    ):
        scaling = ScalingConfig(**_resources(workers, alone))
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(Exchange)
        exchange = actor.options(num_cpus=0, scheduling_strategy=here).remote()
        trainer = TorchTrainer(
            _work,
            train_loop_config=dict(
                work=work, arguments=arguments, folder=folder, started_in=Path.cwd(), exchange=exchange
            ),
            scaling_config=scaling,
            run_config=RunConfig(
                storage_path=rays_own,
                failure_config=FailureConfig(max_failures=_RESTARTS),
                worker_runtime_env={"env_vars": {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}},  # it says each line twice
            ),
        )
        fit = _Fit(trainer)
        fit.start()
        try:
            return _follow(fit, exchange, signals, folder), bool(signals)
        except RayError as error:
            raise TranseptError(f"Ray ended the run ({_reason(error)}); {kept(folder)}") from error
        finally:
            ray.kill(exchange)  # processes that are left stop when they notice


def _resources(workers: int | None, alone: bool) -> dict[str, Any]:
    """Options of Ray's ScalingConfig: a GPU for each process, or its share of a machine's cores.

    Raises:
        UsageError: this machine has fewer. A cluster's may become more.
    """
    import ray  # an extra

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    gpus, cores = (int(sum(machine.get(kind, 0) for machine in machines)) for kind in ("GPU", "CPU"))
    workers = workers or gpus or len(machines) or 1
    kind, there = ("GPUs", gpus) if gpus else ("cores", cores)
    if workers > there:
        sentence = f"hardware.workers={workers} need as many {kind}, and "
        if alone:
            raise UsageError(f"{sentence}this machine has {there}; lower it, or join a cluster with RAY_ADDRESS")
        say(f"{sentence}the cluster has {there}; waiting until it has them")
    if gpus:
        return {"num_workers": workers, "use_gpu": True}
    each = math.ceil(workers / max(len(machines), 1))
    share = min((int(machine["CPU"]) for machine in machines), default=1) // each
    return {"num_workers": workers, "resources_per_worker": {"CPU": max(share, 1)}}


class _Fit(threading.Thread):
    """Ray's trainer in a thread of its own: in the main one its answer to Ctrl-C would end the processes unsaved."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(daemon=True)
        self.trainer = trainer
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.trainer.fit()
        except Exception as error:
            self.error = error


def _follow(fit: _Fit, exchange: Any, signals: list[int], folder: Path) -> Any:
    """Shows what the first process says, until it has a result or one fails."""
    import ray  # an extra
    from ray.train import WorkerGroupError

    result, starts = None, 0
    while True:
        ended = not fit.is_alive()
        message: Any = ray.get(exchange.receive.remote(_POLL_SECONDS))
        if len(signals) > 1 or (signals and not starts):
            raise KeyboardInterrupt
        if signals:
            exchange.stop.remote()
        if message is None:
            if ended:
                break
        elif message.kind == "start":
            starts += message.value == 0
            if starts > 1 and message.value == 0:
                say("a process died; Ray has started all of them anew, and they go on from the state saved last")
        elif message.kind == "line":
            print(message.value, file=sys.stderr)
        elif message.kind == "result":
            result = message.value
        elif message.kind == "error":
            raise message.value
    if fit.error is None:
        return result
    reason = _reason(fit.error)
    if isinstance(fit.error, WorkerGroupError):
        raise LostProcessError(f"processes died {_RESTARTS + 1} times ({reason}); {kept(folder)}") from fit.error
    raise TranseptError(f"Ray ended the run ({reason}); {kept(folder)}") from fit.error


def _reason(error: Exception) -> str:
    """The first of Ray's lines that is not a heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.endswith(":")), type(error).__name__)


# In the processes


def _work(config: dict[str, Any]) -> None:
    import ray  # an extra
    from ray.exceptions import RayError
    from ray.train import get_context

    exchange, folder, rank = config["exchange"], config["folder"], get_context().get_world_rank()

    def send(kind: Any, value: Any) -> None:
        ray.get(exchange.send.remote(Message(kind, value)))

    def listen() -> None:
        with suppress(RayError):  # the command has ended
            ray.get(exchange.stopped.remote())
        asked_to_stop.set()

    with suppress(OSError):  # paths of the recipe are those of the command
        os.chdir(config["started_in"])
    try:
        send("start", rank)
    except RayError:  # Ray starts anew what the command has given up
        return
    if rank == 0:
        threading.Thread(target=listen, daemon=True).start()
    try:
        if not (folder / LOCK).exists():
            raise TranseptError(
                f"process {rank} does not see the run folder {str(folder)!r}; put it on a disk that all machines share"
            )
        lines = _Lines(lambda line: send("line", line)) if rank == 0 else sys.stderr
        with redirect_stderr(lines), warnings_as_sentences(quiet=rank > 0):
            result = config["work"](*config["arguments"])
        if rank == 0:
            send("result", result)
    except LostProcessError:
        raise  # Ray starts all anew
    except Exception as error:
        error.add_note(traceback.format_exc())
        send("error", error)
        if not (isinstance(error, TranseptError) and error.exit_code == 130):  # stopped as it was asked to
            raise


class _Lines(io.TextIOBase):
    """A stream that hands on whole lines."""

    def __init__(self, send: Callable[[str], None]) -> None:
        self._send = send
        self._rest = ""

    def write(self, text: str, /) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._send(line)
        return len(text)


def ray_environment() -> ClusterEnvironment:
    """The environment in which Lightning finds the other processes, as many on each machine as Ray put there."""
    from ray.train.lightning import RayLightningEnvironment  # an extra

    return RayLightningEnvironment()


def ray_ddp() -> type[DDPStrategy]:
    """Each process holds the model, on the device that Ray gave it."""
    from ray.train.lightning import RayDDPStrategy  # an extra

    return RayDDPStrategy

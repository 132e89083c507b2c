"""The same shards, written by the machines of a Ray cluster: `ray.data` hands each shard to a process with the model.

The folder must be one that all machines see. A shard is written whole by one process, from the same batches as here,
so the rows are the same; a process that dies is started anew by Ray, with the shard that it was at.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transept.cluster import connected
from transept.errors import TranseptError, UsageError
from transept.extras import install
from transept.labelling.job import Job, ShardWriter


def write_shards_on_ray(
    job: Job,
    shards: Sequence[int],
    *,
    processes: int = 1,
    workers: int = 0,
    done: Callable[[int], None] = lambda pictures: None,
) -> None:
    """As `write_shards`, by the cluster of `RAY_ADDRESS` or else one that is started on this machine.

    Args:
        job: see `plan_job`.
        shards: their numbers.
        processes: how many hold the model; they share the processors, or GPUs, of the cluster evenly.
        workers: of each, processes that read pictures.
        done: is told after each shard how many pictures it had.

    Raises:
        UsageError: Ray is not installed, or the cluster cannot hold so many processes.
        TranseptError: a shard cannot be written.
    """
    if not shards:
        return
    try:
        import ray.exceptions  # an extra
    except ModuleNotFoundError as error:
        raise UsageError(f"--engine ray needs the package 'ray': {install('cluster')}") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        with connected():
            for row in _written(job, shards, processes, workers):
                if row["error"]:
                    raise TranseptError(row["error"])
                done(int(row["pictures"]))
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())
        raise TranseptError(
            f"Ray could not write all shards ({reason:.160}); --resume goes on with the rest"
        ) from error


def _written(job: Job, shards: Sequence[int], processes: int, workers: int) -> Iterator[dict[str, Any]]:
    """The answer of `_Writer` to each shard, as they come."""
    import ray.data  # as above

    device = next(job.task.parameters()).device.type
    share = _share(ray.cluster_resources(), processes, gpu=device == "cuda")
    sent = ray.put(replace(job, task=job.task.cpu(), formed=None))
    ray.data.DataContext.get_current().enable_progress_bars = False
    numbers = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    written = numbers.map_batches(
        _Writer,
        fn_constructor_args=(sent, device, workers),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=processes),
        **share,
    )
    yield from written.iter_rows()


class _Writer:
    """Holds the model, and writes the shards that it is handed."""

    def __init__(self, job: Any, device: str, workers: int) -> None:
        import ray  # as above

        sent: Job = ray.get(job)
        self._plan = sent.plan
        self._writer = ShardWriter(replace(sent, task=sent.task.to(device)), workers=workers)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        (shard,) = map(int, batch["shard"])
        error = ""
        try:
            self._writer.write([shard])
        except TranseptError as own:  # Ray would wrap it in pages of its own
            error = str(own)
        return {"pictures": [len(self._plan.numbers(shard))], "error": [error]}


def _share(resources: Mapping[str, float], processes: int, *, gpu: bool) -> dict[str, Any]:
    """What each of the processes takes, so that all of them have room; Ray gives as many threads as processors."""
    kind, name = ("GPU", "num_gpus") if gpu else ("CPU", "num_cpus")
    have = int(resources.get(kind, 0))
    if processes > have:
        raise UsageError(
            f"--processes {processes}, and the Ray cluster has {have} {kind}s; give at most {max(have, 1)}"
        )
    return {name: have // processes if kind == "CPU" else 1}

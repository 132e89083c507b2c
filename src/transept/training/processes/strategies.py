"""Strategies by which processes share the work, and ways to make a model fit the machine."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer

from transept.errors import UsageError
from transept.training.options.recipe import Recipe
from transept.training.processes.cluster import ray_ddp, ray_environment
from transept.training.processes.world import World, environment_of_started


def make_strategy(recipe: Recipe, world: World, *, unused_parameters: bool) -> Strategy | str:
    """One process needs none."""
    if world.size == 1:
        return "auto"
    ray = recipe.hardware.engine == "ray"
    environment = ray_environment() if ray else environment_of_started()
    if recipe.hardware.strategy == "fsdp":
        strategy = ShardedStrategy(world.size)
        strategy.cluster_environment = environment
        return strategy
    # Buffers are made the same before each validation. DDP would do so in every forward pass of it, too, of which
    # processes may have different numbers.
    return (ray_ddp() if ray else DDPStrategy)(
        cluster_environment=environment, find_unused_parameters=unused_parameters, broadcast_buffers=False
    )


def check_hardware(recipe: Recipe, world: World) -> None:
    """Refuse what this machine cannot do, and what cannot work together.

    Raises:
        UsageError: with the option to change.
    """
    gpus, each = torch.cuda.device_count(), world.here
    if recipe.precision == "16-mixed" and not gpus:
        raise UsageError("precision=16-mixed needs a GPU; on CPUs give bf16-mixed or 32-true")
    if gpus and each > gpus:
        raise UsageError(
            f"{each} processes on this machine need as many GPUs, and it has {gpus}; lower hardware.devices"
        )
    if world.size == 1:
        return
    if recipe.sync_batchnorm and not gpus:
        raise UsageError("sync_batchnorm=true works on GPUs only; on CPUs give false")
    if recipe.hardware.strategy == "fsdp" and recipe.precision == "16-mixed":
        raise UsageError("hardware.strategy=fsdp computes in bf16-mixed or 32-true, not in 16-mixed; or give ddp")
    if recipe.hardware.strategy == "fsdp" and recipe.ema.decay is not None:
        raise UsageError("hardware.strategy=fsdp keeps no moving average; give --ema.decay null, or ddp")


def fit_to_hardware(recipe: Recipe, world: World, task: nn.Module, backbones: Iterable[nn.Module]) -> None:
    """Changes a model in place as a recipe's `hardware` asks. The names of its parameters stay."""
    hardware = recipe.hardware
    if recipe.sync_batchnorm and world.size > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(task)
    if hardware.channels_last:
        task.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for backbone in backbones:
        if hardware.grad_checkpointing:
            backbone.set_grad_checkpointing(True)  # pyright: ignore[reportCallIssue]
        if hardware.compile:
            backbone.compile()


def shard(task: nn.Module, backbones: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Each process keeps its share of the parameters; those of a block are brought together while it computes."""
    for backbone in backbones:
        for block in _blocks(backbone):
            fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh)


def _blocks(backbone: nn.Module) -> list[nn.Module]:
    """Elements of the innermost lists of modules."""
    lists = [part for part in backbone.modules() if isinstance(part, nn.ModuleList)]
    blocks = [block for each in lists for block in each]
    return [block for block in blocks if not any(isinstance(part, nn.ModuleList) for part in block.modules())]


class ShardedStrategy(ModelParallelStrategy):
    """Fully sharded data parallelism whose states one process can read, and which reads those of one process.

    Lightning numbers the optimiser's parameters in the model's order, where the optimiser itself goes by its groups.
    """

    def __init__(self, size: int) -> None:
        super().__init__(data_parallel_size=size, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        assert self.model is not None
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        if not optimizer.state:  # before the first step; torch would make one up, with a step that decays the weights
            return optimizer.state_dict()
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        named: Any = get_optimizer_state_dict(self.model, optimizer, options=options)
        if not self.is_global_zero:
            return {}
        names = [name for group in named["param_groups"] for name in group["params"]]
        numbers = {name: number for number, name in enumerate(names)}
        groups = [group | {"params": [numbers[name] for name in group["params"]]} for group in named["param_groups"]]
        return {"state": {numbers[name]: value for name, value in named["state"].items()}, "param_groups": groups}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        assert self.model is not None
        checkpoint = torch.load(Path(checkpoint_path), mmap=True, map_location="cpu", weights_only=weights_only)
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.model, checkpoint.pop("state_dict"), options=options)
        known = {parameter: name for name, parameter in self.model.named_parameters()}
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            if not state["state"]:
                optimizer.load_state_dict(state)
                continue
            names = [known[parameter] for group in optimizer.param_groups for parameter in group["params"]]
            named: Any = {
                "state": {names[number]: value for number, value in state["state"].items()},
                "param_groups": [
                    group | {"params": [names[number] for number in group["params"]]} for group in state["param_groups"]
                ],
            }
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
        return checkpoint


def whole_state(task: nn.Module) -> dict[str, Any]:
    """The weights of a sharded task, on the CPU, in the first process; all must call this."""
    return get_model_state_dict(task, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

"""The machines of a run, and how its model is made to fit them."""

from dataclasses import dataclass
from typing import Literal

from transept.checks import check_positive
from transept.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class HardwareOptions:
    """Machines, and how a model is made to fit them. But for rounding, none of it changes what is learnt."""

    engine: Literal["local", "ray"] = "local"
    """Who starts several processes: this command, torchrun or srun, or Ray, also on the machines of a cluster."""
    workers: int | None = None
    """Processes that Ray starts on all machines together; default: one for each GPU, or where there is none for each
    machine."""
    devices: int | None = None
    """Processes on each machine, one for each GPU; default: one, or as many as torchrun or srun started."""
    nodes: int | None = None
    """Machines; default: as many as torchrun or srun started processes on."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """Each of several processes holds the model (ddp, which is auto), or a share of its parameters, gradients and
    optimiser (fsdp)."""
    grad_checkpointing: bool = False
    """Keep few activations and compute the others again: less memory, about a third more time."""
    compile: bool = False
    """Compile the backbone with torch.compile."""
    channels_last: bool = False
    """Keep the colours of a pixel together in memory, which convolutions on GPUs prefer."""

    def __post_init__(self) -> None:
        check_positive(100_000, workers=self.workers, devices=self.devices, nodes=self.nodes)
        for name, value in {"devices": self.devices, "nodes": self.nodes}.items():
            if value is not None and self.engine == "ray":
                raise UsageError(f"{name}={value}, but Ray chooses machines; give hardware.workers, those of all")
        if self.workers is not None and self.engine != "ray":
            raise UsageError(f"workers={self.workers} are Ray's; give hardware.engine=ray, or hardware.workers=null")

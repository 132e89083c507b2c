"""Versions, extras, the processor, disk, and whether a model computes here what its official code computed."""

import json
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.resources import files
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from packaging.requirements import Requirement

from transept.bench.timing import processor
from transept.doctor.weights import image_for, sample, state_dict_for
from transept.inference.compile import best_precision, compiler_problem, in_precision
from transept.inference.fuse import fuse
from transept.inference.processor import available_cores, instructions
from transept.machine import machine_memory
from transept.tasks.forms import seconds_before_forms
from transept.weights.load import create_model

LIMITS = {"eager": 2e-5, "fused": 2e-5, "bfloat16": 0.1}
"""How far logits may lie from the recorded ones, in the standard deviation of these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """One that transept asks for."""

    name: str
    wanted: str
    """The versions that are allowed, as `>=2.11`."""
    found: str | None
    """The version that is installed."""
    fits: bool


def packages() -> dict[str, list[Package]]:
    """Those of transept itself, under "", and of each extra."""
    found: dict[str, list[Package]] = {"": []}
    for line in requires("transept") or []:
        requirement = Requirement(line)
        extras = [""] if requirement.marker is None else _extras_of(requirement)
        for extra in extras:
            if requirement.name != "transept":  # an extra that holds another
                found.setdefault(extra, []).append(_package(requirement))
    return found


def _extras_of(requirement: Requirement) -> list[str]:
    marker = requirement.marker
    assert marker is not None
    named = [word.strip("'\"") for word in str(marker).split() if word[0] in "'\""]
    return [extra for extra in named if marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})]


def _package(requirement: Requirement) -> Package:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        found = None
    fits = found is not None and requirement.specifier.contains(found, prereleases=True)
    return Package(name=requirement.name, wanted=str(requirement.specifier), found=found, fits=fits)


def machine() -> dict[str, Any]:
    """What computes: the processor and its instruction sets, cores, bytes of memory, GPUs."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": sys.version.split()[0],
        "processor": processor(),
        "instructions": sorted(instructions()),
        "cores": available_cores(),
        "memory": machine_memory(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def forms() -> dict[str, Any]:
    """The precision that `--form auto` takes here, seconds before it makes its forms, and what keeps it from them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision, reason = best_precision("auto", device)
    fused, compiled = seconds_before_forms(precision)
    problem = compiler_problem(device)
    return {
        "dtype": precision,
        "reason": reason,
        "fused_after_s": None if device.type == "cuda" else fused,
        "compiled_after_s": None if device.type == "cuda" or problem else compiled,
        "compiler": problem or None,
    }


def disk(folders: list[Path]) -> dict[str, int]:
    """Bytes that are free where these folders lie, or will."""
    free = {}
    for folder in folders:
        there = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
        free[str(folder)] = shutil.disk_usage(there).free
    return free


def self_test() -> dict[str, Any]:
    """XCiT-N12/16 with the weights of the recording: how far its logits lie from those of the official code.

    In the standard deviation of the recorded logits, for each form of `LIMITS`.
    """
    started = perf_counter()
    recorded = json.loads(files("transept.doctor").joinpath("recorded.json").read_text(encoding="utf-8"))
    model = create_model(recorded["model"]).eval()
    shapes = {key: list(value.shape) for key, value in model.state_dict().items() if value.is_floating_point()}
    model.load_state_dict({k: torch.from_numpy(v) for k, v in state_dict_for(shapes).items()}, strict=False)
    images = torch.from_numpy(image_for(recorded["input"]["seed"], recorded["input"]["shape"]))
    fused = fuse(model)
    # One after the other: the last one changes the fused model.
    made = {"eager": lambda: model, "fused": lambda: fused, "bfloat16": lambda: in_precision(fused, "bfloat16")}
    differences = {}
    with torch.inference_mode():
        for name in LIMITS:
            logits = np.array(sample(made[name]()(images).numpy()))
            off = np.abs(logits - np.array(recorded["logits"]["sample"])).max()
            differences[name] = float(off / recorded["logits"]["std"])
    return {
        "model": recorded["model"],
        "source": recorded["source"],
        "differences": differences,
        "passed": all(differences[name] <= limit for name, limit in LIMITS.items()),
        "seconds": perf_counter() - started,
    }

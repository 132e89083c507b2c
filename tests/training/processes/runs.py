"""A short run, in this process or as a command, and how far two of them are apart."""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from transept.training.options.pages import read_recipe
from transept.training.options.parsing import parse_recipe
from transept.training.options.recipe import Recipe

# Without batch norm, which sees only a process' own part of a batch, and without drop path, which draws for it.
OPTIONS = (
    "--schedule.iterations 12 --schedule.evaluate_every 6 --batch_size 32 --accumulate 2 --precision 32-true "
    "--optimizer.name sgd --optimizer.lr 0.05 --model.name cait_xxs24_224 --model.img_size 16 "
    "--model.options.patch_size 4 --model.options.depth 2 --model.options.embed_dim 32 --model.options.num_heads 4 "
    "--model.options.init_scale 0.1 --classify.augmentation.color_jitter 0.2 --classify.augmentation.erasing 0.2 "
    "--checkpoint_seconds 0"
).split()
STEPS = 12


def recipe(*options: str) -> Recipe:
    return parse_recipe(read_recipe("digits"), [*OPTIONS, *options])


def difference(folder: Path, other: Path) -> float:
    """Of the last weights, relative to them. A step moves them by about 1e-3."""
    ours, theirs = load_file(folder / "last.safetensors"), load_file(other / "last.safetensors")
    assert ours.keys() == theirs.keys()
    flat, expected = (torch.cat([state[name].flatten().double() for name in sorted(state)]) for state in (ours, theirs))
    return float((flat - expected).norm() / expected.norm())


def command(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def wait_for_file(path: Path, process: "subprocess.Popen[str]") -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)

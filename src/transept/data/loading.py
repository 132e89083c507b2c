"""Batches whose contents depend on the seed, the epoch and nothing else.

Each sample draws its augmentation from a generator seeded by (seed, epoch, index). So neither the number of workers
nor an interruption changes what a run sees, and no random state has to be saved.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from transept.data.sets import ImageSet


class Draw(NamedTuple):
    """Which sample, and the seed of its augmentation."""

    sample: int
    seed: int


class EpochSampler(Sampler[Draw]):
    """Shuffles anew in each epoch; can start inside one, after `start_batch` batches that were seen already."""

    def __init__(self, length: int, *, seed: int, batch_size: int, start_epoch: int = 0, start_batch: int = 0) -> None:
        self.length = length
        self.seed = seed
        self.epoch = self.start_epoch = start_epoch
        self.skip = start_batch * batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Draw]:
        generator = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
        order = generator.permutation(self.length)
        seeds = generator.integers(2**63, size=self.length)
        skip = self.skip if self.epoch == self.start_epoch else 0
        for index, seed in zip(order[skip:], seeds[skip:], strict=True):
            yield Draw(int(index), int(seed))


class TransformedSet(Dataset[tuple[Tensor, int]]):
    """Pictures through a transform; takes plain indices, or `Draw`s that fix its randomness."""

    def __init__(self, images: ImageSet, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | Draw) -> tuple[Tensor, int]:
        if isinstance(key, int):
            picture, label = self.images[key]
            return self.transform(picture), label
        picture, label = self.images[key.sample]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key.seed)
            return self.transform(picture), label


def make_loader(
    dataset: TransformedSet, batch_size: int, *, sampler: EpochSampler | None = None, workers: int = 0
) -> DataLoader:
    """Training batches, all of one size, where a sampler is given; else every sample once and in order."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        drop_last=sampler is not None and len(dataset) >= batch_size,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )

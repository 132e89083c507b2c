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
    """Shuffled passes over a set, one after another, cut into epochs.

    An epoch is one pass, or `draws` samples: as many as lie between two evaluations of a run that counts iterations.
    It can start inside an epoch, after `start_batch` batches that were seen already.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        batch_size: int,
        draws: int | None = None,
        start_epoch: int = 0,
        start_batch: int = 0,
    ) -> None:
        self.length = length
        self.draws = length if draws is None else draws
        self.seed = seed
        self.epoch = self.start_epoch = start_epoch
        self.skip = start_batch * batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.draws

    def __iter__(self) -> Iterator[Draw]:
        first = self.epoch * self.draws
        skip = self.skip if self.epoch == self.start_epoch else 0
        number, place = divmod(first + skip, self.length)
        left = self.draws - skip
        while left > 0:
            generator = np.random.Generator(np.random.PCG64([self.seed, number]))
            order = generator.permutation(self.length)
            seeds = generator.integers(2**63, size=self.length)
            for index, seed in zip(order[place : place + left], seeds[place : place + left], strict=True):
                yield Draw(int(index), int(seed))
            left -= self.length - place
            number, place = number + 1, 0


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

"""Batches whose contents depend on the seed, the epoch and nothing else.

Each sample draws its augmentation from a generator seeded by (seed, epoch, index). So neither the number of workers
nor an interruption changes what a run sees, and no random state has to be saved.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

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

    With `repeats` (repeated augmentation, Hoffer et al. 2020, as DeiT has it) each sample stands that often in a row,
    every time with another augmentation, and a pass, which keeps its length, has fewer different samples.
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
        repeats: int = 1,
    ) -> None:
        self.repeats = repeats
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
            order = order.repeat(self.repeats)[: self.length]
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
        with _seeded(key.seed):
            return self.transform(picture), label


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """All three global generators start at `seed`, for timm draws from any, and afterwards go on as before."""
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


class JointlyTransformedSet(Dataset[Any]):
    """Pictures with masks or boxes, transformed together; takes plain indices or `Draw`s as `TransformedSet` does."""

    def __init__(self, samples: Sequence[tuple[Any, ...]], transform: Callable[..., Any]) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | Draw) -> Any:
        if isinstance(key, int):
            return self.transform(*self.samples[key])
        sample = self.samples[key.sample]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key.seed)
            return self.transform(*sample)


class AspectRatioBatchSampler(Sampler[list[Draw]]):
    """Batches of wide or of tall pictures, so that little of a batch is padding; shuffled as `EpochSampler` does.

    Pictures that fill no batch of their shape are batched together at the end; fewer than a batch are left over.
    Resumes inside an epoch, after `start_batch` batches, as `EpochSampler` does.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        *,
        seed: int,
        batch_size: int,
        start_epoch: int = 0,
        start_batch: int = 0,
    ) -> None:
        """`sizes`: height and width of each picture."""
        self.wide = [width > height for height, width in sizes]
        self.batch_size = batch_size
        self.draws = EpochSampler(len(sizes), seed=seed, batch_size=batch_size)
        self.epoch = self.start_epoch = start_epoch
        self.start_batch = start_batch

    @property
    def sampler(self) -> "AspectRatioBatchSampler":
        """Of a batch sampler, Lightning tells only the sampler inside which epoch it is."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.wide) // self.batch_size or min(len(self.wide), 1)

    def __iter__(self) -> Iterator[list[Draw]]:
        self.draws.epoch = self.epoch
        self.draws.skip = 0
        skip = self.start_batch if self.epoch == self.start_epoch else 0
        yield from itertools.islice(self._batches(), skip, None)

    def _batches(self) -> Iterator[list[Draw]]:
        waiting: dict[bool, list[Draw]] = {True: [], False: []}
        made = 0
        for draw in self.draws:
            batch = waiting[self.wide[draw.sample]]
            batch.append(draw)
            if len(batch) == self.batch_size:
                yield list(batch)
                made += 1
                batch.clear()
        rest = waiting[True] + waiting[False]
        if made < len(self):
            yield rest[: self.batch_size]


def make_joint_loader(
    dataset: JointlyTransformedSet,
    batch_size: int,
    *,
    sampler: EpochSampler | AspectRatioBatchSampler | None = None,
    workers: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader:
    """As `make_loader`; `collate` makes a batch of samples whose sizes differ."""
    options: dict[str, Any] = dict(
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )
    if isinstance(sampler, AspectRatioBatchSampler):
        return DataLoader(dataset, batch_sampler=sampler, **options)
    drop_last = sampler is not None and len(dataset) >= batch_size
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, drop_last=drop_last, **options)


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

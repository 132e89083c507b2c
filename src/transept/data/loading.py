"""Batches whose contents depend on the seed, the epoch and nothing else.

Each sample draws its augmentation from a generator seeded by (seed, epoch, index). So neither the number of workers
nor an interruption changes what a run sees, and no random state has to be saved.
"""

import itertools
import random
import re
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from transept.data.classification.image_set import ImageSet
from transept.data.classification.transforms import RandomResizedCrop, Undecoded
from transept.data.images import BadImageError
from transept.errors import TranseptError, TranseptWarning


class Draw(NamedTuple):
    """The number of a sample, and the seed of its augmentation."""

    sample: int
    seed: int


class EpochSampler(Sampler[Draw]):
    """Shuffled passes over a set, one after another, cut into epochs.

    An epoch is one pass, or `draws` samples: as many as lie between two evaluations of a run that counts iterations.
    It can start inside an epoch, after `start_batch` batches that were seen already.

    With `repeats` (repeated augmentation, Hoffer et al. 2020, as DeiT has it) each sample stands that often in a row,
    every time with another augmentation, and a pass, which keeps its length, has fewer different samples.

    With `weights` a pass draws its samples with replacement, each with its share of them, as torch's
    `WeightedRandomSampler` does.

    Of `world_size` processes each takes every `world_size`-th draw, so the batches that they compute together are those
    of one process whose batch is as large as all of theirs, and repeats of a sample go to different processes. All of
    them get equally many draws; the few that are left over at the end of an epoch go to none.
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
        weights: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`length` and `draws` are of all processes together, `batch_size` is of one."""
        self.length = length
        self.weights = None if weights is None else weights / weights.sum()
        self.draws = length if draws is None else draws
        self.seed = seed
        self.repeats = repeats
        self.rank = rank
        self.world_size = world_size
        self.epoch = self.start_epoch = start_epoch
        self.skip = start_batch * batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.draws // self.world_size

    def __iter__(self) -> Iterator[Draw]:
        skip = self.skip if self.epoch == self.start_epoch else 0
        mine = itertools.islice(self._all(skip * self.world_size), self.rank, None, self.world_size)
        yield from itertools.islice(mine, len(self) - skip)

    def _all(self, skip: int) -> Iterator[Draw]:
        """The epoch's draws of all processes."""
        number, place = divmod(self.epoch * self.draws + skip, self.length)
        left = self.draws - skip
        while left > 0:
            generator = np.random.Generator(np.random.PCG64([self.seed, number]))
            order = (
                generator.permutation(self.length)
                if self.weights is None
                else generator.choice(self.length, self.length, p=self.weights)
            )
            seeds = generator.integers(2**63, size=self.length)
            order = order.repeat(self.repeats)[: self.length]
            for index, seed in zip(order[place : place + left], seeds[place : place + left], strict=True):
                yield Draw(int(index), int(seed))
            left -= self.length - place
            number, place = number + 1, 0


class Samples(Dataset[Any]):
    """Fetched by the batch, so that an error leaves a worker process as a value: torch would turn it into text."""

    def __getitems__(self, keys: Sequence[int | Draw]) -> list[Any] | TranseptError:
        try:
            return [self[key] for key in keys]
        except TranseptError as error:
            return error


class _Loader(DataLoader):
    def __iter__(self) -> Any:
        reason = ""
        try:
            for batch in super().__iter__():
                if isinstance(batch, TranseptError):
                    raise batch
                yield batch
        except TranseptError:
            # Its processes end here, with its last reference. The error's traceback may lead back to this loader, and
            # in such a circle Python's collector waits five seconds for each of them (torch 2.15).
            self._iterator = None
            raise
        except RuntimeError as error:
            if not re.search(r"DataLoader worker .*(killed|exited)", str(error)):
                raise
            self._iterator = None
            reason = " ".join(str(error).split())[:120]
        if reason:  # not as the cause's consequence, whose traceback holds the processes
            raise TranseptError(
                f"a process that prepares batches was killed ({reason}), mostly for want of memory; lower "
                f"workers={self.num_workers}"
            )


def _collated(samples: list[Any] | TranseptError, collate: Callable[[list[Any]], Any]) -> Any:
    return samples if isinstance(samples, TranseptError) else collate(samples)


class TransformedSet(Samples):
    """Pictures through a transform; takes plain indices, or `Draw`s that fix its randomness."""

    def __init__(self, images: ImageSet, transform: Callable[[Any], Tensor], *, fast_decode: bool = False) -> None:
        """`fast_decode`: for a `Draw`, files of a set that is not kept in memory are decoded no larger than the random
        crop, the transform's first step, needs. Of JPEGs the result differs a little from that of the whole picture; of
        files of more than 8 bits or of bands it is the same.
        """
        self.images = images
        self.transform = transform
        first = next(iter(getattr(transform, "transforms", ())), None)
        self.fast_decode = fast_decode and isinstance(first, RandomResizedCrop) and not images.small

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | Draw) -> tuple[Tensor, Any]:
        if isinstance(key, int):
            picture, label = self.images[key]
            return self.transform(picture), label
        for sample in range(key.sample, key.sample + len(self)):
            try:
                return self._drawn(sample % len(self), key.seed)
            except BadImageError as error:
                if not self.images.skips_bad_images:
                    raise
                warnings.warn(f"{error}; the next picture is taken instead", TranseptWarning, stacklevel=2)
        raise TranseptError("none of the training pictures is readable")

    def _drawn(self, index: int, seed: int) -> tuple[Tensor, Any]:
        with _seeded(seed):
            if self.fast_decode:
                picture: Any = Undecoded(partial(self.images.read, index))
                return self.transform(picture), self.images.label(index)
            picture, label = self.images[index]
            return self.transform(picture), label


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """All three global generators start at `seed`, for timm draws from any, and afterwards go on as before."""
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the GPUs, too, and until they are in use keep a traceback of each call.
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


class JointlyTransformedSet(Samples):
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
        with _seeded(key.seed):
            return self.transform(*sample)


def repeat_factors(classes_of: Sequence[Sequence[int]], threshold: float) -> np.ndarray:
    """How often each picture is to be drawn, 1 or more, so that rare classes are seen more often.

    Gupta et al., "LVIS", arXiv 1908.03195, Section 5.2: of a class in the share f of all pictures max(1, sqrt(t / f)),
    and of a picture the largest of its classes'.

    Args:
        classes_of: the classes of each picture, each once.
        threshold: t, the share below which a class is rare.
    """
    counts = Counter(label for classes in classes_of for label in classes)
    factors = {label: max(1.0, (threshold * len(classes_of) / count) ** 0.5) for label, count in counts.items()}
    return np.array([max((factors[label] for label in classes), default=1.0) for classes in classes_of])


class AspectRatioBatchSampler(Sampler[list[Draw]]):
    """Batches of wide or of tall pictures, so that little of a batch is padding; shuffled as `EpochSampler` does.

    Pictures that fill no batch of their shape are batched together at the end; fewer than a batch are left over.
    Resumes inside an epoch, after `start_batch` batches, as `EpochSampler` does. Of `world_size` processes each takes
    every `world_size`-th batch, all of them equally many.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        *,
        seed: int,
        batch_size: int,
        start_epoch: int = 0,
        start_batch: int = 0,
        weights: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`sizes`: height and width of each picture; `batch_size` and `start_batch` are of one process."""
        self.wide = [width > height for height, width in sizes]
        self.batch_size = batch_size
        self.draws = EpochSampler(len(sizes), seed=seed, batch_size=batch_size, weights=weights)
        self.epoch = self.start_epoch = start_epoch
        self.start_batch = start_batch
        self.rank = rank
        self.world_size = world_size

    @property
    def sampler(self) -> "AspectRatioBatchSampler":
        """Lightning tells the epoch only to the sampler inside a batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._whole() // self.world_size

    def __iter__(self) -> Iterator[list[Draw]]:
        self.draws.epoch = self.epoch
        self.draws.skip = 0
        skip = self.start_batch if self.epoch == self.start_epoch else 0
        mine = itertools.islice(self._batches(), self.rank, None, self.world_size)
        yield from itertools.islice(mine, skip, len(self))

    def _whole(self) -> int:
        """Batches of all processes."""
        return len(self.wide) // self.batch_size or min(len(self.wide), 1)

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
        if made < self._whole():
            yield rest[: self.batch_size]


def evaluation_batches(length: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """Indices of one process' batches: each sample is in one batch of one process, and nothing is padded.

    All processes have equally many batches, for those of a model with buffers wait for each other at each one; only
    where there are fewer samples than processes have some of them none. Sums over all processes are therefore exact.
    """
    if world_size == 1:
        return [list(range(first, min(first + batch_size, length))) for first in range(0, length, batch_size)]
    count = -(-length // (batch_size * world_size))
    mine = np.arange(rank, length, world_size)
    return [part.tolist() for part in np.array_split(mine, max(count, 1)) if len(part)]


def _ignore_ctrl_c(worker: int) -> None:
    """A terminal sends it to all processes; the one that trains has batches to finish first, and then ends these."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_loader(
    dataset: TransformedSet | JointlyTransformedSet,
    batch_size: int,
    *,
    sampler: EpochSampler | AspectRatioBatchSampler | None = None,
    workers: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Training batches, all of one size, where a sampler is given; else every sample once and in order.

    `batch_size` is of one process; `rank` and `world_size` are those of evaluation: see `evaluation_batches`.
    `collate` makes a batch of samples whose sizes differ.
    """
    options: dict[str, Any] = dict(workers=workers, collate=collate or default_collate)
    if sampler is None:
        batches = evaluation_batches(len(dataset), batch_size, rank=rank, world_size=world_size)
        return batch_loader(dataset, batch_sampler=batches, **options)
    if isinstance(sampler, AspectRatioBatchSampler):
        return batch_loader(dataset, batch_sampler=sampler, **options)
    drop_last = len(sampler) >= batch_size
    return batch_loader(dataset, batch_size=batch_size, sampler=sampler, drop_last=drop_last, **options)


def batch_loader(samples: Samples, *, workers: int, collate: Callable[[list[Any]], Any], **batches: Any) -> DataLoader:
    """torch's loader with batches as its arguments say, from so many processes.

    Raises on iteration:
        TranseptError: a sample's own, or a process was killed.
    """
    return _Loader(
        samples,
        num_workers=workers,
        collate_fn=partial(_collated, collate=collate),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=_ignore_ctrl_c if workers else None,
        **batches,
    )

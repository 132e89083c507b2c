"""Pictures to inputs of a model, in other processes, and inputs to batches of one shape."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from transept.data.images import BadImageError, Picture, read_image, size_of
from transept.data.loading import Samples, batch_loader
from transept.data.reading import Reading
from transept.errors import TranseptError
from transept.labelling.pictures import Pictures
from transept.tasks.task import warned_of_dark

_WAITING = 4
"""Batches' worth of inputs that may wait for others of their shape."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some pictures of one shard, read. It is no tuple, for beside a GPU torch makes lists of all that is in one."""

    numbers: range
    sizes: dict[int, tuple[int, int]]
    """Height and width of each, but of bad ones."""
    errors: dict[int, str]
    """What is wrong with bad ones."""
    groups: list[tuple[list[int], Tensor]]
    """Inputs `b c H W` of each shape, and their numbers."""


class Inputs(Samples):
    """Reads pictures and makes inputs of them; picklable, and without the model."""

    def __init__(self, pictures: Pictures, reading: Reading, make: Callable[[Picture], Tensor]) -> None:
        self._pictures = pictures
        self._reading = reading
        self._make = make
        self._warns_of_dark = True

    def __getitems__(self, numbers: Sequence[Any]) -> Any:
        assert isinstance(numbers, range)
        chunk, groups = Chunk(numbers, {}, {}, []), defaultdict(list)
        for number in numbers:
            try:
                picture = self._read(number)
                made = self._make(picture)
            except TranseptError as error:
                chunk.errors[number] = error.reason if isinstance(error, BadImageError) else str(error)
                continue
            width, height = size_of(picture)
            chunk.sizes[number] = height, width
            groups[made.shape].append((number, made))
        for same in groups.values():
            some, inputs = zip(*same, strict=True)
            # As `torch.stack`, but in a reader's process right into the memory that is shared with the model's.
            chunk.groups.append((list(some), default_collate(list(inputs))))
        return chunk

    def _read(self, number: int) -> Picture:
        source, name = self._pictures.source(number), self._pictures.path(number)
        picture = read_image(source, name=name, reading=self._reading)
        if self._warns_of_dark:
            self._warns_of_dark = not warned_of_dark(picture, source, name=name, reading=self._reading)
        return picture

    def chunks(self, shards: Sequence[range], size: int, *, workers: int) -> Iterator[Chunk]:
        """All numbers of the shards in order, so many at a time and never of two shards, from so many processes."""
        parts = [shard[first : first + size] for shard in shards for first in range(0, len(shard), size)]
        yield from batch_loader(self, workers=workers, collate=_whole, batch_sampler=parts)


def _whole(chunk: Any) -> Any:
    return chunk


class Batches:
    """Inputs wait here for others of their shape. The same inputs in the same order make the same batches."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: dict[torch.Size, list[tuple[list[int], Tensor]]] = defaultdict(list)

    def add(self, numbers: list[int], inputs: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        """Inputs `b c H W` of one shape; gives the batches that are full now."""
        waiting = self._waiting[inputs.shape[1:]]
        waiting.append((numbers, inputs))
        while sum(len(some) for some, _ in waiting) >= self._size:
            some, batch = _joined(waiting)
            waiting[:] = [(some[self._size :], batch[self._size :])] if len(some) > self._size else []
            yield some[: self._size], batch[: self._size]
        while self._count() > _WAITING * self._size:
            yield self._take(max(self._waiting, key=lambda shape: sum(len(some) for some, _ in self._waiting[shape])))

    def rest(self) -> Iterator[tuple[list[int], Tensor]]:
        """Gives all that waits."""
        for shape in [shape for shape, waiting in self._waiting.items() if waiting]:
            yield self._take(shape)

    def _count(self) -> int:
        return sum(len(some) for waiting in self._waiting.values() for some, _ in waiting)

    def _take(self, shape: torch.Size) -> tuple[list[int], Tensor]:
        return _joined(self._waiting.pop(shape))


def _joined(waiting: Sequence[tuple[list[int], Tensor]]) -> tuple[list[int], Tensor]:
    if len(waiting) == 1:
        return waiting[0]
    return [number for some, _ in waiting for number in some], torch.cat([inputs for _, inputs in waiting])

"""Several batches at once, each on a part of the cores.

Where one batch is computed by all cores, all of them wait at the end of each operation for the one that a reader of
pictures, or another program, took away. Streams wait for nobody: two cores labelled 1.2 times as many pictures.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

import torch

T = TypeVar("T")
_MOST = 4


def streams_for(task: torch.nn.Module, form: str, batch_size: int) -> int:
    """How many batches at once: a divisor of the threads that torch has, or one.

    One on other devices than the processor, and for forms whose threads were settled when they were compiled.
    """
    threads = torch.get_num_threads()
    if next(task.parameters()).device.type != "cpu" or form not in ("eager", "fused"):
        return 1
    return max(n for n in range(1, _MOST + 1) if threads % n == 0 and n <= batch_size)


class Streams(Generic[T]):
    """Calls in threads of their own, whose results come in the order of the calls; to be used in a `with`."""

    def __init__(self, count: int) -> None:
        self._threads = torch.get_num_threads()
        self._count = count
        self._pool = ThreadPoolExecutor(count, "stream", torch.set_num_threads, (self._threads // count,))
        self._waiting: deque[Future[T]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads)  # which each stream has set for threads to come

    def call(self, work: Callable[[], T]) -> Iterator[T]:
        """Have this done; gives what was done before, and waits for that once each stream has its next call."""
        if self._count == 1:
            yield work()
            return
        self._waiting.append(self._pool.submit(work))
        while len(self._waiting) > 2 * self._count or (self._waiting and self._waiting[0].done()):
            yield self._waiting.popleft().result()

    def rest(self) -> Iterator[T]:
        """Gives all that is still to come."""
        while self._waiting:
            yield self._waiting.popleft().result()

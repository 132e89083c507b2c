"""Timings of one thing beside another."""

import time
from collections.abc import Callable, Sequence

import torch

_WARM_UP = 2


def take_turns(calls: Sequence[Callable[[], object]], device: torch.device, repetitions: int) -> list[list[float]]:
    """The seconds of each call, in every turn after those that warm up.

    A turn begins when the threads of the one before have gone to sleep, with a call that is not counted: each is timed
    as in a process of its own, where it follows itself.
    """
    times = [[] for _ in calls]
    for turn in range(_WARM_UP + repetitions):
        for call, series in zip(calls, times, strict=True):
            _wait_for_threads()
            call()
            seconds = _seconds(call, device)
            if turn >= _WARM_UP:
                series.append(seconds)
    return times


def _wait_for_threads() -> None:
    """Wait until this process computes no more, a second at the most.

    Threads of a pool look for work for a while before they sleep, libgomp's for 10 ms and onnxruntime's for 40: on the
    cores of whoever comes next, which then takes up to twice as long.
    """
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        before = time.process_time()
        time.sleep(0.01)
        if time.process_time() - before < 0.001:
            return


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started

"""Batches side by side: the same rows, in order, and the process has its threads back."""

import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.labelling.small import classifier, label, rows, write_pictures
from transept.errors import TranseptError
from transept.labelling.streams import Streams, streams_for


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order(four_threads: None):
    meeting = threading.Barrier(2)

    def work(number: int) -> tuple[int, int, str]:
        meeting.wait(timeout=60)  # which two calls have to reach at once
        return number, torch.get_num_threads(), threading.current_thread().name

    with Streams(2) as streams:
        results = [result for number in range(6) for result in streams.call(partial(work, number))]
        results += streams.rest()
    assert [number for number, _, _ in results] == list(range(6))
    assert {threads for _, threads, _ in results} == {2}
    assert len({name for _, _, name in results}) == 2
    assert torch.get_num_threads() == 4
    later = []
    thread = threading.Thread(target=lambda: later.append((torch.ones(9).sum().item(), torch.get_num_threads())))
    thread.start()
    thread.join()
    assert later == [(9, 4)], "threads that begin later"


def test_errors_are_raised_where_results_are_taken(four_threads: None):
    def work() -> None:
        raise TranseptError("no answer")

    with pytest.raises(TranseptError, match="no answer"):  # noqa: SIM117 - it is raised through the streams
        with Streams(2) as streams:
            assert list(streams.call(work)) + list(streams.rest()) == []
    assert torch.get_num_threads() == 4


def test_how_many(four_threads: None):
    model = nn.Linear(1, 1)
    assert [streams_for(model, "fused", size) for size in (1, 2, 3, 32)] == [1, 2, 2, 4]
    assert streams_for(model, "compiled", 32) == 1
    assert streams_for(nn.Linear(1, 1, device="meta"), "fused", 32) == 1
    torch.set_num_threads(3)
    assert streams_for(model, "eager", 32) == 3


@pytest.mark.parametrize("form", ["eager", "fused"])
def test_rows_are_those_of_one_stream(four_threads: None, tmp_path: Path, form: str):
    task, found = classifier(), []
    write_pictures(tmp_path / "in")
    for threads in (4, 1):
        torch.set_num_threads(threads)
        inference, folder = task.inference(top=2, batch_size=8), tmp_path / str(threads)
        label(task, tmp_path / "in", folder, inference, form=form, dtype="float32", rows=9)
        found.append(rows(folder))
    assert len(found[0]) == len(found[1]) == 25
    for a, b in zip(*found, strict=True):
        assert {k: v for k, v in a.items() if "score" not in k} == {k: v for k, v in b.items() if "score" not in k}
        assert [v for k, v in a.items() if "score" in k] == pytest.approx(
            [v for k, v in b.items() if "score" in k], abs=1e-5
        )

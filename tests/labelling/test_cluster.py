"""The same rows by Ray, with the real package; without it one sentence."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import fails
from tests.labelling.small import classifier, label, rows, segmenter, write_pictures
from transept.cli.main import main
from transept.errors import TranseptError, UsageError
from transept.extras import install
from transept.labelling.job import plan_job
from transept.labelling.pictures import find_pictures

pytest.importorskip("pyarrow")


@pytest.fixture
def cluster() -> Iterator[Any]:
    """One for all jobs of a test, for each start takes seconds."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield ray
    ray.shutdown()


def _kill_a_writer() -> None:
    """One of the processes below this one that hold a model."""
    psutil = pytest.importorskip("psutil")
    writers = [each for each in psutil.Process().children(recursive=True) if "MapWorker" in " ".join(each.cmdline())]
    assert writers
    writers[0].kill()


@pytest.mark.slow
def test_the_same_rows_also_when_a_process_is_killed(tmp_path: Path, cluster: Any):
    from transept.labelling.cluster import write_shards_on_ray

    write_pictures(tmp_path / "in")
    pictures = find_pictures([str(tmp_path / "in")])
    for task in (classifier(), segmenter()):
        inference = task.inference()
        here, there = tmp_path / task.name, tmp_path / f"{task.name}-ray"
        label(task, tmp_path / "in", here, inference, rows=2)
        job, missing = plan_job(task, pictures, there, inference, form="eager", rows=2)
        done: list[int] = []

        def count(number: int, done: list[int] = done) -> None:
            done.append(number)
            if len(done) == 1:
                _kill_a_writer()

        write_shards_on_ray(job, missing, processes=2, workers=0, done=count)
        assert sorted(done) == [1] + [2] * 12
        assert rows(there) == rows(here)


@pytest.mark.slow
def test_what_goes_wrong_there_is_said_here(tmp_path: Path, cluster: Any):
    from transept.labelling.cluster import write_shards_on_ray

    write_pictures(tmp_path / "in")
    task = classifier()
    job, missing = plan_job(task, find_pictures([str(tmp_path / "in")]), tmp_path / "out", task.inference(), rows=6)
    with pytest.raises(UsageError, match="--processes 3, and the Ray cluster has 2 CPUs; give at most 2"):
        write_shards_on_ray(job, missing, processes=3)
    job.plan.file(3).mkdir()
    with pytest.raises(TranseptError, match=r"cannot write .*part-00003.parquet.*nothing saved before is lost"):
        write_shards_on_ray(job, missing, processes=1)


@pytest.mark.slow
def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    pytest.importorskip("ray.data")
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "in")
    classifier().save("run.safetensors")
    job = ["predict", "run.safetensors", "in", "--engine", "ray", "--workers", "1"]
    assert main([*job, "--out", "parquet:out"]) == 0
    assert capfd.readouterr().out == "out: 25 rows in 1 shards, 1 of them of pictures that could not be read\n"
    assert main(["predict", "run.safetensors", "in", "--out", "parquet:here", "--workers", "0"]) == 0
    assert rows(Path("out")) == rows(Path("here"))


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    write_pictures(tmp_path / "in")
    classifier().save("run.safetensors")
    argv = ["predict", "run.safetensors", "in", "--out", "parquet:out", "--engine", "ray", "--form", "eager"]
    said = fails(capsys, argv, 2)
    assert said == f"transept: --engine ray needs the package 'ray': {install('cluster')}"
    assert main([*argv[:-4], "--form", "eager", "--resume"]) == 0, "nothing stands in the way of going on without it"

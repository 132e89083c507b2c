"""`predict --out parquet:FOLDER` and `features`, as people type them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import transept
from tests.helpers import NAMES, build, ctrl_c, fails
from tests.labelling.small import BAD, classifier, rows, segmenter, write_pictures
from transept.cli.main import main
from transept.cli.shared import labelling
from transept.data.classification.transforms import Preprocessing
from transept.extras import install
from transept.models.backbone import Backbone
from transept.tasks.pretrain import FeatureExtractor

pytest.importorskip("pyarrow")
QUICK = ["--form", "eager", "--workers", "0"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A trained file beside a folder of pictures, `in`."""
    monkeypatch.chdir(tmp_path)
    classifier().save("run.safetensors")
    write_pictures(Path("in"))
    return "run.safetensors"


def test_predict_in_shards(run: str, capsys: pytest.CaptureFixture[str]):
    argv = ["predict", run, "in", "--out", "parquet:out", "--top", "2", "--rows", "10", *QUICK]
    assert main([*argv, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said.pop("rate") > 0
    assert said == {
        "model": run, "out": "out", "pictures": 25, "rows": 25, "bad": 1, "shards": 3, "stopped": False
    }  # fmt: skip
    (answer,) = transept.predict(run, "in/003.png", top=2)
    found = rows(Path("out"))
    assert found[3]["score_2"] == pytest.approx(float(answer.scores[1]), abs=1e-5)
    assert found[BAD]["error"] == "is no picture of a known format"
    assert "holds rows already" in fails(capsys, argv, 2)
    unseen = ["predict", "absent.safetensors", *argv[2:]]
    assert "holds rows already" in fails(capsys, unseen, 2), "before a model is loaded"
    Path("out/part-00002.parquet").unlink()
    assert main([*argv, "--resume"]) == 0
    out, err = capsys.readouterr()
    assert out == "out: 25 rows in 3 shards, 1 of them of pictures that could not be read\n"
    assert "2 of 3 shards are in 'out' already" in err
    assert rows(Path("out")) == found


def test_ctrl_c_keeps_what_is_written(run: str, capsys: pytest.CaptureFixture[str]):
    argv = ["predict", run, "in", "--out", "parquet:out", "--batch-size", "2", "--rows", "10", *QUICK]
    with ctrl_c(Backbone, 9, training=False):
        assert main(argv) == 130
    out, err = capsys.readouterr()
    assert out.startswith("out: 10 rows in 1 shards")
    assert "stopped: 1 of 3 shards are written; --resume goes on with the rest" in err
    assert main([*argv, "--resume"]) == 0
    assert [row["path"] for row in rows(Path("out"))] == [f"in/{i:03d}.png" for i in range(25)]


def test_progress_is_said_where_no_bar_can_be(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(labelling, "_QUIET_SECONDS", 0)
    assert main(["predict", run, "in", "--out", "parquet:out", "--batch-size", "5", *QUICK]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "pictures, " in line]
    done = [int(line.split(" of ")[0]) for line in lines]
    assert done[-1] == 25
    assert done == sorted(done)
    assert all(" of 25 pictures, " in line and line.endswith(" left") for line in lines)
    assert lines[-1].endswith("a second, 0:00 left")


def test_wrong_calls(run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    segmenter().save("segmenter.safetensors")
    predict = ["predict", run, "in"]
    for argv, code, said in (
        ([*predict, "--resume"], 2, "--resume is for --out parquet:FOLDER; give that, too, or leave it out"),
        ([*predict, "--out", "t.csv", "--rows", "9"], 2, "--rows is for --out parquet:FOLDER"),
        ([*predict, "--out", "parquet:"], 2, "--out parquet: lacks the folder; give parquet:FOLDER"),
        ([*predict, "--out", "parquet:o", "--rows", "0"], 2, "--rows=0 must be"),
        ([*predict, "--out", "parquet:o", "--workers", "-1"], 2, "--workers=-1 must not be negative"),
        ([*predict, "--out", "parquet:o", "--processes", "2"], 2, "--processes is for --engine ray"),
        ([*predict, "--out", "parquet:o", "--no-sheet"], 2, "--no-sheet has no sense with --out parquet:o"),
        ([*predict, "--out", "parquet:o", "--every", "2"], 2, "--every has no sense with --out parquet:o"),
        ([*predict, "--out", "parquet:o", "--form", "eager", "--dtype", "float32"], 2, "--dtype is for --form fused"),
        ([*predict, "--out", "parquet:o", "--score", "0.5"], 2, "--score is for detectors"),
        (["predict", run, "none*", "--out", "parquet:o"], 1, "no file matches 'none*'"),
        (["features", run, "in", "--out", "o.csv"], 2, "features are written as Parquet; give --out parquet:FOLDER"),
        (["features", run, "in", "--out", "parquet:o", "--level", "2"], 2, "level=2: the model has 2 levels; give 0"),
        (["features", run, "in", "--out", "parquet:o", "--level", "1", "--pool", "avg"], 2, "is of the last layer"),
        (["features", "segmenter.safetensors", "in", "--out", "parquet:o"], 1, "is a segmenter, whose"),
    ):  # fmt: skip
        assert said in fails(capsys, argv, code), argv
    assert not Path("o").exists()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert install("data") in fails(capsys, [*predict, "--out", "parquet:o", *QUICK], 2)


def features(capsys: pytest.CaptureFixture[str], *argv: str) -> list[Any]:
    out = Path(f"out{len(list(Path().glob('out*')))}")
    code = main(["features", *argv, "in", "--out", f"parquet:{out}", *QUICK])
    assert code == 0, capsys.readouterr().err
    return [row["features"] for row in rows(out)]


def test_features_are_what_the_classifier_reads(run: str, capsys: pytest.CaptureFixture[str]):
    task = classifier()
    task = type(task).load(run)
    make = task.input_of()
    inputs = torch.stack([make(Image.open(f"in/{i:03d}.png")) for i in range(25) if i != BAD])
    with torch.inference_mode():
        tokens = task.model.forward_features(inputs)
        (level,) = task.model.forward_intermediates(inputs, [0], intermediates_only=True)
    for argv, expected in (
        ([], tokens[:, 0]),
        (["--pool", "token"], tokens[:, 0]),
        (["--pool", "avg", "--batch-size", "3"], tokens[:, 1:].mean(dim=1)),
        (["--level", "0"], level.mean(dim=(2, 3))),
    ):
        found = features(capsys, run, *argv)
        assert found.pop(BAD) is None
        np.testing.assert_allclose(np.array(found), expected.numpy(), atol=1e-5)
    capsys.readouterr()
    assert main(["features", run, "in", "--out", "parquet:out0", "--level", "0", "--resume", *QUICK]) == 2
    assert "was begun with level=None, and now it is 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_every_family_has_features_of_every_level(name: str):
    model = build(name)
    task = FeatureExtractor(model, Preprocessing(img_size=(64, 64))).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model.head(task(images)), model(images)) or name.startswith("crossvit")
        for level in range(-1, model.num_levels):
            task.read_from(level=level)
            assert task(images).shape == (2, model.feature_info[level]["num_chs"])
    for pool in filter(None, model.global_pools):
        task.read_from(pool=pool)
        with torch.inference_mode():
            assert len(task(images)) == 2


def test_what_knows_no_classes_is_sent_to_features(run: str, capsys: pytest.CaptureFixture[str]):
    task = classifier()
    FeatureExtractor(transept.create_model("cait_xxs24_224", num_classes=0, img_size=32, depth=1),
                     task.preprocessing).save("pre.safetensors")  # fmt: skip
    said = fails(capsys, ["predict", "pre.safetensors", "in", "--out", "parquet:o", *QUICK])
    assert "write its features with 'transept features'" in said
    assert len(features(capsys, "pre.safetensors")[0]) == 192


def test_one_job_at_a_time(run: str, capsys: pytest.CaptureFixture[str]):
    argv = ["predict", run, "in", "--out", "parquet:out", *QUICK]
    script = "import sys; from pathlib import Path; from transept.labelling.plan import claim\n"
    script += "with claim(Path('out'), resume=False):\n    print('mine', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"mine\n"
        assert main(argv) == 2
        assert "another process is writing to 'out'; wait for it, or give another folder" in capsys.readouterr().err
        other.kill()
    assert main(argv) == 0

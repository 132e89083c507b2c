"""Exported classifiers and segmenters give the model's logits for any number of pictures."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.export.small import a_classifier
from tests.helpers import BACKBONES, build, fails
from transept.cli.main import main
from transept.data.classification.transforms import Preprocessing
from transept.data.segmentation.transforms import SegmentationPreprocessing
from transept.errors import TranseptError, UsageError
from transept.export.logits import export_logits
from transept.export.onnx import METADATA, Run, onnx_runner, pt2_runner
from transept.tasks.classify import Classifier
from transept.tasks.segment import METHODS, create_segmenter
from transept.weights.load import create_model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def read_onnx(path: Path) -> tuple[dict[str, Any], Run]:
    about = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map[METADATA]
    return json.loads(about), onnx_runner(path)


def read_pt2(path: Path) -> tuple[dict[str, Any], Run]:
    extra = {f"{METADATA}.json": ""}
    torch.export.load(path, extra_files=extra)
    return json.loads(extra[f"{METADATA}.json"]), pt2_runner(path)


READERS = {"onnx": read_onnx, "pt2": read_pt2}


def test_an_export_that_takes_too_long_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a_classifier().save(str(tmp_path / "best.safetensors"))
    words = ["export", str(tmp_path / "best.safetensors"), "--out", str(tmp_path / "out"), "--format", "pt2"]
    assert "the export took longer than --timeout 0.2 seconds and was stopped; nothing was written" in fails(
        capsys, [*words, "--timeout", "0.2"]
    )
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [tmp_path / "best.safetensors"]
    for wrong in ("0", "-1", "nan", "inf"):
        assert f"--timeout {wrong} must be greater than 0" in fails(capsys, [*words, f"--timeout={wrong}"], 2)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the processor time of another process")
def test_a_long_export_is_never_silent_for_long(tmp_path: Path):
    """A sign of life every ten seconds, also while compiled code is at work: in its processor time, which stands still
    where other work takes the machine.
    """
    model = create_model("cait_xxs24_224", num_classes=10)
    Classifier(model, [str(i) for i in range(10)], Preprocessing(img_size=(224, 224))).save(tmp_path / "a.safetensors")
    words = ["export", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "out"), "--dynamic-size"]
    process = subprocess.Popen(
        [sys.executable, "-m", "transept", *words, "--format", "onnx", "package"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    signs, others = [processor_seconds(process.pid)], []
    assert process.stderr is not None
    for line in process.stderr:
        if "transept: still writing and checking model.onnx, model.package.pt2, for " in line:
            signs.append(processor_seconds(process.pid))
        else:
            others.append(line)
    assert process.wait() == 0, others
    gaps = [after - before for before, after in pairwise(signs)]
    print("processor seconds between signs of life:", [round(gap, 1) for gap in gaps])
    assert len(gaps) >= 2
    assert max(gaps[1:]) < 12
    assert gaps[0] < 30  # imports and the model come before


def processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pt2", "onnx"])
@torch.no_grad()
def test_a_classifier_of_any_size(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Sizes that neither the trace nor the command's own check has seen, beside eager; signs of life meanwhile."""
    monkeypatch.setattr("transept.cli.export._SILENCE", 0.2)
    monkeypatch.chdir(tmp_path)  # whole paths leave the table less room
    classifier = a_classifier()
    classifier.save(tmp_path / "best.safetensors")
    words = ["export", "best.safetensors", "--out", ".", "--dynamic-size", "--format", kind]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert f"transept: still writing and checking model.{kind}, for 0 s" in err
    assert "of any one size whose sides are multiples of 16." in out
    assert "logits at 96 x 80" in out
    about, run = READERS[kind](tmp_path / f"model.{kind}")
    assert (about["img_size"], about["size_step"]) == ([64, 64], 16)
    for batch, height, width in ((1, 64, 64), (5, 48, 112), (2, 224, 32)):
        images = torch.randn(batch, 3, height, width)
        expected = classifier(images)
        (logits,) = run([images])
        assert float((logits - expected).abs().max()) <= 1e-4 * float(expected.std())
    assert main([*words, "--img-size", "100", "64"]) == 2
    assert "img_size=100 x 64: with any size, sides are multiples of 16; give 112 x 64" in capsys.readouterr().err


@torch.no_grad()
def test_a_classifier_of_another_size(tmp_path: Path):
    """The size of the graph is the caller's, where the model takes it; else the model's own sentence says why not."""
    exported = export_logits(a_classifier(), tmp_path, img_size=(96, 64), formats=["pt2"])
    assert (exported.about["img_size"], exported.about["size_step"]) == ([96, 64], None)
    model = build("crossformer_tiny")
    model.pad = False
    classifier = Classifier(model, list("abcdefg"), Preprocessing(img_size=(64, 64)))
    with pytest.raises(UsageError, match="img_size=100 x 64: image is 100x64"):
        export_logits(classifier, tmp_path, img_size=(100, 64))
    with pytest.raises(UsageError, match="CrossFormer groups its tokens differently at every size.*--img-size"):
        export_logits(classifier, tmp_path, dynamic_size=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_a_segmenter(method: str, tmp_path: Path):
    options = BACKBONES["xcit_nano_12_p16"]
    segmenter = create_segmenter(method, backbone="xcit_nano_12_p16", num_classes=5, width=16, **options).eval()
    exported = export_logits(segmenter, tmp_path, img_size=(96, 160))
    assert set(exported.errors) == {"onnx", "pt2"}
    images = torch.randn(1, 3, 96, 160)
    (logits,) = onnx_runner(exported.files["onnx"])([images])
    expected = segmenter(images)
    np.testing.assert_allclose(logits.numpy(), expected.numpy(), rtol=0, atol=1e-4 * float(expected.std()))
    print(method, json.dumps(exported.errors))
    if method == "upernet":
        with pytest.raises(UsageError, match="UPerNet pools maps to grids of its own"):
            export_logits(segmenter, tmp_path, img_size=(96, 160), dynamic_size=True)
        return
    exported = export_logits(segmenter, tmp_path, img_size=(96, 160), dynamic_size=True)
    for height, width in ((128, 64), (64, 224)):
        images = torch.randn(2, 3, height, width)
        expected = segmenter(images)
        for run in (onnx_runner(exported.files["onnx"]), pt2_runner(exported.files["pt2"])):
            (logits,) = run([images])
            np.testing.assert_allclose(logits.numpy(), expected.numpy(), rtol=0, atol=1e-4 * float(expected.std()))


def test_calls_that_are_wrong(tmp_path: Path):
    segmenter = create_segmenter("semantic_fpn", backbone="xcit_nano_12_p16", width=16, num_classes=5, depth=1)
    with pytest.raises(UsageError, match="img_size=0 x 64: give a positive height and width"):
        export_logits(segmenter, tmp_path, img_size=(0, 64))
    segmenter.preprocessing = SegmentationPreprocessing(scale=None)
    with pytest.raises(UsageError, match="give the size of the exported graph"):
        export_logits(segmenter, tmp_path)


def test_a_folder_that_is_a_file(tmp_path: Path):
    (tmp_path / "out").touch()
    with pytest.raises(TranseptError, match="cannot write to"):
        export_logits(a_classifier(), tmp_path / "out")

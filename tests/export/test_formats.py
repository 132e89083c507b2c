"""Packages: what they hold, what they compute, and what they refuse."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import transept
from tests.helpers import SMALL, image, lively
from transept.data.classification.transforms import Preprocessing
from transept.errors import TranseptError, UsageError
from transept.inference.compile import BFLOAT16_LIMIT, spread_error
from transept.inference.package import machine_facts, read_about
from transept.tasks.classify import Classifier

WITH_TORCH_ALONE = """
import sys, time
import torch
started = time.monotonic()
loader = torch._C._aoti.AOTIModelPackageLoader(sys.argv[1], "model", False, 1, -1)
(logits,) = loader.boxed_run([torch.load(sys.argv[2]).contiguous()])
seconds = time.monotonic() - started
assert not [name for name in sys.modules if name.startswith(("transept", "torch._inductor.codegen"))]
torch.save((seconds, logits), sys.argv[3])
"""


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    torch.manual_seed(0)
    model = lively(
        transept.create_model("xcit_nano_12_p8_224", num_classes=3, img_size=32, **SMALL["xcit_nano_12_p8_224"])
    )
    return Classifier(model, ["a", "b", "c"], Preprocessing(img_size=(32, 32))).eval()


@pytest.mark.slow  # the compiler takes half a minute
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_package_runs_with_torch_alone(classifier: Classifier, tmp_path: Path, dtype: str):
    exported = classifier.export(tmp_path, formats=["package"], dtype=dtype)
    file = exported.files["package"]
    limit = 2e-5 if dtype == "float32" else BFLOAT16_LIMIT
    assert exported.errors["package"]["logits"] < limit
    package = transept.load_package(file)
    assert package.about["classes"] == ["a", "b", "c"]
    assert package.about["dtype"] == dtype
    assert package.about["errors"] == exported.errors["package"]
    images = image(5, 32, 32)
    with torch.inference_mode():
        expected = classifier(images)
        assert spread_error([expected], [package(images)]) < limit
        assert spread_error([expected], [package(images.to(memory_format=torch.channels_last))]) < limit
        assert package(images[:1]).shape == (1, 3)
    with pytest.raises(
        UsageError, match=r"takes 3 channels of 32 x 32, and these images have 3 of 64 x 32; export one"
    ):
        package(image(1, 64, 32))
    with pytest.raises(UsageError, match="takes float32 images .* of float64 on cpu"):
        package(images.double())

    torch.save(images, tmp_path / "images.pt")
    (tmp_path / "run.py").write_text(WITH_TORCH_ALONE)
    arguments = ["run.py", str(file), "images.pt", "out.pt"]
    environment = {"PATH": "/nonexistent"}  # no compiler
    subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=environment, check=True)
    seconds, logits = torch.load(tmp_path / "out.pt")
    assert spread_error([expected], [logits]) < limit
    assert seconds < 2


def test_packages_that_are_not_for_this_machine(tmp_path: Path):
    about = {**machine_facts(), "img_size": [32, 32], "in_chans": 3, "dtype": "float32"}

    def package(name: str, **changes: object) -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/extra/transept.json", json.dumps({**about, **changes}))
        return path

    assert read_about(package("whole.pt2"))["size_step"] is None
    sentences = {
        package(
            "amx.pt2", instructions=["no_such_unit"]
        ): "for a processor with .* no_such_unit, and this one lacks no_such_unit",
        package("other.pt2", machine="riscv64"): "for a processor with riscv64 .*, and this one is",
        package("old.pt2", torch="2.3.1"): r"was compiled with torch 2\.3\.1, and this is .*; export it again",
        package("half.pt2", in_chans="3"): "is no package of transept's; write one with transept export",
        package("whole.zip"): "is no package of transept's",
        tmp_path / "missing.pt2": "cannot read the package .*missing.pt2': No such file",
        package("empty.pt2"): "cannot be loaded: ",
    }
    (tmp_path / "text.pt2").write_text("no archive")
    sentences[tmp_path / "text.pt2"] = "is no package of transept's"
    for path, sentence in sentences.items():
        with pytest.raises(TranseptError, match=sentence):
            transept.load_package(path)


def test_what_detectors_refuse(tmp_path: Path):
    detector = transept.create_detector(
        "retinanet", backbone="xcit_nano_12_p16", num_classes=3, depth=1, width=32
    ).eval()
    with pytest.raises(UsageError, match="leave out --format package and take --form compiled"):
        detector.export(tmp_path, formats=["package"])
    with pytest.raises(UsageError, match="a detector's files are in float32"):
        detector.export(tmp_path, dtype="bfloat16")

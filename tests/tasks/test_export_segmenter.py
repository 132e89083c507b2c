"""The whole segmenter through torch.export and ONNX: exported at one batch size, run at another."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch.export import Dim
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.helpers import BACKBONES
from transept.tasks.segment import METHODS, create_segmenter

QUICK = [("semantic_fpn", "xcit_nano_12_p16", (61, 90))]
CASES = [
    *QUICK,
    *(
        pytest.param(method, backbone, (96, 160), marks=pytest.mark.slow)
        for method in METHODS
        for backbone in BACKBONES
    ),
]


def export(segmenter: torch.nn.Module, images: torch.Tensor) -> torch.export.ExportedProgram:
    with sdpa_kernel(SDPBackend.MATH):
        return torch.export.export(segmenter, (images,), dynamic_shapes=({0: Dim("batch", min=1, max=64)},))


def error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, in standard deviations."""
    assert value.shape == expected.shape
    return float((value - expected).abs().max() / expected.std())


@pytest.mark.parametrize(("method", "backbone", "size"), CASES)
@torch.no_grad()
def test_export_and_onnx_with_any_batch(method: str, backbone: str, size: tuple[int, int], tmp_path: Path):
    """Only the batch is dynamic, of odd sizes, too: another size is refused, not silently computed."""
    options = BACKBONES[backbone]
    segmenter = create_segmenter(method, backbone=backbone, num_classes=5, width=16, **options).eval()
    program = export(segmenter, torch.randn(2, 3, *size))
    with sdpa_kernel(SDPBackend.MATH):
        onnx = torch.onnx.export(program, dynamo=True, verbose=False)
    assert onnx is not None
    onnx.save(tmp_path / "segmenter.onnx")
    limits = onnxruntime.SessionOptions()
    limits.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(tmp_path / "segmenter.onnx", limits, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [3, *size]
    exported = program.module()
    for batch in (1, 3):
        images = torch.randn(batch, 3, *size)
        expected = segmenter(images)
        assert error(exported(images), expected) < 1e-5
        (output,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        assert error(torch.from_numpy(np.asarray(output)), expected) < 1e-4
    with pytest.raises(AssertionError, match=str(size[0])):
        exported(torch.randn(2, 3, 64, 96))

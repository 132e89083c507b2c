"""OpenVINO's own format: a graph `.xml` beside its weights `.bin`, made of an ONNX file.

Its reader of torch.export's programs forgets sizes that are fixed, and the graphs are slower; ONNX loses nothing. A
file cannot say which precision it is to run in: on processors with bfloat16 units OpenVINO takes that unless it is
told.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HINTS = {"float32": "f32", "bfloat16": "bf16"}
"""Values of INFERENCE_PRECISION_HINT."""


def write_openvino(onnx_file: Path, path: Path, metadata: str, key: str) -> None:
    """Write the graph of an ONNX file to `path`, and beside it its weights, which stay float32."""
    import openvino  # an extra

    model = openvino.convert_model(onnx_file)
    model.set_rt_info(metadata, key)
    openvino.save_model(model, path, compress_to_fp16=False)


def openvino_runner(path: Path, dtype: str) -> Any:
    """An OpenVINO graph on the CPU, in the precision of the hint: inputs to outputs, in their order."""
    import openvino  # an extra

    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": HINTS[dtype], "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
    compiled = core.compile_model(core.read_model(path), "CPU", options)

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        results = compiled([value.numpy() for value in inputs])
        return [torch.from_numpy(results[output].copy()) for output in compiled.outputs]

    return run

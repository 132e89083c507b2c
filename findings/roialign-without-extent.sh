#!/usr/bin/env bash
# RoIAlign of a region without extent is 0 in ONNX Runtime and NaN in OpenVINO.
#
# onnxruntime 1.32.0, openvino 2026.4.1: with sampling_ratio 0 a region takes as many samples as it covers cells, so one
# whose corners are the same takes none. ONNX Runtime answers 0, OpenVINO the mean of nothing, NaN; ONNX's text says
# neither. Exported detectors that let every pyramid level read all regions, give those of other levels no extent and
# add up what is read, are right in the one and all NaN in the other.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 numpy
"$folder/env/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper

node = helper.make_node(
    "RoiAlign",
    ["maps", "regions", "batch"],
    ["read"],
    output_height=2,
    output_width=2,
    sampling_ratio=0,
    spatial_scale=1.0,
    coordinate_transformation_mode="half_pixel",
)
graph = helper.make_graph(
    [node],
    "graph",
    [
        helper.make_tensor_value_info("maps", TensorProto.FLOAT, [1, 1, 8, 8]),
        helper.make_tensor_value_info("regions", TensorProto.FLOAT, [2, 4]),
        helper.make_tensor_value_info("batch", TensorProto.INT64, [2]),
    ],
    [helper.make_tensor_value_info("read", TensorProto.FLOAT, [2, 1, 2, 2])],
)
path = str(Path(sys.argv[1], "model.onnx"))
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
maps = np.ones((1, 1, 8, 8), np.float32)
regions = np.array([[1, 1, 5, 5], [0, 0, 0, 0]], np.float32)
inputs = {"maps": maps, "regions": regions, "batch": np.zeros(2, np.int64)}

(runtime,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)
(vino,) = openvino.Core().compile_model(path, "CPU")(inputs).values()
print("onnxruntime", onnxruntime.__version__, "with extent", runtime[0].ravel(), "without", runtime[1].ravel())
print("openvino", openvino.__version__, "with extent", vino[0].ravel(), "without", vino[1].ravel())
assert (runtime[0] == 1).all() and np.allclose(vino[0], 1)
assert (runtime[1] == 0).all()
assert np.isnan(vino[1]).all()
PYTHON

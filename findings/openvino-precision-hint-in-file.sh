#!/usr/bin/env bash
# OpenVINO reads some runtime options from the rt_info of a model file, and passes over others without a word.
#
# openvino 2026.4.1: under ["runtime_options", ...] KV_CACHE_PRECISION and DYNAMIC_QUANTIZATION_GROUP_SIZE are taken
# over when the model is compiled. INFERENCE_PRECISION_HINT and INFERENCE_NUM_THREADS are not, and even a value that
# does not exist ("garbage") raises nothing. So a file cannot say in which precision it is to be computed: on processors
# with bfloat16 units it runs in bfloat16 unless every caller asks for float32.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet openvino==2026.4.1 numpy
"$folder/env/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import openvino
from openvino import opset13

source = opset13.parameter([2, 3], np.float32)
model = openvino.Model([opset13.relu(source)], [source], "model")
core = openvino.Core()


def after_file(option, value):
    """What a model that was saved with the option, and read again, is compiled with."""
    changed = model.clone()
    changed.set_rt_info(value, ["runtime_options", option])
    path = str(Path(sys.argv[1], "model.xml"))
    openvino.save_model(changed, path)
    return core.compile_model(core.read_model(path), "CPU").get_property(option)


def plain(option):
    return core.compile_model(model, "CPU").get_property(option)


print("openvino", openvino.__version__)
taken = {"KV_CACHE_PRECISION": ("f16", "float16"), "DYNAMIC_QUANTIZATION_GROUP_SIZE": ("48", "48")}
for option, (value, shown) in taken.items():
    print(f"{option}: {plain(option)} without, {after_file(option, value)} with {value!r} in the file")
    assert shown in str(after_file(option, value)), option
ignored = {"INFERENCE_PRECISION_HINT": "garbage", "INFERENCE_NUM_THREADS": "1"}
for option, value in ignored.items():
    print(f"{option}: {plain(option)} without, {after_file(option, value)} with {value!r} in the file")
    assert str(after_file(option, value)) == str(plain(option)), option
# Both are heeded where they are given by the caller.
one = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": "1"}).get_property("INFERENCE_NUM_THREADS")
print(f"INFERENCE_NUM_THREADS: {one} with '1' from the caller")
assert one == 1
try:
    core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "garbage"})
    raise SystemExit("'garbage' from the caller was taken")
except RuntimeError:
    print("INFERENCE_PRECISION_HINT: an error with 'garbage' from the caller")
PYTHON

#!/usr/bin/env bash
# Whoever times PyTorch and onnxruntime by alternating calls in one process, as one does so that both meet the same pace of
# a machine, measures neither. After a call has returned, the threads of onnxruntime's pool go on looking for work for tens
# of milliseconds of processor time, and those of the OpenMP that PyTorch's wheels bring for about ten: on the cores that the
# other one computes on meanwhile. A short call takes up to twice its time so, and the order of the turns decides who wins.
#
# onnxruntime 1.32.0, torch 2.15.0, two threads each on two cores of an AMD Zen 4. Seen there: 41 ms of processor time after
# a call of onnxruntime, and 0.1 without its spinning; 9 after one of torch. Eight products took torch 12 ms after itself and
# 24 after onnxruntime; as many took onnxruntime 9 ms after a pause and 16 after torch. A pause alone does not mend it:
# torch took 20 ms in its first call after one, so the call that is timed has to follow another of its own. The script
# fails where the threads go to sleep at once, or do not without spinning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet uv 2>/dev/null
"$folder/env/bin/uv" pip install --quiet --python "$folder/env/bin/python" torch==2.15.0 onnxruntime==1.32.0 onnx==1.22.0 numpy
cat > "$folder/turns.py" <<'PYTHON'
import statistics
import time

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

THREADS, WIDTH, LAYERS = 2, 768, 8


def session(spinning):
    value = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [196, WIDTH]) for name in ("in", "out")}
    weights = np.random.default_rng(0).standard_normal((WIDTH, WIDTH), np.float32) / WIDTH**0.5
    names = ["in", *(f"x{i}" for i in range(1, LAYERS)), "out"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in zip(names, names[1:])]
    graph = helper.make_graph(nodes, "layers", [value["in"]], [value["out"]], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def after(call):
    """Milliseconds of processor time that this process takes in the third of a second after a call."""
    found = []
    for _ in range(5):
        call()
        before = time.process_time()
        time.sleep(0.3)
        found.append(1e3 * (time.process_time() - before))
    return statistics.median(found)


def timed(call, before):
    found = []
    for _ in range(15):
        before()
        started = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - started))
    return statistics.median(found)


torch.set_num_threads(THREADS)
array = np.random.default_rng(1).standard_normal((196, WIDTH), np.float32)
tensor, layer = torch.from_numpy(array), torch.randn(WIDTH, WIDTH)
spinning, quiet = session(True), session(False)
calls = {
    "onnxruntime": lambda: spinning.run(None, {"in": array}),
    "onnxruntime, allow_spinning 0": lambda: quiet.run(None, {"in": array}),
    "torch": lambda: [tensor @ layer for _ in range(LAYERS)],
}
for call in calls.values():
    for _ in range(5):
        call()
time.sleep(1)
used = {name: after(call) for name, call in calls.items()}
for name, each in used.items():
    print(f"processor time after a call of {name}: {each:.1f} ms")
for name, before in (("a pause", lambda: time.sleep(0.3)), ("torch", calls["torch"]), ("onnxruntime", calls["onnxruntime"])):
    print(f"torch's call after {name}: {timed(calls['torch'], before):.1f} ms")
for name, before in (("a pause", lambda: time.sleep(0.3)), ("torch", calls["torch"])):
    print(f"onnxruntime's call after {name}: {timed(calls['onnxruntime'], before):.1f} ms")
assert used["onnxruntime"] > 5, used
assert used["onnxruntime, allow_spinning 0"] < 2, used
assert used["torch"] > 1, used
PYTHON
"$folder/env/bin/python" "$folder/turns.py"

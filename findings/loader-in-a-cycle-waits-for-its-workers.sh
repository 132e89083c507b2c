#!/usr/bin/env bash
# Where Python's garbage collector ends a DataLoader's iterator, it waits five seconds for each of its workers; where the
# last reference does, hardly at all. An error that is kept in a variable of the function that caught it is enough: its
# traceback leads back to that variable, so the wait comes at whatever line happens to be run when garbage is looked for.
#
# torch 2.15.0, CPython 3.11, Linux. The collector first calls the finalizers of the queues, by weak references,
# which stops the thread that would send "end" to the workers, and only then the iterator's `__del__`, which sends it and
# waits. The workers are then ended by a signal. `persistent_workers` changes nothing if the loader lies in the cycle, too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet uv
"$folder/env/bin/uv" pip install --quiet --python "$folder/env/bin/python" torch==2.15.0 numpy
"$folder/env/bin/python" - <<'PYTHON'
import gc
import time

import torch
from torch.utils.data import DataLoader, TensorDataset


def stop_early(workers, in_a_cycle):
    kept = []
    batches = iter(DataLoader(TensorDataset(torch.arange(100)), num_workers=workers))
    try:
        next(batches)
        raise ValueError("enough")
    except ValueError as error:
        if in_a_cycle:
            kept.append(error)


def seconds(workers, in_a_cycle):
    gc.collect()
    gc.disable()
    started = time.perf_counter()
    stop_early(workers, in_a_cycle)
    returned = time.perf_counter()
    gc.collect()
    collected = time.perf_counter()
    gc.enable()
    return returned - started, collected - returned


print("torch", torch.__version__)
for workers in (1, 2, 3):
    plain, kept = seconds(workers, False), seconds(workers, True)
    print(f"{workers=}: last reference gone {plain[0]:.2f} + {plain[1]:.2f} s, in a cycle {kept[0]:.2f} + {kept[1]:.2f} s")
    assert sum(plain) < 3
    assert 5 * workers - 0.5 < kept[1] < 5 * workers + 3
PYTHON

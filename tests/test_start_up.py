"""Nothing is done at import, and models are made quickly. The limits leave room for a busy machine."""

import subprocess
import sys
import time

import transept


def test_import_adds_little_to_torch():
    # processor time: other programs do not count
    code = "import torch, time; a = time.process_time(); import transept; print(time.process_time() - a)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 1


def test_small_models_are_made_in_an_instant():
    transept.create_model("xcit_nano_12_p16_224")
    for name in "xcit_small_12_p16_224 cait_s24_224 crossformer_small cat_small cabvit_h_l2".split():
        started = time.process_time()
        transept.create_model(name)
        assert time.process_time() - started < 1.5, name

"""Nothing is done at import, and models are made quickly. The limits leave room for a busy machine."""

import subprocess
import sys


def best(code: str, repetitions: int = 2) -> float:
    """The least of the seconds that `code` prints, each in a new process."""
    words = [sys.executable, "-c", code]
    runs = (subprocess.run(words, capture_output=True, text=True, check=True) for _ in range(repetitions))
    return min(float(run.stdout) for run in runs)


def test_import_adds_little_to_torch():
    # processor time: other programs do not count
    code = "import torch, time; a = time.process_time(); import transept; print(time.process_time() - a)"
    assert best(code) < 1


def test_small_models_are_made_in_an_instant():
    names = "xcit_small_12_p16_224 cait_s24_224 crossformer_small cat_small cabvit_h_l2".split()
    code = f"""
import time, torch, transept
torch.set_num_threads(1)
transept.create_model("xcit_nano_12_p16_224")
seconds = []
for name in {names}:
    started = time.process_time()
    transept.create_model(name)
    seconds.append(time.process_time() - started)
print(max(seconds))
"""
    assert best(code, repetitions=1) < 1.5

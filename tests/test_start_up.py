"""Nothing is done at import, and models are made quickly. The limits leave room for a busy machine."""

import subprocess
import sys
import time

import pytest

import transept


def printed(code: str) -> str:
    """What a process of its own prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def said() -> list[str]:
    """By one process, for each start costs seconds; processor time, where other programs do not count."""
    return printed(
        "import sys, torch, time; a = time.process_time(); import transept; print(time.process_time() - a)\n"
        "assert not {'timm', 'torchvision', 'lightning', 'rich', 'jaxtyping'} & set(sys.modules)\n"
        "import importlib.util; importlib.util.find_spec('timm')\n"  # transformers asks so, and imports nothing
        "import timm\n"
        "assert {'crossformer_small', 'cat_tiny', 'cabvit_h_l1'} <= set(timm.list_models())\n"
        "assert timm.create_model('xcit_nano_12_p16_224').__module__.startswith('timm')\n"
        "assert type(timm.create_model('crossformer_tiny')).__module__ == 'transept.models.crossformer'\n"
        "import transept.cli.predict, transept.cli.eval, transept.cli.features\n"
        "from transept.data.images import sample_picture\n"
        "from transept.inference.compile import checked_precision\n"
        "checked_precision(transept.create_model('cait_xxs24_224', depth=1, img_size=32))\n"
        "assert sample_picture().size == (640, 427)\n"
        "print(*{'matplotlib', 'sklearn', 'scipy', 'lightning', 'pandas'} & set(sys.modules))\n"
        "import transept.draw\n"
        "assert transept.draw.Labelled.__module__ == 'transept.draw.sheet'\n"
        "assert 'matplotlib' in sys.modules\n"
    ).splitlines()


def test_import_adds_little_to_torch_and_registers_what_timm_lacks(said: list[str]):
    assert float(said[0]) < 1


def test_verbs_wait_for_nothing_that_they_may_not_need(said: list[str]):
    assert said[1].split() == []


def test_small_models_are_made_in_an_instant():
    transept.create_model("xcit_nano_12_p16_224")
    for name in "xcit_small_12_p16_224 cait_s24_224 crossformer_small cat_small cabvit_h_l2".split():
        started = time.process_time()
        transept.create_model(name)
        assert time.process_time() - started < 1.5, name


def test_a_command_looks_for_no_garbage_among_its_libraries():
    code = (
        "import atexit, gc, sys\n"
        "atexit.register(lambda: print(gc.get_freeze_count()))\n"  # called last
        "from transept.cli.main import main\n"
        "main(['info', 'cait_xxs24_224'])\n"
        "kept = gc.get_freeze_count()\n"
        "main(['models', 'cait_xxs24_224'])\n"  # torch is there now
        "print(gc.isenabled(), kept > 100_000, gc.get_freeze_count() <= kept)\n"
    )
    assert printed(code).split()[-4:] == ["True", "True", "True", "0"]

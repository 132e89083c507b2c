"""What people see: in narrow terminals, in those without colours or without a cursor, and in files."""

import fcntl
import os
import re
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from transept.cli.main import main

pty = pytest.importorskip("pty")  # not on Windows

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[0-9;]*)?m")
SMALL = (
    "--schedule.iterations 4 --schedule.evaluate_every 2 --model.img_size 16 --model.options.embed_dim 16 "
    "--model.options.num_heads 2 --model.options.depth 1 --batch_size 64"
).split()
NANO = "xcit_nano_12_p16"
MODELS = ["models", "xcit_nano*"]
KINDS = {
    "plain": (80, {"TERM": "xterm-256color"}),
    "no colour": (80, {"TERM": "xterm-256color", "NO_COLOR": "1"}),
    "dumb": (80, {"TERM": "dumb"}),
    "narrow": (40, {"TERM": "xterm-256color"}),
}
Called = Callable[..., str]


@contextmanager
def screen(columns: int, environment: dict[str, str]) -> Iterator[list[str]]:
    """stdout and stderr as a real terminal of this width; what it got is the list's one item afterwards."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    got, text = [], []

    def read() -> None:
        while True:
            try:
                part = os.read(outer, 2**16)
            except OSError:  # Linux's way to say that nobody writes any more
                return
            if not part:
                return
            got.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES"):
            patch.delenv(name, raising=False)
        patch.setenv("COLUMNS", str(columns))  # as a shell that exports it
        for name, value in environment.items():
            patch.setenv(name, value)
        with os.fdopen(inner, "w", encoding="utf-8") as stream:
            for name in ("stdout", "stderr"):
                patch.setattr(sys, name, stream)
            yield text
    reader.join()
    os.close(outer)
    text.append(b"".join(got).decode().replace("\r\n", "\n"))


def seen(kind: str, *words: str) -> str:
    with screen(*KINDS[kind]) as text:
        assert main(list(words)) == 0
    return text[0]


def words_of(text: str) -> str:
    return " ".join(ESCAPE.sub("", text).split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A small run, and what its training showed in each kind of terminal."""
    root = tmp_path_factory.mktemp("runs")
    shown = {kind: seen(kind, "train", "digits", *SMALL, "--out", str(root / kind)) for kind in KINDS}
    return root / "plain", shown


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", [MODELS, ["doctor", "--no-test"], ["info", "xcit_nano_12_p16_224"], ["--help"]])
def test_tables_in_each_kind_of_terminal(kind: str, words: list[str]):
    text = seen(kind, *words)
    lines = [line for line in ESCAPE.sub("", text).splitlines() if "https://" not in line and "example" not in line]
    if words[0] != "info":  # whose addresses and names stay in one piece, to be copied
        assert max(map(len, lines)) <= max(KINDS[kind][0], len("usage: transept VERB ... (transept VERB --help)"))
    assert "…" not in text
    if kind == "dumb":
        assert "\x1b" not in text
    if kind == "no colour":
        assert not COLOR.search(text)


def test_a_narrow_terminal_shows_each_row_by_itself():
    text = ESCAPE.sub("", seen("narrow", *MODELS))
    assert "xcit_nano_12_p16_384\n  size: 384, params: 3.05 M,\n  MACs: 1.61 G, top-1: 75.4," in text
    assert "size  params" in ESCAPE.sub("", seen("plain", *MODELS))


def test_progress_of_training(trained: tuple[Path, dict[str, str]]):
    _, shown = trained
    for kind, text in shown.items():
        assert "on the validation pictures (epoch" in words_of(text)
        if kind == "dumb":
            assert not set("\x1b\r\b") & set(text)
            assert re.findall(r"^epoch (\d)/2  loss ", text, re.MULTILINE) == ["1", "2"]
        else:
            drawn = [ESCAPE.sub("", part) for part in re.split(r"[\r\n]", text) if "epoch" in part and "left" in part]
            assert drawn
            assert not [line for line in drawn if "…" in line or len(line) > KINDS[kind][0]]
    assert not COLOR.search(shown["no colour"])
    assert COLOR.search(shown["plain"])
    assert "images/s" not in shown["narrow"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_model_in_each_kind_of_terminal(
    kind: str, trained: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, _ = trained
    monkeypatch.chdir(run / "samples")
    names = sorted(file.name for file in Path().iterdir())[:2]
    shown = {
        "eval": seen(kind, "eval", str(run)),
        "predict": seen(kind, "predict", str(run), *names, "--out", str(tmp_path / "sheet.png")),
    }
    for text in shown.values():
        last = [part.rsplit("\r", 1)[-1] for part in text.splitlines()]  # the bar that lay there was wiped away
        assert "…" not in "".join(last)
        assert kind != "dumb" or "\x1b" not in text
        assert kind != "no colour" or not COLOR.search(text)
    assert all(name in words_of(shown["predict"]) for name in names)
    assert "precision" in shown["eval"]


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}, {"COLUMNS": "40"}])
def test_a_log_has_whole_lines(
    environment: dict[str, str],
    trained: tuple[Path, dict[str, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run, _ = trained
    if "COLUMNS" not in environment:
        assert main(["train", "digits", *SMALL, "--out", str(tmp_path / "run")]) == 0
    assert main(["eval", str(run)]) == 0
    assert main(MODELS) == 0
    log = "".join(capsys.readouterr())
    assert not set("\r\b") & set(log)
    assert not re.search(r"\x1b\[(?![0-9;]*m)", log)  # nothing moves a cursor; colours only where they are forced
    assert "FORCE_COLOR" in environment or "\x1b" not in log
    assert not [line for line in log.splitlines() if "…" in line or ("\x1b" not in line and line != line.rstrip())]
    epochs = 0 if "COLUMNS" in environment else 2
    assert len(re.findall(r"^(?:\x1b\[[0-9;]*m)*epoch \d/2  loss ", log, re.MULTILINE)) == epochs


def test_the_benchmark_alone_is_on_the_screen(capfd: pytest.CaptureFixture[str]):
    """Not what the profiler says of itself, which it writes past Python."""
    text = ESCAPE.sub("", seen("narrow", "bench", NANO, "--sizes", "32", "--batch", "1", "--repetitions", "1"))
    assert f"{NANO}_224\n  form: transept eager," in text
    assert f"{NANO}_224\n  form: transept fused," in text
    assert "…" not in text
    assert not "".join(capfd.readouterr())

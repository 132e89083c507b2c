"""The scripts of `transept completion`, in the shells themselves."""

import shutil
import subprocess
from pathlib import Path

import pytest

from transept.cli.main import VERBS, main
from transept.models.registry import list_models

ASK = {
    "bash": 'source "$0"; COMP_WORDS=({words} ""); COMP_CWORD={count}; _shtab_transept; '
    'printf "%s\\n" "${{COMPREPLY[@]}}"',
    "fish": 'source $argv[1]; complete -C "{words} " | string split -f 1 \\t',
}


def completed(shell: str, script: str, words: str, folder: Path) -> list[str]:
    """What the shell offers behind these words."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    file = folder / f"transept.{shell}"
    file.write_text(script)
    ask = ASK[shell].format(words=words, count=len(words.split()))
    answer = subprocess.run([shell, "-c", ask, str(file)], capture_output=True, text=True, cwd=folder, check=True)
    assert answer.stderr == ""
    return answer.stdout.split("\n")


@pytest.mark.parametrize("shell", ASK)
def test_words(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    (tmp_path / "picture.png").touch()
    assert set(VERBS) <= set(completed(shell, script, "transept", tmp_path))
    assert {*list_models(), "picture.png"} <= set(completed(shell, script, "transept info", tmp_path))
    assert {"digits", "quick-det"} <= set(completed(shell, script, "transept train", tmp_path))
    offered = completed(shell, script, "transept export xcit_nano_12_p8_224 --dtype", tmp_path)
    assert [word for word in offered if word] == ["auto", "float32", "bfloat16"]


def test_zsh_takes_its_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef transept")
    assert all(f"{verb})" in script for verb in VERBS)
    if shutil.which("zsh"):
        (tmp_path / "_transept").write_text(script)
        subprocess.run(["zsh", "-n", tmp_path / "_transept"], check=True)


def test_another_shell(capsys: pytest.CaptureFixture[str]):
    assert main(["completion", "csh"]) == 2
    assert "invalid choice: 'csh'" in capsys.readouterr().err

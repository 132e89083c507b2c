"""Runs notebooks and stores what they print and show: `uv run python docs/notebooks/run.py [NAME ...]`.

Each runs in a process and an empty folder of its own. With `--out FOLDER` the executed notebooks are written there, and
those here stay as they are. Jupyter shows the same: what is printed, and the value of a cell's last expression. In the
notebook's metadata, under `transept`, are the day of the run (UTC) and the versions that it ran with.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def execute(notebook: dict[str, Any]) -> None:
    """Run the code cells in order, and store their outputs in the notebook."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate((cell for cell in notebook["cells"] if cell["cell_type"] == "code"), start=1):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(tree, f"cell {number}", "exec"), names)
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names) if last else None
        cell["execution_count"], cell["outputs"] = number, []
        if printed.getvalue():
            lines = printed.getvalue().splitlines(keepends=True)
            cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": lines})
        if value is not None:
            result = {"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": show(value)}
            cell["outputs"].append(result)


def show(value: Any) -> dict[str, Any]:
    if not hasattr(value, "_repr_png_"):
        return {"text/plain": repr(value).splitlines(keepends=True)}
    return {
        "text/plain": [f"<picture of {value.width} x {value.height} pixels>"],
        "image/png": base64.b64encode(value._repr_png_()).decode("ascii"),
    }


def provenance() -> dict[str, Any]:
    """The day, and the versions of what decides the numbers."""
    versions = {"python": platform.python_version()} | {name: version(name) for name in ("transept", "torch", "timm")}
    return {"date": datetime.now(UTC).date().isoformat(), "versions": versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help="classify, detect, ... (default: all)")
    parser.add_argument("--out", type=Path, default=HERE, metavar="FOLDER")
    args = parser.parse_args()
    out = args.out.resolve()
    known = sorted(path.stem for path in HERE.glob("*.ipynb"))
    names = args.names or known
    if missing := set(names) - set(known):
        parser.error(f"there is no notebook {missing.pop()!r}; there are {', '.join(known)}")
    if len(names) > 1:
        for name in names:
            subprocess.run([sys.executable, __file__, name, "--out", out], check=True)
        return
    notebook = json.loads((HERE.resolve() / f"{names[0]}.ipynb").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        execute(notebook)
    notebook["metadata"]["transept"] = provenance()
    text = json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"
    (out / f"{names[0]}.ipynb").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

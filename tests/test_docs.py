"""The documentation site. That its Python blocks run is tested by `pytest README.md docs`."""

import json
import re
import shlex
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import transept
from transept.cli.main import VERBS, Parser, add_arguments
from transept.errors import UsageError
from transept.models.backbone import Family
from transept.models.registry import FAMILIES
from transept.training.options.pages import read_recipe, recipe_names
from transept.training.options.parsing import parse_recipe
from transept.training.options.recipe import Recipe

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
PAGES = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]


@pytest.mark.parametrize("name", sorted({*transept.__all__} - {"__version__"}))
def test_every_public_name_has_a_page_with_an_example(name: str):
    page = (DOCS / "api" / f"{name}.md").read_text(encoding="utf-8")
    assert re.search(rf"^\.\. auto\w+:: transept\.{name}$", page, flags=re.MULTILINE)
    examples = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert any(re.search(rf"\b{name}\b", example) for example in examples)
    assert "<!-- skip" not in page
    assert f"](api/{name}.md)" in (DOCS / "api.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_has_a_page(family: Family):
    page = DOCS / "families" / f"{family.name.lower()}.md"
    assert f"```{{costs}} {family.name}" in page.read_text(encoding="utf-8")
    assert f"families/{page.stem}\n" in (DOCS / "index.md").read_text(encoding="utf-8")


def commands_of(text: str) -> list[list[str]]:
    """Calls of `transept VERB` in a page's text, whole lines and in single backticks, as words after `transept`."""
    text = text.replace("\\\n", " ")
    named = {f"${name}": value for name, value in re.findall(r'^ *(\w+)="([^"]*)"$', text, flags=re.MULTILINE)}
    lines = re.findall(r"^(?: *| *\$ |.* -m |.*srun.* )transept (.+)$", text, flags=re.MULTILINE)
    lines += [value.removeprefix("transept ") for value in named.values() if value.startswith("transept ")]
    prose = re.sub(r"^( {4}|```[^`]*?^```).*$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [" ".join(call.split()) for call in re.findall(r"`transept ([a-z]+ [^`]+)`", prose)]
    lines = [re.sub(r" > \S+", "", line) for line in lines]
    lines = [re.sub(r"\$\w+", lambda name: named.get(name[0], "VALUE"), line) for line in lines]
    return [shlex.split(line, comments=True) for line in lines]


def check_command(words: list[str]) -> None:
    """Raises where the verb, an option or a recipe's option does not exist, or a value has the wrong type."""
    verb, *rest = words
    if verb not in VERBS:
        raise UsageError(f"there is no verb {verb!r}")
    module = import_module(f"transept.cli.{verb}")
    parser = Parser(prog=f"transept {verb}", allow_abbrev=False)
    add_arguments(parser, module)
    args = parser.parse(rest)
    if verb == "train":
        # RECIPE, detect/NAME and finetune.yaml stand for the reader's own
        page = read_recipe(args.recipe) if args.recipe in recipe_names() else {"model": {"name": "cat_tiny"}}
        own = args.recipe is None or re.fullmatch(r"(\w+/)?[A-Z]+|\w+\.yaml", args.recipe)
        if not own and args.recipe not in recipe_names():
            raise UsageError(f"there is no recipe {args.recipe!r}")
        parse_recipe(page, args.options)


def test_every_command_line_can_be_typed():
    wrong, seen = [], set()
    for page in PAGES:
        for words in commands_of(page.read_text(encoding="utf-8")):
            if words and words[0].islower():  # not `transept VERB`
                seen.add(words[0])
                try:
                    check_command(words)
                except UsageError as error:
                    wrong.append(f"{page.name}: transept {' '.join(words)}: {error}")
    assert not wrong, "\n".join(wrong)
    assert seen >= {"train", "eval", "predict", "explain", "count", "bench", "export"}


@pytest.mark.parametrize(
    "line",
    [
        "transept count cat_tiny --size 224",
        "transept counts cat_tiny",
        "transept train quick --data FOLDER --model.nam x",
        "transept train quik",
        'FEW="transept train quick --schedule.epochs many"',
    ],
)
def test_a_command_line_with_a_mistake_is_found(line: str):
    (words,) = commands_of(f"```sh\n{line}  # why\n```\n" if "=" not in line else f"{line}\n")
    with pytest.raises(UsageError):
        check_command(words)


def code_cells(path: Path) -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert 8 <= len(notebook["cells"]) <= 12
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kinds_of_outputs(path: Path) -> list[list[list[str]]]:
    """Of each code cell: what was printed, and as what its value was shown."""
    return [[sorted(output.get("data", ["printed"])) for output in cell["outputs"]] for cell in code_cells(path)]


def test_every_task_has_a_notebook():
    assert {path.stem for path in NOTEBOOKS} == set(get_args(get_type_hints(Recipe)["task"]))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_as_executed(path: Path):
    for number, cell in enumerate(code_cells(path), start=1):
        compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec")
        assert cell["execution_count"] == number
    assert any(["image/png", "text/plain"] in kinds for kinds in kinds_of_outputs(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_say_when_they_ran_and_what_can_go_wrong(path: Path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    run = notebook["metadata"]["transept"]
    assert date(2026, 1, 1) < date.fromisoformat(run["date"]) <= datetime.now(UTC).date()
    assert set(run["versions"]) == {"python", "transept", "torch", "timm"}
    last = notebook["cells"][-1]
    assert last["cell_type"] == "markdown"
    headings = [line for line in "".join(last["source"]).splitlines() if line.startswith("#")]
    assert headings[-1] == "## What can go wrong"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path):
    command = [sys.executable, str(DOCS / "notebooks" / "run.py"), path.stem, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert kinds_of_outputs(tmp_path / path.name) == kinds_of_outputs(path)
    run = json.loads((tmp_path / path.name).read_text(encoding="utf-8"))["metadata"]["transept"]
    assert run["versions"]["torch"] == version("torch")
    assert datetime.now(UTC).date() - date.fromisoformat(run["date"]) <= timedelta(days=1)


@pytest.mark.slow
def test_builds_without_a_warning(tmp_path: Path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "families" / "cat.html").read_text(encoding="utf-8")
    assert "16.871" in page  # parameters of cat_tiny, from the package
    assert "InnerPatchSelfAttention" in page
    notebook = (tmp_path / "notebooks" / "classify.html").read_text(encoding="utf-8")
    assert 'src="data:image/png;base64,' in notebook
    assert "held-out digits" in notebook
    assert "run on 20" in notebook

"""Who imports what, where no linter looks."""

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from transept.doctor.findings import packages
from transept.extras import EXTRA_OF

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src"


def modules_of(tree: ast.AST) -> Iterator[str]:
    """The dotted names that the imports of a file name, with what they take from a package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_test_imports_another():
    """What two tests share stands in a module without tests, as `tests.helpers`."""
    wrong = [
        f"{path.relative_to(TESTS)}: {name}"
        for path in TESTS.rglob("*.py")
        for name in modules_of(ast.parse(path.read_text(encoding="utf-8")))
        if name.startswith("tests.") and ".test_" in name
    ]
    assert not wrong, "\n".join(wrong)


def test_an_imported_package_comes_with_transept_or_with_a_known_extra():
    """So that where it is missing the sentence names the extra, `starlette` too, which gradio brings."""
    imported = {
        name.partition(".")[0]
        for path in SOURCE.rglob("*.py")
        for name in modules_of(ast.parse(path.read_text(encoding="utf-8")))
    }
    base = {each.name.lower() for each in packages()[""]}
    owners = packages_distributions()
    for name in imported - set(sys.stdlib_module_names) - {"transept"} - EXTRA_OF.keys():
        names = {owner.lower().replace("_", "-") for owner in owners.get(name, [name])}
        assert names & base, f"{name} is of no extra in transept.extras.EXTRA_OF"


def late_imports(text: str) -> list[int]:
    """Lines of the imports inside functions that no comment explains, on their line or above their group."""
    lines = text.splitlines()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    imports = {
        (node.lineno, node.end_lineno or node.lineno)
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    wrong, explained = [], 0  # the last line of a group that a comment explains
    for first, last in sorted(imports):
        above = lines[first - 2].lstrip().startswith("#")
        if above or explained == first - 1 or any("#" in line for line in lines[first - 1 : last]):
            explained = last
        else:
            wrong.append(first)
    return wrong


def test_late_imports_say_why():
    wrong = [
        f"{path.relative_to(SOURCE)}:{line}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line in late_imports(path.read_text(encoding="utf-8"))
    ]
    assert not wrong, "imports inside functions without a comment that says why:\n" + "\n".join(wrong)


def test_a_late_import_without_its_reason_is_found():
    text = "def f():\n    import a\n\n\ndef g():\n    # slow\n    import b\n    from c import d\n    import e  # too\n"
    assert late_imports(text) == [2]

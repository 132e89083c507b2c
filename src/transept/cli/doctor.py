"""Say what this installation has: versions, extras, the processor and the form it will use, free disk, a self-test.

The self-test takes two seconds: a small model computes what its official code computed with the same weights. Exit code
1 where it does not, or where a package that every verb needs is missing or of a version that is not allowed.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from transept import __version__
from transept.cli.shared.tables import print_json, print_table
from transept.doctor.findings import LIMITS, Package, disk, forms, machine, packages, self_test
from transept.errors import TranseptError
from transept.extras import install


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-test", action="store_true", help="leave out the self-test")


def run(args: argparse.Namespace) -> None:
    wanted = packages()
    own = wanted.pop("")
    about, form = machine(), forms()
    free = disk([Path(torch.hub.get_dir()), Path()])
    test = None if args.no_test else self_test()
    if args.json:
        print_json(
            {
                "transept": __version__,
                "packages": [dataclasses.asdict(each) for each in own],
                "extras": {name: [dataclasses.asdict(each) for each in all_of] for name, all_of in wanted.items()},
                "machine": about,
                "form": form,
                "disk": free,
                "self_test": test,
            }
        )
    else:
        rows = [
            ("transept", f"{__version__}, Python {about['python']}, {about['system']}"),
            ("packages", ", ".join(f"{each.name} {each.found or 'MISSING'}" for each in own)),
            *((f"extra {name}", _state(name, all_of)) for name, all_of in wanted.items()),
            ("processor", f"{about['processor']}, {_counted(about['cores'], 'core')}: {_sets(about)}"),
            ("GPU", ", ".join(about["gpus"]) or "none"),
            ("memory", _gib(about["memory"]) if about["memory"] else "unknown"),
            ("form", _form(form)),
            *(("free disk", f"{_gib(size)} in {folder}") for folder, size in free.items()),
            *([("self-test", _test(test))] if test else []),
        ]
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for name, what in rows:
            table.add_row(name, escape(what))
        print_table(table)
    wrong = [each for each in own if not each.fits]
    if wrong:
        raise TranseptError(f"{wrong[0].name} {wrong[0].found or 'is missing'}: {install(upgrade=True)}")
    if test is not None and not test["passed"]:
        name = next(name for name, limit in LIMITS.items() if not test["differences"][name] <= limit)
        raise TranseptError(
            f"the self-test failed: {name} differs by {test['differences'][name]:.1g} of the spread of the logits, and "
            f"{LIMITS[name]:g} is allowed; report it with what 'transept doctor --json' prints"
        )


def _state(extra: str, all_of: list[Package]) -> str:
    lacking = [f"{each.name} {each.found or ''}".strip() for each in all_of if not each.fits]
    if not lacking:
        return "yes: " + ", ".join(f"{each.name} {each.found}" for each in all_of)
    return f"no ({', '.join(lacking)}): {install(extra, upgrade=True)}"


def _sets(about: dict[str, Any]) -> str:
    return ", ".join(about["instructions"]) or "no instructions that kernels are chosen by"


def _test(test: dict[str, Any]) -> str:
    off = ", ".join(f"{name} {value:.1g}" for name, value in test["differences"].items())
    ended = "passed" if test["passed"] else "FAILED"
    return f"{ended} in {test['seconds']:.1f} s: {test['model']} differs from the official model by {off} of the spread"


def _form(form: dict[str, Any]) -> str:
    fast = f"{form['dtype']} ({form['reason']})"
    if form["fused_after_s"] is None:
        return f"--form auto stays with the model as it is; --form compiled takes {fast}"
    compiled = f"compiled after {form['compiled_after_s']:.0f} s" if form["compiler"] is None else form["compiler"]
    return f"{fast}; --form auto: fused after {form['fused_after_s']:.0f} s of computing, {compiled}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

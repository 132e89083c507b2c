"""Print a completion script: verbs, options, models, recipes and files, completed by the shell.

    transept completion bash > ~/.local/share/bash-completion/completions/transept
    transept completion zsh > ~/.zfunc/_transept          # a folder of $fpath
    transept completion fish > ~/.config/fish/completions/transept.fish

The script is of this version: print it anew after an update.
"""

import argparse
from importlib import import_module
from typing import Any

import shtab

from transept.cli.main import VERBS, Parser
from transept.cli.main import add_arguments as add_all
from transept.models.registry import list_models
from transept.training.options.pages import recipe_names

SHELLS = ("bash", "zsh", "fish")
_MODELS, _RECIPES = ("RUN_OR_NAME", "NAME", "name", "peers"), ("recipe",)
"""What verbs call an argument that names a model, or a recipe; other words may be files."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("shell", choices=SHELLS)


def run(args: argparse.Namespace) -> None:
    whole = Parser(prog="transept", description="cross-attention vision transformers")
    verbs = whole.add_subparsers(dest="verb")
    for verb, what in VERBS.items():
        add_all(verbs.add_parser(verb, help=what, description=what), import_module(f"transept.cli.{verb}"))
    for parser in verbs.choices.values():
        for action in parser._actions:
            if action.choices is None and action.nargs != 0:
                action.complete = _completed(action)  # pyright: ignore[reportAttributeAccessIssue] - shtab's own
    print(shtab.complete(whole, shell=args.shell, preamble=_functions(args.shell)))


def _completed(action: argparse.Action) -> Any:
    """As shtab wants it: the name of a function in each shell."""
    named = action.dest if action.option_strings else action.metavar or action.dest
    kind = "models" if named in _MODELS else "recipes" if named in _RECIPES else None
    if kind is None:
        return shtab.FILE
    return {"bash": f"_transept_{kind}", "zsh": f"_transept_{kind}", "fish": f"(_transept_{kind})"}


def _functions(shell: str) -> str:
    """What offers names of models, or of recipes, and files."""
    body = {
        "bash": '{name}() {{ compgen -W "{words}" -- $1; compgen -f -- $1; }}',
        "zsh": "{name}() {{ compadd -- {words}; _files }}",
        "fish": "function {name}\n    printf '%s\\n' {words}\n    __fish_complete_path\nend",
    }[shell]
    lists = {"models": list_models(), "recipes": recipe_names()}
    return "\n".join(body.format(name=f"_transept_{kind}", words=" ".join(each)) for kind, each in lists.items())

"""Train a model by a recipe: `transept train digits`, `transept train quick --data FOLDER`, `--resume RUN`."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, get_type_hints

from transept.cli.tables import print_json
from transept.errors import TranseptError, UsageError, unknown
from transept.train.folder import BEST, CONFIG, CURVES, METRICS, SAMPLES
from transept.train.recipe import Recipe, read_recipe, recipe_names, recipe_overview


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help=f"a YAML file, or one of: {recipe_overview()}")
    parser.add_argument(
        "--data",
        help="folder of pictures: train/CLASS/* and val/CLASS/*, or CLASS/*; to segment: images/training, "
        "annotations/training, the same of validation, and classes.txt; or 'digits', 'digits-scenes'",
    )
    parser.add_argument("--out", type=Path, help="run folder to create (default: runs/RECIPE)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with an interrupted run")
    parser.add_argument("--skip-bad-images", action="store_true", help="leave unreadable files out instead of stopping")
    published = [name for name in recipe_names() if "/" in name]
    parser.epilog = (
        f"Recipes of published results: {', '.join(published)}. "
        "Any option of the recipe can be given as --name value, e.g. --schedule.epochs 50 --optimizer.lr 0.001 "
        "--model.name cait_xxs24_224 --model.options.depth 6. Options: " + ", ".join(_options()) + "."
    )
    parser.parse_args = _keep_options(parser)  # pyright: ignore[reportAttributeAccessIssue]


def _keep_options(parser: argparse.ArgumentParser) -> Any:
    """The recipe's own options pass through argparse; jsonargparse checks them against the recipe's types."""

    def parse(argv: list[str]) -> argparse.Namespace:
        args, rest = parser.parse_known_args(argv)
        args.options = rest
        return args

    return parse


def run(args: argparse.Namespace) -> None:
    if args.resume is not None:
        _resume(args)
        return
    if args.recipe is None:
        raise UsageError(f"which recipe? give a YAML file or one of: {recipe_overview()}")
    given = list(args.options)
    if args.data is not None:
        given += ["--data", args.data]
    if args.skip_bad_images:
        given += ["--skip_bad_images", "true"]
    recipe = parse_recipe(read_recipe(args.recipe), given)
    folder = args.out or _new_folder(Path("runs") / Path(args.recipe).stem)
    _refuse_existing(folder)
    _train(recipe, folder, args, resume=False)


def _resume(args: argparse.Namespace) -> None:
    if args.recipe or args.options or args.data or args.out:
        raise UsageError("--resume RUN takes the run's own recipe and folder; give no recipe, data, folder or options")
    config = args.resume / CONFIG
    if not config.is_file():
        raise TranseptError(f"{str(args.resume)!r} is no run folder: it has no {CONFIG}")
    _train(parse_recipe(read_recipe(str(config)), []), args.resume, args, resume=True)


def _train(recipe: Recipe, folder: Path, args: argparse.Namespace, *, resume: bool) -> None:
    from transept.train.run import RunInterruptedError, train

    try:
        result = train(recipe, folder, resume=resume)
    except RunInterruptedError as error:
        error.args = (f"{error}; go on with: transept train --resume {folder}",)
        error.exit_code = 130  # pyright: ignore[reportAttributeAccessIssue]
        raise
    best = f"{result.score.title} {result.score.text(result.metrics[result.score.key], 2)}"
    lines = [
        f"{best} on the validation pictures (epoch {result.epoch}) after {result.seconds:.0f} s",
        "",
        f"  {folder / BEST}  the best weights, with classes and preprocessing",
        f"  {folder / CURVES}, {folder / METRICS}",
        "",
        "next:",
        *_next(recipe, folder),
    ]
    if result.skipped and recipe.task in ("classify", "pretrain"):  # a segmenter's data names them when it is loaded
        lines.insert(1, f"{result.skipped} unreadable files were left out")
    print("\n".join(lines), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print_json(
            {
                "run": str(folder),
                "seconds": round(result.seconds, 2),
                **{name: value for name, value in result.metrics.items() if name != "loss"},
                "epoch": result.epoch,
                "skipped": result.skipped,
            }
        )


def _next(recipe: Recipe, folder: Path) -> list[str]:
    """What can be done with the run, a command each."""
    if recipe.task == "pretrain":
        return [
            f"  transept eval {folder} --knn --linear   (needs labels)",
            f"  --model.weights {folder / BEST}   starts a recipe with the same model from it",
        ]
    return [
        f"  transept eval {folder}",
        f"  transept predict {folder} {folder / SAMPLES}   (or your own pictures)",
    ]


def parse_recipe(page: dict[str, Any], options: list[str]) -> Recipe:
    """A recipe's page and `--name value` options to a checked `Recipe`.

    Raises:
        UsageError: an unknown or ill-typed option, with the nearest match.
    """
    from jsonargparse import ArgumentError, ArgumentParser, Namespace

    known = _options()
    for where, keys in (("recipe", _flat(page)), ("option", _given(options))):
        for key in keys:
            if key not in known and not key.startswith("model.options."):
                raise unknown("recipe option" if where == "recipe" else where, key, known)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe, nested_key=None)
    argv = [_dashless(word) for word in options]
    try:
        config: Namespace = parser.parse_args(argv, namespace=parser.parse_object(page))
        return Recipe(**vars(parser.instantiate(config)))
    except UsageError:
        raise
    except (ArgumentError, TypeError, ValueError) as error:
        raise UsageError(_first_line(error)) from error


def _options() -> list[str]:
    """Every option of a recipe, dotted."""
    names = []
    for name, kind in get_type_hints(Recipe).items():
        if dataclasses.is_dataclass(kind):
            names += [f"{name}.{field.name}" for field in dataclasses.fields(kind)]
        else:
            names.append(name)
    return names


def _flat(page: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in page.items():
        nested = isinstance(value, dict) and prefix + str(key) != "model.options"
        keys += _flat(value, f"{prefix}{key}.") if nested else [f"{prefix}{key}"]
    return keys


def _given(options: list[str]) -> list[str]:
    keys = []
    for word in options:
        if word.startswith("--"):
            keys.append(_dashless(word)[2:].partition("=")[0])
        elif not keys:
            raise UsageError(f"unexpected {word!r}; options are given as --name value")
    return keys


def _dashless(word: str) -> str:
    """`--batch-size` as `--batch_size`; values stay as they are."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _first_line(error: Exception) -> str:
    """jsonargparse nests its reasons, one a line; the first names the option, the last the cause."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"


def _new_folder(folder: Path) -> Path:
    number, candidate = 1, folder
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _refuse_existing(folder: Path) -> None:
    if (folder / CONFIG).exists():
        raise TranseptError(
            f"{str(folder)!r} holds a run already; go on with --resume {folder}, or give another folder with --out"
        )

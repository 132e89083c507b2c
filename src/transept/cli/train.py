"""Train a model by a recipe: `transept train digits`, `transept train quick --data FOLDER`, `--resume RUN`."""

import argparse
import dataclasses
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from transept.cli.shared.tables import print_json
from transept.errors import TranseptError, UsageError, rank_of_environment, unknown
from transept.tasks.run_folder import BEST, CONFIG, CURVES, METRICS, SAMPLES
from transept.train.options.recipe import Recipe, plain, read_recipe, recipe_names, recipe_overview


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help=f"a YAML file, or one of: {recipe_overview()}")
    parser.add_argument(
        "--data",
        help="folder of pictures: train/CLASS/* and val/CLASS/*, or CLASS/*; to segment: images/training, "
        "annotations/training, the same of validation, and classes.txt; or 'digits', 'digits-scenes', hf:NAME, "
        "wds:TRAIN,VAL",
    )
    parser.add_argument("--out", type=Path, help="run folder to create (default: runs/RECIPE)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with an interrupted run")
    parser.add_argument("--skip-bad-images", action="store_true", help="leave unreadable files out instead of stopping")
    parser.add_argument(
        "--skip-bad-annotations", action="store_true", help="detectors: leave out annotations that cannot be used"
    )
    parser.add_argument("--accept-changed-data", action="store_true", help="resume although the data is not as it was")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="train nothing: print the recipe with every option, the batch, the steps and the memory they need, and "
        "draw the first batch",
    )
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
    if args.skip_bad_annotations:
        given += ["--skip_bad_annotations", "true"]
    recipe = parse_recipe(read_recipe(args.recipe), given)
    if args.dry_run:
        _dry_run(recipe, args)
        return
    if args.out or rank_of_environment():  # only the first process has a folder
        _train(recipe, args.out or Path("runs"), args, resume=False)
        return
    folder = _new_folder(Path("runs") / Path(args.recipe).stem)
    try:
        _train(recipe, folder, args, resume=False)
    finally:
        with suppress(OSError):  # nothing came of it
            folder.rmdir()


def _dry_run(recipe: Recipe, args: argparse.Namespace) -> None:
    import yaml

    from transept.train.loop.run import plan

    picture = Path(f"{args.out or Path(args.recipe).stem}.first-batch.png")
    recipe, found = plan(recipe, picture)
    options = plain(dataclasses.asdict(recipe))
    if args.json:
        print_json({"recipe": options, "plan": dataclasses.asdict(found), "first_batch": str(picture)})
        return
    print(yaml.safe_dump(options, sort_keys=False, allow_unicode=True))
    height, width = found.image
    shares = f"{found.processes} process{'es' if found.processes > 1 else ''} x {found.accumulate} part"
    lines = {
        "pictures": f"{found.pictures:,} to train on",
        "batch": f"{found.batch} = {shares}{'s' if found.accumulate > 1 else ''} of {found.part}, {height} x {width}",
        "steps": f"{found.steps:,}, {found.steps_per_epoch:,} between evaluations",
        "parameters": f"{found.parameters / 1e6:.2f} M, of which {found.learning / 1e6:.2f} M learn",
        "memory": f"about {(found.weights_bytes + found.kept_bytes) / 2**20:,.0f} MiB in each process: "
        f"{found.weights_bytes / 2**20:,.0f} for weights, gradients and optimiser, {found.kept_bytes / 2**20:,.0f} "
        "kept by the forward pass in float32",
        "first batch": str(picture),
    }
    print("\n".join(f"{name:<12} {text}" for name, text in lines.items()))


def _resume(args: argparse.Namespace) -> None:
    options = list(args.options)
    if (
        args.recipe
        or args.data
        or args.out
        or args.dry_run
        or not all(key.startswith("hardware.") for key in _given(options))
    ):
        raise UsageError(
            "--resume RUN takes the run's own recipe and folder; give no recipe, data, folder or options, "
            "but for those of hardware"
        )
    config = args.resume / CONFIG
    if not config.is_file():
        raise TranseptError(f"{str(args.resume)!r} is no run folder: it has no {CONFIG}")
    recipe = parse_recipe(read_recipe(str(config)), options)
    if args.accept_changed_data:
        recipe = dataclasses.replace(recipe, accept_changed_data=True)
    _train(recipe, args.resume, args, resume=True)


def _train(recipe: Recipe, folder: Path, args: argparse.Namespace, *, resume: bool) -> None:
    from transept.train.loop.run import RunInterruptedError, train

    if recipe.optimizer.lr_batch is not None:
        print(f"learning rate {recipe.scaled().optimizer.lr:g} for batches of {recipe.batch_size}", file=sys.stderr)
    try:
        result = train(recipe, folder, resume=resume, progress=not rank_of_environment())
    except RunInterruptedError as error:
        error.args = (f"{error}; go on with: transept train --resume {folder}",)
        error.exit_code = 130  # pyright: ignore[reportAttributeAccessIssue]
        raise
    if rank_of_environment():
        return
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
    from jsonargparse import ArgumentError, Namespace

    known = _options()
    for where, keys in (("recipe", _flat(page)), ("option", _given(options))):
        for key in keys:
            if key not in known and not key.startswith("model.options."):
                raise unknown("recipe option" if where == "recipe" else where, key, known)
    parser = _parser()
    argv = [_dashless(word) for word in options]
    try:
        config: Namespace = parser.parse_args(argv, namespace=parser.parse_object(page))
        return Recipe(**vars(parser.instantiate(config)))
    except UsageError:
        raise
    except (ArgumentError, TypeError, ValueError) as error:
        raise UsageError(_first_line(error)) from error


@cache
def _parser() -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe, nested_key=None)
    return parser


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
    """Made here, so that of two runs that start at once each gets its own."""
    number, candidate = 1, folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            candidate.mkdir()
            return candidate
        except FileExistsError:
            number += 1
            candidate = folder.with_name(f"{folder.name}-{number}")

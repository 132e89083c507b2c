"""Train a model by a recipe: `transept train digits`, `transept train quick --data FOLDER`, `--resume RUN`."""

import argparse
import dataclasses
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from transept.checks import shown
from transept.cli.main import Parser
from transept.cli.shared.tables import print_json, print_table, table_for_people
from transept.data.reading import PLAIN
from transept.errors import TranseptError, UsageError, rank_of_environment
from transept.files import is_file
from transept.tasks.run_folder import BEST, CONFIG, CURVES, FOLDS, METRICS, SAMPLES
from transept.tasks.task import Column, Table
from transept.training.options.continuing import continued
from transept.training.options.pages import read_recipe, recipe_names, recipe_overview
from transept.training.options.parsing import option_types, pairs, parse_recipe, shorter_warmup
from transept.training.options.recipe import Recipe, plain

if TYPE_CHECKING:
    from transept.training.folds import CrossValidation
    from transept.training.loop.dry_run import Plan

_SHOWN_METRICS = 5
"""Of a fold, in the table."""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("recipe", nargs="?", help=f"a YAML file, or one of: {recipe_overview()}")
    parser.add_argument(
        "--data",
        help="folder of pictures: train/CLASS/* and val/CLASS/*, or CLASS/*; to segment: images/training, "
        "annotations/training, the same of validation, and classes.txt; or 'digits', 'digits-scenes', hf:NAME, "
        "wds:TRAIN,VAL",
    )
    parser.add_argument("--out", type=Path, help="run folder to create (default: runs/RECIPE)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run, also with more --schedule.epochs")
    parser.add_argument(
        "--folds",
        type=int,
        metavar="N",
        help="cross-validation: N runs, each validated on its own part of the training pictures",
    )
    parser.add_argument("--skip-bad-images", action="store_true", help="leave unreadable files out instead of stopping")
    parser.add_argument(
        "--skip-bad-annotations", action="store_true", help="detectors: leave out annotations that cannot be used"
    )
    parser.add_argument("--accept-changed-data", action="store_true", help="resume although the data is not as it was")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="train nothing: print the recipe with every option of its task (--json: of all), the batch, the steps and "
        "the memory they need, and draw the first batch",
    )
    published = [name for name in recipe_names() if "/" in name]
    parser.epilog = (
        f"Recipes of published results: {', '.join(published)}. "
        "Any option of the recipe can be given as --name value, e.g. --schedule.epochs 50 --optimizer.lr 0.001 "
        "--model.name cait_xxs24_224 --model.options.depth 6. Options: " + ", ".join(option_types()) + "."
    )
    parser.rest = "options"  # those of the recipe, which jsonargparse reads by their types


def run(args: argparse.Namespace) -> None:
    if args.resume is not None:
        _resume(args)
        return
    if args.recipe is None:
        raise UsageError(f"which recipe? give a YAML file or one of: {recipe_overview()}")
    options = list(args.options)
    if args.data is not None:
        options += ["--data", args.data]
    for flag in ("skip_bad_images", "skip_bad_annotations"):
        if getattr(args, flag):
            options += [f"--{flag}", "true"]
    page = read_recipe(args.recipe)
    options += [f"--{name}={value}" for name, value in shorter_warmup(page, pairs(options)).items()]
    recipe = parse_recipe(page, options)
    if args.folds is not None and args.folds < 2:
        raise UsageError(f"--folds {args.folds} must be at least 2")
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
    # Lightning, which the help of this verb need not wait for.
    from transept.training.jobs.table import JOBS
    from transept.training.loop.run import plan

    picture = Path(f"{args.out or Path(args.recipe).stem}.first-batch.png")
    halves = []
    if args.folds is not None:
        from transept.training.folds import fold_of, halves_of  # as above

        halves = halves_of(recipe, args.folds)
        recipe = fold_of(recipe, 1, args.folds)
    recipe, size = plan(recipe, picture)
    options = plain(dataclasses.asdict(recipe))
    if args.json:
        about = {"recipe": options, "plan": dataclasses.asdict(size), "first_batch": str(picture)}
        print_json(about | ({"folds": [each._asdict() for each in halves]} if halves else {}))
        return
    own = {name: value for name, value in options.items() if name == recipe.task or name not in JOBS}
    print(yaml.safe_dump(own, sort_keys=False, allow_unicode=True))
    height, width = size.image
    batch = min(size.batch, size.pictures)
    few = f" (batch_size is {size.batch}, but there are no more)" if batch < size.batch else ""
    shares = f"{size.processes} process{'es' if size.processes > 1 else ''} x {size.accumulate} part"
    lines = {
        "pictures": size.found,
        "batch": f"{batch} = {shares}{'s' if size.accumulate > 1 else ''} of {size.part}{few}, {height} x {width}",
        "steps": f"{size.steps:,}, {size.steps_per_epoch:,} between evaluations",
        "parameters": f"{size.parameters / 1e6:.2f} M, of which {size.learning / 1e6:.2f} M learn",
        "memory": f"about {(size.weights_bytes + size.kept_bytes) / 2**20:,.0f} MiB in each process: "
        f"{size.weights_bytes / 2**20:,.0f} for weights, gradients and optimiser, {size.kept_bytes / 2**20:,.0f} "
        "kept by the forward pass in float32",
        "first batch": str(picture),
    }
    lines |= {
        f"fold {each.fold}": f"{each.train:,} pictures to train on and {each.val:,} to validate" for each in halves
    }
    if size.reading != PLAIN:
        lines |= _read_lines(size)
    print("\n".join(f"{name:<12} {text}" for name, text in lines.items()))


def _read_lines(size: "Plan") -> dict[str, str]:
    """Bands, black and white, and mean and deviation, as they are kept with the weights."""
    reading, lines = size.reading, {}
    if reading.bands:
        lines["bands"] = shown(reading.bands) + (", and no file has more" if reading.exact else "")
    if len(reading.pixel_range) == 1:
        lines["pixel range"] = shown(reading.pixel_range[0])
    elif reading.pixel_range:
        pairs = zip(reading.bands, reading.pixel_range, strict=True)
        lines["pixel range"] = ", ".join(f"{shown(pair)} of band {band}" for band, pair in pairs)
    return lines | {name: ", ".join(f"{value:.4f}" for value in getattr(size, name)) for name in ("mean", "std")}


def _resume(args: argparse.Namespace) -> None:
    if args.recipe or args.data or args.out or args.dry_run or args.folds is not None:
        raise UsageError("--resume RUN takes the run's own recipe, data, folder and folds; give none of them")
    if (args.resume / FOLDS).is_file():
        _resume_folds(args)
        return
    config = args.resume / CONFIG
    if not is_file(config):
        raise TranseptError(f"{str(args.resume)!r} is no run folder: it has no {CONFIG}")
    from transept.tasks.kept_recipe import check_whole  # torch, as above

    page = read_recipe(str(config))
    check_whole(page, args.resume)
    recipe = continued(page, args.options)
    if args.accept_changed_data:
        recipe = dataclasses.replace(recipe, accept_changed_data=True)
    _train(recipe, args.resume, args, resume=True)


def _resume_folds(args: argparse.Namespace) -> None:
    from transept.training.folds import read_folds  # Lightning, which the help of this verb need not wait for

    page, runs = read_folds(args.resume)
    recipe = continued(page, args.options)
    if args.accept_changed_data:
        recipe = dataclasses.replace(recipe, accept_changed_data=True)
    _train_folds(recipe, args.resume, args, runs.number, resume=True)


def _train_folds(recipe: Recipe, folder: Path, args: argparse.Namespace, folds: int, *, resume: bool) -> None:
    from transept.training.folds import train_folds  # as above

    runs = train_folds(recipe, folder, folds, resume=resume, anew=bool(resume and args.options))
    failed = [each for each in runs.folds if each.error is not None]
    if args.json:
        print_json(runs.as_dict())
    else:
        print_table(table_for_people(_folds_table(runs)))
        print(f"\n{folder / FOLDS}, and a run folder for each fold: transept eval {folder / 'fold-1'}")
    if failed:
        names = ", ".join(str(each.fold) for each in failed)
        raise TranseptError(
            f"{len(failed)} of {folds} folds failed (number {names}); try again with: transept train --resume {folder}"
        )


def _folds_table(runs: "CrossValidation") -> Table:
    """A row for each fold, then mean and standard deviation."""
    shown = [name for name in runs.metrics if name != "loss"][:_SHOWN_METRICS]
    key, text = runs.score.key, runs.score.text
    tested = key in runs.test
    columns = [Column("fold"), *(Column(name, True) for name in shown)]
    columns += [Column(f"{key} of test", True)] if tested else []
    columns += [Column("best epoch", True), Column("seconds", True)]
    rows = []
    for each in runs.folds:
        if each.error is not None:
            rows.append([str(each.fold), "failed", *[""] * (len(columns) - 2)])
            continue
        figures = [each.metrics[name] for name in shown] + ([each.test[key]] if tested else [])
        rows.append([str(each.fold), *(text(value, 2) for value in figures), str(each.epoch), f"{each.seconds:.0f}"])
    spreads = [runs.metrics[name] for name in shown] + ([runs.test[key]] if tested else [])
    rows.append(["mean", *(text(each.mean, 2) for each in spreads), "", ""])
    rows.append(["std", *("-" if each.std is None else text(each.std, 2) for each in spreads), "", ""])
    return Table(columns, rows, next((each.note for each in runs.done if each.note), ""))


def _train(recipe: Recipe, folder: Path, args: argparse.Namespace, *, resume: bool) -> None:
    if args.folds is not None:
        _train_folds(recipe, folder, args, args.folds, resume=resume)
        return
    from transept.training.loop.run import train  # Lightning, which the help of this verb need not wait for

    if recipe.optimizer.lr_batch is not None:
        print(f"learning rate {recipe.scaled().optimizer.lr:g} for batches of {recipe.batch_size}", file=sys.stderr)
    result = train(recipe, folder, resume=resume, progress=not rank_of_environment())
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
    if result.epochs < recipe.schedule.evaluations:
        patience = recipe.schedule.patience
        lines.insert(
            1, f"stopped after {result.epochs} of {recipe.schedule.evaluations} epochs: none better in {patience}"
        )
    if result.test is not None:
        lines.insert(1, f"{result.test.summary} on the {result.test.images:,} pictures of {result.test.split!r}")
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
                "test": None if result.test is None else result.test.as_dict(),
            }
        )


def _next(recipe: Recipe, folder: Path) -> list[str]:
    """Commands that go on with the run."""
    if recipe.task == "pretrain":
        return [
            f"  transept eval {folder} --knn --linear   (needs labels)",
            f"  --model.weights {folder / BEST}   starts a recipe with the same model from it",
        ]
    return [
        f"  transept eval {folder}",
        f"  transept predict {folder} {folder / SAMPLES}   (or your own pictures)",
    ]


def _new_folder(folder: Path) -> Path:
    """Made here, so that of two runs that start at once each gets its own."""
    number, candidate = 1, folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                candidate.mkdir()
                return candidate
            except FileExistsError:
                number += 1
                candidate = folder.with_name(f"{folder.name}-{number}")
    except OSError as error:
        raise TranseptError(
            f"cannot make the run folder {str(candidate)!r} here ({error.strerror or error}); give another with --out"
        ) from error

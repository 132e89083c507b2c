"""Convert a checkpoint of any known format to another, or say what it is (--identify)."""

import argparse
from pathlib import Path
from typing import Any

from transept.cli.shared.tables import print_json
from transept.errors import TranseptError, UsageError
from transept.models.backbone import Backbone
from transept.models.registry import find_model
from transept.weights.convert import OFFICIAL, find_dialect, from_official
from transept.weights.files.reading import Contents, read_checkpoint
from transept.weights.files.writing import check_suffix, write_state_dict
from transept.weights.fit import load_contents
from transept.weights.identify import Identity, identify, why_unknown
from transept.weights.load import create_model, find_file
from transept.weights.report import LoadReport
from transept.words import visible


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a file, an URL, or NAME.TAG of published weights")
    parser.add_argument("target", metavar="DST", nargs="?", help="the new file: .safetensors, .pth or .pdparams")
    parser.add_argument("--identify", action="store_true", help="say which model SRC is of, and write nothing")
    parser.add_argument(
        "--to",
        default=OFFICIAL,
        help="whose names: official (ours, too), timm, PASSL, MMPretrain, PaddleViT, birder, ...",
    )
    parser.add_argument("--model", help="the model that SRC is of (default: found from its names and shapes)")
    parser.add_argument("--wrapper", help="the entry of SRC to take, e.g. model_ema")
    parser.add_argument(
        "--backbone", action="store_true", help="of a detector's or classifier's file, take the pyramid"
    )


def run(args: argparse.Namespace) -> None:
    if args.identify == bool(args.target):
        raise UsageError("give either DST, the file to write, or --identify")
    if args.target:
        check_suffix(Path(args.target))
    contents = read_checkpoint(find_file(args.source)[0], args.wrapper)
    identity = identify(contents)
    if args.identify:
        _tell(args, contents, identity)
        return
    if identity is None and args.model is None:
        raise TranseptError(f"{args.source!r} {why_unknown(contents)}")
    name, family = find_model(args.model or identity.model)  # pyright: ignore[reportOptionalMemberAccess]
    find_dialect(family.name, args.to)
    model = _model(name, identity, pyramid=args.backbone)
    report = load_contents(model, contents, args.source)
    state = from_official(model.state_dict(), family.name, args.to)
    prefix = family.checkpoint_prefix if args.to.lower() == OFFICIAL else ""
    write_state_dict(Path(args.target), state, prefix=prefix)
    _report(args, report)


def _model(name: str, identity: Identity | None, *, pyramid: bool) -> Backbone:
    """The model that the file fills: the classifier with its number of classes, or the pyramid."""
    if pyramid or (identity and identity.form != "classifier"):
        return create_model(name, features_only=True)
    classes = identity.num_classes if identity else None
    return create_model(name, num_classes=0 if identity and classes is None else classes or 1000)


def _tell(args: argparse.Namespace, contents: Contents, identity: Identity | None) -> None:
    if identity is None:
        raise TranseptError(f"{args.source!r} {why_unknown(contents)}")
    form = find_dialect(identity.family, identity.dialect)
    facts: dict[str, Any] = {
        "source": args.source,
        "model": identity.model,
        "also": list(identity.also),
        "family": identity.family,
        "form": identity.form,
        "agreement": round(identity.agreement, 4),
        "num_classes": identity.num_classes,
        "names": identity.dialect,
        "differs": form.departs if form else "",
        "format": contents.format,
        "wrapper": contents.wrapper,
        "wrappers": list(contents.wrappers),
        "prefix": contents.prefix,
        "skipped": list(contents.skipped),
    }
    if args.json:
        print_json(facts)
        return
    print(f"{visible(args.source)}: this looks like {identity}")
    for what, value in facts.items():
        if what not in ("source", "model", "agreement") and value not in ("", [], None):
            print(f"  {what:<12}{visible(', '.join(value) if isinstance(value, list) else value)}")


def _report(args: argparse.Namespace, report: LoadReport) -> None:
    if args.json:
        print_json(report.as_dict() | {"target": args.target, "to": args.to})
        return
    print(report)
    print(f"wrote {args.target}")

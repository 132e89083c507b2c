"""The part of `eval` for features, with `--knn` and `--linear`: no classifier of the model's own is needed."""

import argparse
import sys
import time
from dataclasses import replace

from transept.cli.shared.forms import formed
from transept.cli.shared.reading import with_reading
from transept.cli.shared.tables import print_json
from transept.cli.shared.tasks import best_device, named_data
from transept.data.images import plain_skipped
from transept.errors import UsageError, say
from transept.tasks.feature_scores import K, feature_scores
from transept.tasks.load import load_features


def add_feature_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("features of classifiers and pretrained backbones")
    group.add_argument(
        "--knn", action="store_true", help="accuracy of the nearest training pictures, weighted as DINO's are"
    )
    group.add_argument("--k", type=int, metavar="N", help=f"neighbours of --knn (default {K})")
    group.add_argument(
        "--linear", action="store_true", help="accuracy of a logistic regression, fitted to the training pictures"
    )


def eval_features(args: argparse.Namespace) -> None:
    """Features of the training pictures, then accuracy on the validation pictures."""
    if args.k is not None and args.k < 1:
        raise UsageError(f"--k {args.k} must be at least 1")
    task = load_features(args.model)
    options = with_reading(args, task, named_data(args, task))
    splits = task.load_data(replace(options, skip_bad_images=args.skip_bad_images or options.skip_bad_images))
    measured = splits.parts.measured(len(splits.val), splits.measured_classes, str(options.data))
    say(measured)
    started = time.monotonic()
    task = formed(args, task.to(best_device()).eval(), dtype="float32")
    result = feature_scores(
        task, splits, knn=args.knn, linear=args.linear, k=args.k or K, batch_size=args.batch_size, workers=args.workers
    )
    result |= {
        "images": len(splits.val),
        "split": splits.parts.split,
        "measured": measured,
        "training_images": len(splits.train),
        "seconds": round(time.monotonic() - started, 3),
        "skipped": plain_skipped(splits.skipped),
    }
    if args.json:
        print_json({"model": args.model, "data": options.data} | result)
        return
    scores = []
    if args.knn:
        scores.append(f"k-NN top-1 {result['knn_top1']:.2%}   top-5 {result['knn_top5']:.2%}   k {result['k']}")
    if args.linear:
        scores.append(f"linear top-1 {result['linear_top1']:.2%}")
    pictures = f"({len(splits.val)} pictures beside {len(splits.train)} to learn from, {result['seconds']:.1f} s)"
    print("   ".join([*scores, pictures]))
    if splits.skipped:
        print(
            f"{len(splits.skipped)} unreadable files were left out, e.g. {str(splits.skipped[0].path)!r}",
            file=sys.stderr,
        )

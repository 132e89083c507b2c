"""The part of `eval` for features, with `--knn` and `--linear`: no classifier of the model's own is needed."""

import argparse
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from transept.cli.shared.forms import formed
from transept.cli.shared.tables import print_json
from transept.cli.shared.tasks import best_device, named_data
from transept.data.classification.transforms import transforms_for
from transept.data.images import plain_skipped
from transept.data.loading import TransformedSet, make_loader
from transept.errors import UsageError
from transept.metrics.knn import KNNMeter, NearestNeighbours
from transept.tasks.load import load_features
from transept.tasks.pretrain import FeatureExtractor

_K = 20


def add_feature_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("features of classifiers and pretrained backbones")
    group.add_argument(
        "--knn", action="store_true", help="accuracy of the nearest training pictures, weighted as DINO's are"
    )
    group.add_argument("--k", type=int, metavar="N", help=f"neighbours of --knn (default {_K})")
    group.add_argument(
        "--linear", action="store_true", help="accuracy of a logistic regression, fitted to the training pictures"
    )


def eval_features(args: argparse.Namespace) -> None:
    """Features of the training pictures, then accuracy on the validation pictures."""
    if args.k is not None and args.k < 1:
        raise UsageError(f"--k {args.k} must be at least 1")
    task = load_features(args.model)
    options = named_data(args, task)
    splits = task.load_data(replace(options, skip_bad_images=args.skip_bad_images or options.skip_bad_images))
    device, started = best_device(), time.monotonic()
    task = formed(args, task.to(device).eval(), dtype="float32")
    halves = [
        _features(
            task, make_loader(TransformedSet(half, transforms_for(task)), args.batch_size or 64, workers=args.workers)
        )
        for half in (splits.train, splits.val)
    ]
    result: dict[str, Any] = {}
    if args.knn:
        neighbours = NearestNeighbours(*halves[0], len(splits.classes), k=args.k or _K)
        votes, meter = neighbours(halves[1][0]), KNNMeter()
        meter.update(votes.new_zeros(()), votes, halves[1][1])
        result |= meter.means() | {"k": neighbours.k, "temperature": neighbours.temperature}
    if args.linear:
        result["linear_top1"] = _linear(*halves[0], *halves[1])
    result |= {
        "images": len(splits.val),
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
        print(f"{len(splits.skipped)} unreadable files were left out, e.g. {splits.skipped[0].path}", file=sys.stderr)


def _features(task: FeatureExtractor, loader: DataLoader) -> tuple[Tensor, Tensor]:
    device = next(task.parameters()).device
    features, labels = [], []
    with torch.inference_mode():
        for images, numbers in loader:
            features.append(task(images.to(device)).float())
            labels.append(numbers)
    return torch.cat(features), torch.cat(labels).to(device)


def _linear(train: Tensor, train_labels: Tensor, val: Tensor, val_labels: Tensor) -> float:
    """Top-1 of a logistic regression on standardised features, with scikit-learn's own regularisation (C = 1)."""
    # Takes seconds, and only `--linear` needs it.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(train.cpu().numpy(), train_labels.cpu().numpy())
    return float(classifier.score(val.cpu().numpy(), val_labels.cpu().numpy()))

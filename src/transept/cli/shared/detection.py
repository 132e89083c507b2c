"""`eval` and `predict` for detectors: COCO's average precision, and pictures with their objects drawn in."""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table

from transept.cli.shared.runs import best_device
from transept.cli.shared.tables import plain_number, plain_skipped, print_json, print_table
from transept.data.detection.sets import load_detection_splits
from transept.data.labels import drawing_color
from transept.draw.boxes import draw_objects
from transept.errors import TranseptError, UsageError
from transept.files import write_together
from transept.metrics.detection import Kind, detection_scores
from transept.tasks.coco_results import to_coco_results
from transept.tasks.data_options import DataOptions
from transept.tasks.detect import Detector
from transept.tasks.detect_pictures import DetectionInference, multi_scale

DETECTION_OPTIONS = ("score", "classes", "skip_bad_annotations")
DRAWN, RESULTS = ".objects.png", "results.json"
_SHOWN_SCORE = 0.3


def add_detection_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("detectors only")
    group.add_argument("--score", type=float, help=f"least score of an object (predict: {_SHOWN_SCORE}, eval: none)")
    group.add_argument("--classes", nargs="+", metavar="CLASS", help="only objects of these classes")
    group.add_argument(
        "--skip-bad-annotations", action="store_true", help="leave out annotations that cannot be used, and count them"
    )


def detection_of(task: Detector, args: argparse.Namespace, score: float) -> DetectionInference:
    """The options as `DetectionInference`; `--batch-size` counts pictures."""
    score = score if args.score is None else args.score
    if not 0 <= score < 1:
        raise UsageError(f"--score {score:g} is not in [0, 1)")
    classes = None if args.classes is None else tuple(args.classes)
    return DetectionInference(
        score_threshold=score,
        classes=classes,
        scales=multi_scale(task.preprocessing.scale) if args.multi_scale else (),
        flip=args.flip,
        batch_size=1 if args.batch_size is None else args.batch_size,
    )


def eval_detector(task: Detector, recipe: DataOptions | None, data: str, args: argparse.Namespace) -> None:
    if args.classes is not None:
        raise UsageError("--classes is for predict; average precision is given for each class")
    inference = detection_of(task, args, 0.0)
    splits = load_detection_splits(
        data,
        halves="val",
        masks=task.has_masks,
        skip_bad_annotations=args.skip_bad_annotations or bool(recipe and recipe.skip_bad_annotations),
        scenes=(recipe or DataOptions()).scenes,
    )
    if splits.classes != task.classes:
        odd = sorted(set(splits.classes) ^ set(task.classes))
        what = f"{odd[0]!r} is only in one of them" if odd else "their order differs"
        raise TranseptError(f"the classes of {data!r} are not the model's {len(task.classes)}: {what}")
    task.to(best_device()).eval()
    truth, results, started = splits.val.ground_truth(), [], time.monotonic()
    for i in range(len(splits.val)):
        picture, target = splits.val[i]
        (found,) = task.predict([picture], inference)
        size = (picture.shape[-2], picture.shape[-1])
        results += to_coco_results([found], [target["image_id"]], splits.category_ids, [size])
    seconds = time.monotonic() - started
    kinds: tuple[Kind, ...] = ("bbox", "segm") if task.has_masks else ("bbox",)
    scores = {kind: detection_scores(truth, results, kind) for kind in kinds}
    if args.json:
        plain = {
            kind: {name: plain_number(value) for name, value in found.means().items()}
            | {"per_class": {name: plain_number(value) for name, value in found.per_class.items()}}
            for kind, found in scores.items()
        }
        about = {"model": args.model, "data": data, "map": scores["bbox"].map, "images": len(splits.val)}
        about |= {"scales": [list(scale) for scale in inference.scales], "flip": inference.flip}
        print_json(about | plain | {"seconds": round(seconds, 3), "skipped": plain_skipped(splits.skipped)})
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for kind in kinds:
        table.add_column("box AP" if kind == "bbox" else "mask AP", justify="right")
    for name in scores["bbox"].per_class:
        table.add_row(name, *(_percent(scores[kind].per_class[name]) for kind in kinds))
    print_table(table)
    for kind in kinds:
        what, found = ("box" if kind == "bbox" else "mask"), scores[kind]
        print(
            f"\n{what} AP {_percent(found.map)}   AP50 {_percent(found.map50)}   AP75 {_percent(found.map75)}", end=""
        )
    print(f"   ({len(splits.val)} pictures, {seconds:.1f} s)")


def write_objects(
    task: Detector, pictures: Iterable[tuple[Path, Image.Image, str]], out: Path, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Each picture with its objects drawn in, and all objects in COCO's result format in results.json.

    `pictures` are paths, pictures, and names for the drawn files. Gives a row for each picture.
    """
    inference = detection_of(task, args, _SHOWN_SCORE)
    task.to(best_device())
    palette = [drawing_color(i) for i in range(len(task.classes))]
    rows, results = [], []
    for path, picture, name in pictures:
        (found,) = task.predict([picture], inference)
        size = (picture.height, picture.width)
        results += to_coco_results([found], [str(path)], list(range(len(task.classes))), [size])
        draw = partial(
            draw_objects,
            picture,
            found.boxes.float().cpu().numpy(),
            found.labels.cpu().numpy(),
            task.classes,
            palette,
            scores=found.scores.float().cpu().numpy(),
            masks=None if found.masks is None else found.masks.cpu().numpy(),
        )
        write_together(out, {name: lambda file, draw=draw: draw(path=file)})
        counts = Counter(task.classes[label] for label in found.labels.tolist())
        rows.append({"image": str(path), "objects": dict(counts.most_common()), "drawn": str(out / name)})
    text = json.dumps({"classes": task.classes, "results": results}, ensure_ascii=False) + "\n"
    write_together(out, {RESULTS: lambda file: file.write_text(text, encoding="utf-8")})
    return rows


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2%}"

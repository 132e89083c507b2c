"""Write what a model sees in pictures, a vector of each, as Parquet: for search, clustering, or a model on top.

By default the vector is what the model's classifier reads: the class token, or the mean of all patches, as the model
has it. A row is a picture, in its order; a picture that cannot be read has its error there.
"""

import argparse
from pathlib import Path

from transept.cli.shared.forms import add_form, check_form
from transept.cli.shared.labelling import SHARDS_OUT, add_labelling, check_labelling, label, names_shards
from transept.cli.shared.reading import add_reading, set_reading
from transept.cli.shared.tasks import best_device, inference_of
from transept.errors import UsageError
from transept.tasks.load import load_backbone


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN_OR_NAME", help="a run folder, a .safetensors file, or a model's name")
    parser.add_argument(
        "images",
        metavar="IMAGES",
        nargs="+",
        help="picture files, folders, patterns, or @LIST; wds:PATTERN, WebDataset shards; hf:NAME, a Hugging Face set",
    )
    parser.add_argument("--out", type=Path, required=True, metavar=f"{SHARDS_OUT}FOLDER", help="where the rows go")
    parser.add_argument("--pool", choices=("token", "avg"), help="the class token, or the mean of the last patches")
    parser.add_argument("--level", type=int, metavar="N", help="the mean of this level's map; -1 is the last")
    parser.add_argument("--batch-size", type=int, metavar="N", help="pictures at once (default 32)")
    add_labelling(parser)
    add_reading(parser, auto=False)
    add_form(parser)


def run(args: argparse.Namespace) -> None:
    if not names_shards(args.out):
        raise UsageError(f"--out {args.out}: features are written as Parquet; give --out {SHARDS_OUT}FOLDER")
    check_labelling(args)
    check_form(args)
    task = load_backbone(args.model).to(best_device()).eval()
    task.read_from(level=args.level, pool=args.pool)
    set_reading(args, task)
    label(args, task, inference_of(task, {"batch_size": args.batch_size}), {"level": args.level, "pool": args.pool})

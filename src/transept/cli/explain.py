"""Draw where a model looks in a picture: the attention of its family, rollout, and of a classifier Grad-CAM.

Without --kind, a layer of each kind; with it, the layers of this kind, head by head. Kinds of which each token has its
own map show one token's: that in the middle of the picture, or at --token.
"""

import argparse
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from transept.cli.shared.reading import add_reading, set_reading
from transept.cli.shared.tables import print_json, print_table
from transept.data.inputs import find_input, read_input
from transept.errors import UsageError
from transept.explain.attention import AttentionMap
from transept.explain.explanation import Explanation
from transept.tasks.load import load

_SHEET = Path("explanation.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN_OR_NAME", help="a run folder, a .safetensors file, or a model's name")
    parser.add_argument("image", metavar="IMAGE", help="a picture file, or - for its bytes on standard input")
    parser.add_argument("--kind", help="one kind alone; a wrong one is answered with those that the model has")
    parser.add_argument(
        "--token", type=int, nargs=2, metavar=("X", "Y"), help="pixel of the picture (default: the middle)"
    )
    parser.add_argument(
        "--block", type=int, nargs="+", metavar="N", help="layers of the kind, from 0, negative from the end"
    )
    parser.add_argument("--head", type=int, metavar="N", help="one head alone, from 0, side by side of all layers")
    parser.add_argument("--out", type=Path, default=_SHEET, help=f"the sheet to write (default {_SHEET})")
    add_reading(parser)


def run(args: argparse.Namespace) -> None:
    if args.out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".webp"):
        raise UsageError(f"--out {args.out}: give a name that ends in .png, .jpg, .pdf, .svg or .webp")
    if args.kind is None and (args.block is not None or args.head is not None):
        raise UsageError("--block and --head choose among the layers of one kind; give --kind, too")
    task = load(args.model)
    if not task.explains:
        raise UsageError(
            f"{args.model!r} is a {task.kind}, and explain draws classifiers and pretrained backbones; in Python, "
            "transept.attention_maps(task, images) gives the maps of its backbone"
        )
    image = find_input(args.image)
    set_reading(args, task, [image])
    explained = Explanation(task, read_input(image, task.read), args.token)
    rows = explained.rows_of(args.kind, args.block, args.head) if args.kind else explained.overview()
    explained.draw(rows, args.out)
    if args.json:
        print_json(
            {
                "model": args.model,
                "image": str(image.path),
                "predictions": [{"label": name, "score": score} for name, score in explained.named],
                "token": list(explained.token) if explained.marked else None,
                "maps": [_plain(each) for each in explained.shown],
                "sheet": str(args.out),
            }
        )
        return
    table = Table(box=None, pad_edge=False)
    for head in ("kind", "layer", "heads", "rows x columns", "looks at"):
        table.add_column(head)
    for attention in explained.shown:
        source = "channels" if attention.over == "channels" else "tokens"
        source = source if attention.source is None else f"digest of block {attention.source}"
        h, w = attention.grid
        table.add_row(attention.kind, escape(attention.name), str(attention.heads), f"{h} x {w}", source)
    print_table(table)
    print(f"\n{args.out}")


def _plain(attention: AttentionMap) -> dict[str, Any]:
    return {
        "kind": attention.kind,
        "name": attention.name,
        "stage": attention.stage,
        "block": attention.block,
        "source": attention.source,
        "over": attention.over,
        "heads": attention.heads,
        "grid": list(attention.grid),
    }

"""Open a page on this machine to try a model in the browser: drop a picture, see what the model says, and how fast.

Labels and attention of a classifier, boxes and masks of a detector, the mask of a segmenter; of several pictures a
table; of a run its curves, and what 'eval RUN --report RUN/report' has drawn. Ctrl-C ends it.
"""

import argparse
import signal
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

from transept.cli.shared.forms import add_form, formed
from transept.cli.shared.reading import add_reading, set_reading
from transept.cli.shared.tables import print_json
from transept.cli.shared.tasks import load_task
from transept.errors import TranseptWarning, UsageError
from transept.serve.answers import Limits

_LOOPBACK = ("127.0.0.1", "localhost")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    limits = Limits()
    parser.add_argument("model", metavar="RUN_OR_NAME", help="a run folder, a .safetensors file, or a model's name")
    parser.add_argument("--compare", metavar="RUN_OR_NAME", help="a second model, which answers beside the first")
    parser.add_argument("--host", default=_LOOPBACK[0], help="address to listen at (default %(default)s: this machine)")
    parser.add_argument("--port", type=int, help="port to listen at (default: the first free one from 7860 on)")
    parser.add_argument(
        "--max-megabytes", type=float, default=limits.megabytes, help="of a picture file (default %(default)g)"
    )
    parser.add_argument(
        "--max-megapixels", type=float, default=limits.megapixels, help="of a picture (default %(default)g)"
    )
    add_reading(parser, auto=False)
    add_form(parser)


def run(args: argparse.Namespace) -> None:
    if args.port is not None and not 1 <= args.port <= 65535:
        raise UsageError(f"--port {args.port} is not in 1..65535")
    limits = Limits(megabytes=args.max_megabytes, megapixels=args.max_megapixels)
    task = load_task(args.model)
    set_reading(args, task)
    compared = None
    if args.compare is not None:
        second = load_task(args.compare)
        if second.is_dense != task.is_dense:
            raise UsageError(
                f"--compare {args.compare!r} is a {second.kind}, and {args.model!r} a {task.kind}; give one of its kind"
            )
        set_reading(args, second)
        compared = _title(args.compare), second

    from transept.serve.page import serving  # gradio takes seconds, and the extra `serve`, which --help need not

    if args.host not in _LOOPBACK:
        warnings.warn(
            f"everyone who reaches this machine at {args.host} can use the page; it asks for no password",
            TranseptWarning,
            stacklevel=2,
        )
    if threading.current_thread() is threading.main_thread():
        for ending in (signal.SIGINT, signal.SIGTERM):  # so that pictures are deleted, in a script's background too
            signal.signal(ending, signal.default_int_handler)
    with (
        suppress(KeyboardInterrupt),
        serving(
            formed(args, task),
            _title(args.model),
            host=args.host,
            port=args.port,
            limits=limits,
            explained=task,
            compared=compared,
            report=_report(args.model),
        ) as url,
    ):
        if args.json:
            print_json({"model": args.model, "url": url})
        else:
            print(f"{args.model} at {url} (Ctrl-C ends it)", flush=True)
        while True:  # in short waits: a signal that another thread takes does not end a long one
            time.sleep(1)


def _report(source: str) -> list[Path]:
    """The pictures that training and `eval --report RUN/report` have left in a run folder."""
    run = Path(source)
    return [file for file in (run / "curves.png", *sorted((run / "report").glob("*.png"))) if file.is_file()]


def _title(source: str) -> str:
    path = Path(source)
    if path.is_dir():
        return path.resolve().name
    return path.parent.name if path.name == "best.safetensors" else path.stem if path.is_file() else source

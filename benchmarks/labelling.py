"""Pictures a second of labelling, beside the model alone and a loop over timm's loader.

`python benchmarks/labelling.py` makes the pictures, measures, writes and prints the result as JSON.

JPEGs of 640 x 480 are made from scikit-learn's two photographs: crops, mirrored, darker and lighter. The model has
random weights, which cost as much as others. Each measurement is a process of its own, with as many threads as torch
takes by itself, and they take turns, `--rounds` times:

- `model`: the model alone, in the form that labelling chooses, on batches of pictures that are prepared already, with
  the allocator that keeps what is freed, as in `transept`'s commands;
- `timm`, `timm fused`: a plain loop over timm's loader (two processes) with the same model, as it is and in that form;
- `predict`: `transept predict --out TABLE.parquet`, which reads pictures in the process of the model;
- `labelling`: `transept predict --out parquet:FOLDER`.

Rates leave out what comes before the second batch. Then: the most memory that the process of the model held, for the
pictures and for ten times as many names of them (hard links), and the processor time of all processes from the start
to the first shard, where a shard is one picture, and where it is one batch.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BATCH = 32
KINDS = ("model", "timm", "timm fused", "predict", "labelling")
RESULTS = Path(__file__).parent / "results"


def make(folder: Path, count: int) -> None:
    from PIL import Image, ImageEnhance, ImageOps
    from sklearn.datasets import load_sample_images

    photos, draw = [Image.fromarray(array) for array in load_sample_images().images], random.Random(0)
    folder.mkdir(parents=True)
    for number in range(count):
        photo = photos[number % 2]
        width = draw.randrange(400, 561)
        height = width * 3 // 4
        left, top = draw.randrange(photo.width - width), draw.randrange(photo.height - height)
        picture = photo.crop((left, top, left + width, top + height)).resize((640, 480), Image.Resampling.BICUBIC)
        picture = ImageOps.mirror(picture) if draw.random() < 0.5 else picture
        ImageEnhance.Brightness(picture).enhance(draw.uniform(0.7, 1.3)).save(folder / f"{number:06d}.jpg", quality=90)


def link(source: Path, folder: Path, times: int) -> None:
    folder.mkdir()
    for number in range(times):
        for file in source.iterdir():
            (folder / f"{number:02d}-{file.name}").hardlink_to(file)


def save_model(name: str, file: Path) -> None:
    import transept
    from transept.data.classification.transforms import preprocessing_of
    from transept.tasks.classify import Classifier

    model = transept.create_model(name)
    Classifier(model, [str(i) for i in range(1000)], preprocessing_of(model)).eval().save(file)


def rate_of(batches: Iterable[Any], answer: Any) -> float:
    """Pictures a second, from the end of the first batch."""
    started, count = 0.0, 0
    for batch in batches:
        answer(batch)
        count = count + len(batch) if started else 0
        started = started or time.perf_counter()
    return count / (time.perf_counter() - started)


def measure_alone(file: str, folder: str, kind: str, workers: int) -> dict[str, float]:
    """`model`, `timm` and `timm fused`."""
    import torch
    from PIL import Image
    from timm.data import create_dataset, create_loader

    import transept
    from transept.allocator import keep_freed_memory
    from transept.tasks.forms import in_form

    task: Any = transept.load(file)
    prepared = task.preprocessing
    task = in_form(task, "eager" if kind == "timm" else "fused")
    paths = sorted(Path(folder).iterdir())

    @torch.inference_mode()
    def answer(images: Any) -> None:
        task(images).softmax(dim=1).topk(3)

    if kind == "model":
        keep_freed_memory()
        made = task.input_of()
        batches = [torch.stack([made(Image.open(path)) for path in paths[i : i + BATCH]]) for i in (0, BATCH)]
        return {"rate": rate_of((batches[i % 2] for i in range(len(paths) // BATCH)), answer)}
    loader = create_loader(
        create_dataset("", root=str(Path(folder).parent), is_training=False),
        input_size=(3, *prepared.img_size),
        batch_size=BATCH,
        use_prefetcher=False,
        interpolation=prepared.interpolation,
        mean=prepared.mean,
        std=prepared.std,
        crop_pct=prepared.crop_pct,
        num_workers=workers,
        device=torch.device("cpu"),
    )
    return {"rate": rate_of((images for images, _ in loader), answer)}


def measure_verb(file: str, folder: str, kind: str, workers: int) -> dict[str, float]:
    """`predict` and `labelling`, by the command."""
    from contextlib import redirect_stdout
    from io import StringIO

    from transept.cli.main import main

    with tempfile.TemporaryDirectory() as out, redirect_stdout(StringIO()) as printed:
        argv = ["predict", file, folder, "--batch-size", str(BATCH), "--json", "--out"]
        argv += [f"{out}/t.parquet"] if kind == "predict" else [f"parquet:{out}/rows", "--workers", str(workers)]
        started = time.perf_counter()
        assert main(argv) == 0
        seconds = time.perf_counter() - started
    said = json.loads(printed.getvalue())
    count = len(list(Path(folder).iterdir()))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rate": said.get("rate") or count / seconds, "seconds": seconds, "peak_mib": memory}


def first_row(file: Path, folder: Path, workers: int, rows: int) -> float:
    """Processor seconds of all processes until the first shard, of so many rows, has its name."""
    with tempfile.TemporaryDirectory() as out:
        argv = ["predict", file, folder, "--out", f"parquet:{out}/rows", "--workers", workers, "--rows", rows]
        process = subprocess.Popen([sys.executable, "-m", "transept", *map(str, argv)], stderr=subprocess.DEVNULL)
        while not (Path(out) / "rows" / "part-00000.parquet").exists():
            assert process.poll() is None, "it ended before the first shard"
            time.sleep(0.02)
        seconds = _processor_seconds(process.pid)
        process.kill()
        process.wait()
        time.sleep(6)  # until the readers have seen that they are alone
    return seconds


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # with those of children that ended
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(map(_processor_seconds, map(int, children)))


def in_process(*words: object) -> dict[str, float]:
    run = [sys.executable, __file__, "--one", *map(str, words)]
    return json.loads(subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="xcit_small_12_p16_224")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--times", type=int, default=10, help="as many pictures again, for memory (0: not measured)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "labelling.json")
    parser.add_argument("--one", nargs=4, metavar=("KIND", "FILE", "FOLDER", "WORKERS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        kind, file, folder, workers = args.one
        measure = measure_verb if kind in ("predict", "labelling") else measure_alone
        print(json.dumps(measure(file, folder, kind, int(workers))))
        return
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        file, few, many = root / "run.safetensors", root / "few" / "of one class", root / "many"
        make(few, args.pictures)
        save_model(args.model, file)
        rounds = [{kind: in_process(kind, file, few, args.workers) for kind in KINDS} for _ in range(args.rounds)]
        rates = {kind: statistics.median(each[kind]["rate"] for each in rounds) for kind in KINDS}
        result: dict[str, Any] = {
            "model": args.model,
            "pictures": args.pictures,
            "workers": args.workers,
            "cores": len(os.sched_getaffinity(0)),
            "rates": rates,
            "share_of_model": statistics.median(each["labelling"]["rate"] / each["model"]["rate"] for each in rounds),
            "first_row_processor_seconds": {rows: first_row(file, few, args.workers, rows) for rows in (1, BATCH)},
            "peak_mib": rounds[-1]["labelling"]["peak_mib"],
            "rounds": rounds,
        }
        if args.times:
            link(few, many, args.times)
            result["peak_mib_of_more"] = in_process("labelling", file, many, args.workers)["peak_mib"]
            result["more"] = args.pictures * args.times
    text = json.dumps(result, indent=1)
    args.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

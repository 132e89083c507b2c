"""Images per second and core of the training loader beside timm's, in one run: `python benchmarks/loader.py FOLDER`.

FOLDER has JPEG photographs, at any depth; without one the two of scikit-learn are used. They are copied, again and
again in several sizes, into a class folder in a temporary place. Both loaders work in this process (no workers), on
one thread; they crop at random, flip, and normalise to float32; epochs alternate after one of warming up. Counted is
processor time, which other work on the machine lengthens less than it does the time on the wall; both are written.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import PIL
import timm
import torch
import torchvision
from PIL import Image, features
from sklearn.datasets import load_sample_images
from timm.data import create_dataset, create_loader
from torch import Tensor

import transept
from transept.data.classification import image_set
from transept.data.classification.sets import load_splits
from transept.data.classification.transforms import Augmentation, Preprocessing, train_transform
from transept.data.loading import EpochSampler, TransformedSet, make_loader

RESULTS = Path(__file__).parent / "results"
BATCH = 32


def fill(root: Path, photos: list[Image.Image | Path], long_side: int | None, count: int) -> float:
    """Two classes in training and validation folders; the photographs' mean megapixels."""
    pixels = 0
    for number in range(count):
        photo = photos[number % len(photos)]
        for half in ("train", "val"):
            file = root / half / "ab"[number % 2] / f"{number:04d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(photo, Path) and long_side is None:
                shutil.copy(photo, file)
                continue
            picture = Image.open(photo) if isinstance(photo, Path) else photo
            scale = (long_side or max(picture.size)) / max(picture.size)
            size = round(picture.width * scale), round(picture.height * scale)
            picture.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(file, quality=92)
        with Image.open(root / "train" / "ab"[number % 2] / f"{number:04d}.jpg") as copied:
            pixels += copied.width * copied.height
    return pixels / count / 1e6


def ours(root: Path, size: int, *, fast: bool) -> Callable[[int], Iterable[tuple[Tensor, Tensor]]]:
    image_set._SMALL_BYTES = 0  # as of a large set: nothing is kept decoded
    train = load_splits(str(root)).train
    transform = train_transform(Preprocessing(img_size=(size, size)), Augmentation())
    dataset = TransformedSet(train, transform, fast_decode=fast)

    def epoch(number: int) -> Iterable[tuple[Tensor, Tensor]]:
        return make_loader(
            dataset, BATCH, sampler=EpochSampler(len(train), seed=0, batch_size=BATCH, start_epoch=number)
        )

    return epoch


def timms(root: Path, size: int, batch_size: int = BATCH) -> Callable[[int], Iterable[tuple[Tensor, Tensor]]]:
    dataset = create_dataset("", root=str(root), split="train", is_training=True)
    loader = create_loader(
        dataset,
        input_size=(3, size, size),
        batch_size=batch_size,
        is_training=True,
        use_prefetcher=False,  # it would normalise on a GPU
        no_aug=False,
        color_jitter=0.0,
        interpolation="bicubic",
        num_workers=0,
        persistent_workers=False,
    )
    return lambda number: loader


def run(epoch: Iterable[tuple[Tensor, Tensor]]) -> tuple[int, float, float]:
    """Images, processor seconds, seconds."""
    images, cpu, wall = 0, time.process_time(), time.perf_counter()
    for batch, _ in epoch:
        assert batch.dtype == torch.float32
        images += len(batch)
    return images, time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--long-sides", type=int, nargs="*", default=[1200], help="sizes to resave the photographs in")
    parser.add_argument("--img-sizes", type=int, nargs="*", default=[224])
    args = parser.parse_args()
    torch.set_num_threads(1)
    photos: list[Image.Image | Path] = [Image.fromarray(array) for array in load_sample_images().images]
    if args.folder is not None:
        photos = list[Image.Image | Path](sorted(args.folder.rglob("*.jpg"))[: args.count])
    rows = []
    for long_side in [None, *args.long_sides]:
        with tempfile.TemporaryDirectory() as name:
            megapixels = fill(Path(name), photos, long_side, args.count)
            for size in args.img_sizes:
                loaders = {
                    "transept": ours(Path(name), size, fast=True),
                    "transept, whole pictures": ours(Path(name), size, fast=False),
                    "timm": timms(Path(name), size),
                }
                rates: dict[str, list[float]] = {key: [] for key in loaders}
                walls: dict[str, list[float]] = {key: [] for key in loaders}
                for turn in range(args.repetitions + 1):
                    for key, loader in loaders.items():
                        images, cpu, wall = run(loader(turn))
                        if turn:
                            rates[key].append(images / cpu)
                            walls[key].append(images / wall)
                median = {key: statistics.median(values) for key, values in rates.items()}
                rows.append(
                    {
                        "long_side": long_side,
                        "megapixels": megapixels,
                        "img_size": size,
                        "images_per_cpu_second": median,
                        "min_max": {key: (min(values), max(values)) for key, values in rates.items()},
                        "images_per_second": {key: statistics.median(values) for key, values in walls.items()},
                        "ratio": median["transept"] / median["timm"],
                    }
                )
                print(
                    f"{megapixels:5.2f} megapixels to {size}:   "
                    + "   ".join(f"{key} {value:.0f}" for key, value in median.items())
                    + f"   images per core and second; {rows[-1]['ratio']:.2f} times timm's",
                    flush=True,
                )
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "pillow": PIL.__version__,
        "libjpeg_turbo": features.check_feature("libjpeg_turbo"),
        "transept": transept.__version__,
        "photographs": args.folder.name if args.folder else "scikit-learn",
        "count": args.count,
        "repetitions": args.repetitions,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "loader.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

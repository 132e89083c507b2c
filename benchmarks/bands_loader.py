"""Training loaders on files of 16 bits and of four bands, in one run: `python benchmarks/bands_loader.py`.

Files of a megapixel lie in class folders in a temporary place. Ours is the training loader as `train` makes it. timm's
is `create_loader` on its `ImageDataset`; what its pictures hold is said, or why it has none. "Plain" is what is written
by hand: the file read by rasterio, tifffile or Pillow, its values as float32, and then the same crop, resizing,
flip and normalisation by torchvision. All work in this process on one thread; epochs alternate after one of warming
up; counted is processor time, and the medians are written with every turn to `benchmarks/results/bands_loader.json`.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import loader
import numpy as np
import PIL
import rasterio
import tifffile
import timm
import torch
from PIL import Image
from timm.data.readers import add_img_extensions
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from transept.data.classification import image_set
from transept.data.classification.sets import load_splits
from transept.data.classification.transforms import Augmentation, Preprocessing, train_transform
from transept.data.loading import EpochSampler, TransformedSet, make_loader
from transept.data.reading import WantedReading

RESULTS = Path(__file__).parent / "results"
BATCH = 8
SIDE = 1000
SIZE = 224
WHITE = 40_000.0
STRIPS = dict(planarconfig="separate", photometric="minisblack", compression="zlib")
TILES = dict(planarconfig="contig", photometric="minisblack", compression="zlib", tile=(256, 256))
SETS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "grey, 16-bit PNG": (1, ".png", {}),
    "grey, 16-bit TIFF, deflate": (1, ".tif", dict(compression="zlib")),
    "4 bands, 16-bit TIFF, strips of each band, deflate": (4, ".tif", STRIPS),
    "4 bands, 16-bit TIFF, tiles, deflate": (4, ".tif", TILES),
}


def fill(root: Path, count: int, bands: int, ending: str, options: dict[str, Any]) -> None:
    """Smooth noise, which compresses as photographs do."""
    for number in range(count):
        steps = np.random.default_rng(number).normal(size=(bands, SIDE, SIDE))
        values = (steps.cumsum(-1).cumsum(-2) * 8 + 20_000).clip(0, 65535).astype(np.uint16)
        file = root / "train" / "ab"[number % 2] / f"{number:04d}{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if ending == ".png":
            Image.fromarray(values[0]).save(file)
        else:
            array = values[0] if bands == 1 else values
            tifffile.imwrite(file, array.transpose(1, 2, 0) if options.get("tile") else array, **options)


def with_rasterio(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def with_tifffile(path: Path) -> np.ndarray:
    array = tifffile.imread(path)
    if array.ndim == 2:
        return array[None]
    return array if array.shape[0] < array.shape[-1] else array.transpose(2, 0, 1)


def with_pillow(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))[None]


class Plain(Dataset[Tensor]):
    def __init__(self, root: Path, bands: int, read: Callable[[Path], np.ndarray]) -> None:
        self.files = sorted(root.rglob("*.*"))
        self.read = read
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(SIZE, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.Normalize((0.5,) * bands, (0.2,) * bands),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        values = torch.from_numpy(self.read(self.files[index]).astype(np.float32))
        return self.transform((values / WHITE).clamp(0, 1))


def ours(root: Path, bands: int, *, fast: bool) -> Callable[[int], Iterable[Any]]:
    image_set._SMALL_BYTES = 0  # as of a large set: nothing is kept decoded
    wanted = WantedReading(bands=tuple(range(bands)), pixel_range=(0.0, WHITE))
    train = load_splits(str(root), reading=wanted, val_fraction=0.01).train
    preprocessing = Preprocessing(img_size=(SIZE, SIZE), mean=(0.5,) * bands, std=(0.2,) * bands)
    dataset = TransformedSet(train, train_transform(preprocessing, Augmentation(color_jitter=0.0)), fast_decode=fast)

    def epoch(number: int) -> Iterable[Any]:
        sampler = EpochSampler(len(train), seed=0, batch_size=BATCH, start_epoch=number)
        return (batch for batch, _ in make_loader(dataset, BATCH, sampler=sampler))

    return epoch


def timms(root: Path) -> Callable[[int], Iterable[Any]]:
    add_img_extensions(".tif")  # else it finds no pictures
    epoch = loader.timms(root, SIZE, BATCH)
    return lambda number: (batch for batch, _ in epoch(number))


def what_timm_has(loader: Callable[[int], Iterable[Any]]) -> str:
    try:
        batch = next(iter(loader(0)))
    except Exception as error:
        return f"refuses: {type(error).__name__}"
    levels = len(batch.unique())
    return f"{levels} level{'s' if levels > 1 else ''} in a batch"


def run(epoch: Iterable[Any]) -> tuple[int, float]:
    """Pictures and processor seconds."""
    images, cpu = 0, time.process_time()
    for batch in epoch:
        assert batch.dtype == torch.float32
        images += len(batch)
    return images, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for name, (bands, ending, options) in SETS.items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            fill(root, args.count, bands, ending, options)
            timm_loader = timms(root)
            timm_has = what_timm_has(timm_loader)
            readers = {"rasterio": with_rasterio, "tifffile": with_tifffile}
            readers = {"Pillow": with_pillow} if ending == ".png" else readers
            loaders = {"transept": ours(root, bands, fast=True)}
            loaders["transept, whole pictures"] = ours(root, bands, fast=False)
            loaders |= {} if "refuses" in timm_has else {"timm": timm_loader}
            for library, read in readers.items():
                plain = Plain(root, bands, read)
                loaders[f"plain {library}"] = lambda number, plain=plain: DataLoader(plain, BATCH, shuffle=True)
            turns: dict[str, list[float]] = {key: [] for key in loaders}
            for turn in range(args.repetitions + 1):
                for key, loader in loaders.items():
                    images, cpu = run(loader(turn))
                    if turn:
                        turns[key].append(images / cpu)
        median = {key: statistics.median(values) for key, values in turns.items()}
        times = {key: median["transept"] / value for key, value in median.items()}
        row = {"files": name, "timm": timm_has, "images_per_cpu_second": median, "times": times, "turns": turns}
        rows.append(row)
        print(f"{name} (timm: {timm_has})")
        print("   ".join(f"{key} {value:.1f} ({times[key]:.2f})" for key, value in median.items()), flush=True)
    versions = {each.__name__: each.__version__ for each in (rasterio, tifffile, timm, torch, PIL)}
    about = {"cores": os.cpu_count(), "count": args.count, "megapixels": SIDE * SIDE / 1e6, "versions": versions}
    RESULTS.mkdir(exist_ok=True)
    page = json.dumps({"about": about, "rows": rows}, indent=1) + "\n"
    (RESULTS / "bands_loader.json").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

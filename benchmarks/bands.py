"""Files of 16 bits and of many bands to 8-bit pictures, beside rasterio's and tifffile's plain reading, in one run.

`python benchmarks/bands.py`. The other two give the values as they are stored; ours also scales them to 8 bits. Times
are the least of several turns, on one thread.
"""

import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import tifffile
import torch

from transept.data.images import read_image
from transept.data.reading import Reading

RESULTS = Path(__file__).parent / "results"
TURNS = 9
FILES: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "grey, 16 bits": ((1, 1000, 1000), {}),
    "grey, 16 bits, deflate": ((1, 1000, 1000), dict(compression="zlib")),
    "4 bands, 16 bits": ((4, 1000, 1000), dict(planarconfig="separate")),
    "4 bands, 16 bits, deflate": ((4, 1000, 1000), dict(planarconfig="separate", compression="zlib")),
    "12 bands, 16 bits, deflate": ((12, 500, 500), dict(planarconfig="separate", compression="zlib")),
}


def write(path: Path, shape: tuple[int, int, int], options: dict[str, Any]) -> None:
    """Smooth noise, which compresses as photographs do."""
    steps = np.random.default_rng(0).normal(size=shape)
    values = (steps.cumsum(-1).cumsum(-2) * 8 + 20_000).clip(0, 65535).astype(np.uint16)
    tifffile.imwrite(path, values[0] if shape[0] == 1 else values, photometric="minisblack", **options)


def with_rasterio(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def least(read: Callable[[], Any]) -> float:
    """Milliseconds."""
    times = []
    for _ in range(TURNS):
        start = time.perf_counter()
        read()
        times.append(time.perf_counter() - start)
    return round(1000 * min(times), 2)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.tif")
        for name, (shape, options) in FILES.items():
            write(path, shape, options)
            reading = Reading(bands=tuple(range(shape[0])), pixel_range=((0, 40_000),))
            ours, theirs, plain = (
                least(read)
                for read in (
                    lambda reading=reading: read_image(path, reading=reading),
                    lambda: with_rasterio(path),
                    lambda: tifffile.imread(path),
                )
            )
            rows[name] = {"transept": ours, "rasterio": theirs, "tifffile": plain}
            print(f"{name}: {ours} ms, rasterio {theirs} ({theirs / ours:.2f}), tifffile {plain} ({plain / ours:.2f})")
    versions = {"rasterio": rasterio.__version__, "tifffile": tifffile.__version__}
    RESULTS.mkdir(exist_ok=True)
    page = {"milliseconds": rows, "versions": versions}
    (RESULTS / "bands.json").write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

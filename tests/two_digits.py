"""A small real set of several labels: up to two of scikit-learn's scans of the digits 0 to 4 in one picture."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

CLASSES = 5


def write_two_digits(root: Path, count: int, *, seed: int = 0) -> list[tuple[str, frozenset[int]]]:
    """Pictures of 16 x 16 pixels in `root`, with their names and digits; one in nine shows none."""
    pixels, digits = load_digits(n_class=CLASSES, return_X_y=True)
    scans = (np.asarray(pixels).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    draw = np.random.Generator(np.random.PCG64(seed))
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        picture, shown = np.zeros((16, 16), np.uint8), set()
        for half in (slice(0, 8), slice(8, 16)):
            if draw.integers(3):
                scan, top = int(draw.integers(len(scans))), int(draw.integers(9))
                picture[top : top + 8, half] = scans[scan]
                shown.add(int(digits[scan]))
        name = f"{number:04d}.png"
        Image.fromarray(picture).convert("RGB").save(root / name)
        rows.append((name, frozenset(shown)))
    return rows


def lists(rows: list[tuple[str, frozenset[int]]], separator: str = ";") -> str:
    """The table with a column of lists."""
    cells = [f"{name},{separator.join(map(str, sorted(labels)))}" for name, labels in rows]
    return "\n".join(["path,labels", *cells]) + "\n"


def columns(rows: list[tuple[str, frozenset[int]]]) -> str:
    """The table with a column of 0 and 1 for each digit."""
    header = ",".join(["path", *map(str, range(CLASSES))])
    cells = [",".join([name, *(str(int(k in labels)) for k in range(CLASSES))]) for name, labels in rows]
    return "\n".join([header, *cells]) + "\n"

"""Letters of all pictures: none smaller than the least size, none on another, none cut off, whatever the names are."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from transept.bench.figure import draw_benchmark
from transept.bench.timing import Benchmark, Timing
from transept.data.classification.transforms import Preprocessing
from transept.draw.boxes import draw_objects
from transept.draw.frames import _letters
from transept.draw.legend import shorten, width
from transept.draw.overlay import draw_overlay
from transept.draw.precision_recall import ClassCurve, draw_precision_recall, draw_threshold_curves
from transept.draw.scores import draw_calibration, draw_confusion
from transept.draw.sheet import Labelled, draw_sheet
from transept.draw.worst import Compared, Judged, draw_compared, draw_judged
from transept.explain.page import Panel, Row, draw_attention
from transept.metrics.calibration import Calibration
from transept.models.registry import list_models
from transept.style import LEAST, LEAST_PIXELS, WIDEST, drawing_palette
from transept.training.jobs.job import Score
from transept.training.loop.curves import draw_curves
from transept.training.loop.dry_run import draw_batch

FILE = "a_photograph_with_a_name_that_ends_behind_sixty_letters_$1.jpg"
SIZES = [(192, 128), (60, 160)]


class Written:
    """The texts that a picture holds, as they were drawn last."""

    def __init__(self) -> None:
        self.sizes: dict[Text, Any] = {}
        self.boxes: dict[Text, np.ndarray] = {}
        self.inches = 0.0

    def check(self) -> None:
        assert self.sizes
        small = {text.get_text(): size for text, size in self.sizes.items() if size < LEAST}
        assert not small
        texts, boxes = list(self.boxes), np.array(list(self.boxes.values()))
        whole = np.array([figure.bbox.extents for text in texts if (figure := text.get_figure(root=True))])
        out = np.hstack((boxes[:, :2] - whole[:, :2], whole[:, 2:] - boxes[:, 2:])).min(axis=1) < -1
        assert not [texts[i].get_text() for i in np.flatnonzero(out)]
        low, high = (
            np.maximum(boxes[:, None, :2], boxes[None, :, :2]),
            np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]),
        )
        meet = np.triu((high - low > 1).all(2), 1)  # a pixel is no overlap
        assert not [(texts[i].get_text(), texts[j].get_text()) for i, j in np.argwhere(meet)]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    seen, draw = Written(), Text.draw

    def record(self: Text, renderer, *args, **options):
        if self.get_visible() and self.get_text().strip():
            figure = self.get_figure(root=True)
            seen.inches = figure.get_figwidth() if figure else 0.0
            seen.sizes[self], seen.boxes[self] = self.get_fontsize(), np.array(self.get_window_extent(renderer).extents)
        return draw(self, renderer, *args, **options)

    monkeypatch.setattr(Text, "draw", record)
    monkeypatch.setattr("matplotlib.image.imsave", lambda *_, **__: None)  # nobody reads the file, and PNG takes long
    return seen


def names_of(number: int) -> list[str]:
    """Of 60 letters, each fifth in wide ones."""
    return [
        f"{i} {'WM' * 30 if i % 5 == 0 else 'one of many kinds of things that have long names ' * 2}"[:60]
        for i in range(number)
    ]


def picture(i: int = 0) -> Image.Image:
    return Image.effect_noise(SIZES[i % 2], 80).convert("RGB")


def objects(names: list[str], path: Path) -> None:
    number = 8 if len(names) < 10 else 80
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, (150, 90), (number, 2))
    boxes = np.hstack((corners, corners + rng.uniform(5, 38, (number, 2))))
    labels = rng.integers(0, len(names), number)
    palette = drawing_palette(len(names))
    draw_objects(picture(), boxes, labels, names, palette, path, scores=rng.random(number))


def classes_of_pixels(names: list[str], path: Path, size: tuple[int, int] = (128, 192)) -> None:
    labels = np.arange(size[0] * size[1]).reshape(size) // 60 % len(names)
    draw_overlay(picture().resize((size[1], size[0])), labels, names, drawing_palette(len(names)), path)


def low_overlay(names: list[str], path: Path) -> None:
    classes_of_pixels(names, path, (30, 192))


def best_of(names: list[str]) -> list[tuple[str, float]]:
    return list(zip(names, (1.0, 0.123, 0.001), strict=False))


def sheet(names: list[str], path: Path) -> None:
    draw_sheet([Labelled(FILE, picture(i), best_of(names)) for i in range(5)], path)


def sheet_of_wrong_ones(names: list[str], path: Path) -> None:
    items = [Labelled(FILE, picture(i), best_of(names)[:1] if i else [], names[1]) for i in range(2)]
    draw_sheet(items, path)


def many_pictures(names: list[str], path: Path) -> None:
    draw_sheet([Labelled(FILE, picture(i), best_of(names), names[1]) for i in range(24)], path)


def judged(names: list[str], path: Path) -> None:
    boxes = np.array([[10.0, 10, 50, 60], [20, 70, 58, 100]])
    said, unseen = [f"{shorten(name, 20)} 0.91" for name in names[:2]], [shorten(name, 20) for name in names[1:3]]
    items = [Judged(FILE, picture(i), boxes[:1], boxes, said, boxes + 4, unseen) for i in range(5)]
    draw_judged(items, path)


def compared(names: list[str], path: Path, number: int = 3) -> None:
    items = []
    for i in range(number):
        image = picture(i)
        true = np.arange(image.width * image.height).reshape(image.height, image.width) % len(names)
        items.append(Compared(FILE, "mIoU 12.34%", image, true, true[::-1]))
    draw_compared(items, names, drawing_palette(len(names)), path)


def compared_alone(names: list[str], path: Path) -> None:
    compared(names, path, 1)


def confusion(names: list[str], path: Path) -> None:
    matrix = np.eye(len(names), dtype=int) * 1_234_567 + np.arange(len(names)) * 100
    draw_confusion(matrix, names, names, "pictures", path)


def detectors_curves(names: list[str], path: Path) -> None:
    draw_precision_recall({name: np.linspace(1, 0, 101) ** (i + 1) for i, name in enumerate(names)}, path)


def curves_over_thresholds(names: list[str], path: Path) -> None:
    line = np.linspace(0, 1, 20)
    draw_threshold_curves([ClassCurve(name, i / 300, line, 1 - line, (0.5, 0.5)) for i, name in enumerate(names)], path)


def calibration(names: list[str], path: Path) -> None:
    bins = np.linspace(0.03, 0.97, 15)
    draw_calibration(Calibration(0.0321, np.arange(15) * 40_000, bins, bins**1.5), path)


def curves(names: list[str], path: Path) -> None:
    rows = [
        {"epoch": epoch, "train_loss": 2 / epoch, "val_loss": 3 / epoch, "train_top1": 1 - 1 / epoch, "val_top1": 0.5}
        for epoch in range(1, len(names))
    ]
    draw_curves(rows, rows[-1], Score("top1", "top-1", "top-1"), f"xcit on {FILE}, {names[0]}, {names[1]}", path)


def attention(names: list[str], path: Path, shape: int = 0) -> None:
    maps = np.random.default_rng(0).random((14, 14))
    rows = [
        Row("Cross-covariance attention, stage 3, block 11: the 8 of 16 heads with the highest weights",
            [Panel(f"head {i}", "max 12%", maps) for i in range(8)]),
        Row("Attention across blocks, mean of 16 heads", [Panel("digest of layer3.11", "sum 99.9%", maps)] * 2),
        Row("Through the whole model", [Panel("Grad-CAM", name, maps, smooth=True) for name in names[:3]]),
    ]  # fmt: skip
    draw_attention(picture(shape), rows, path, best=best_of(names), token=(0.5, 0.5))


def attention_of_a_tall_picture(names: list[str], path: Path) -> None:
    attention(names, path, 1)


def learner(names: list[str]) -> SimpleNamespace:
    return SimpleNamespace(
        classes=names, preprocessing=Preprocessing(img_size=(32, 48)), palette=drawing_palette(len(names))
    )


def first_batch(names: list[str], path: Path) -> None:
    draw_batch(torch.rand(16, 3, 32, 48), torch.arange(16) % len(names), learner(names), path)


def first_batch_of_several_labels(names: list[str], path: Path) -> None:
    draw_batch(torch.rand(5, 3, 32, 48), (torch.rand(5, len(names)) > 0.5).long(), learner(names), path)


def first_crops(names: list[str], path: Path) -> None:
    draw_batch([torch.rand(9, 3, side, side) for side in (224, 224, 96)], None, learner(names), path)


def timing_of(model: str, i: int, batch: int, size: int = 224) -> Timing:
    seconds = (1 + i % 9 / 10) * size**2 / 1e6
    return Timing(
        model=model, source="transept", form="fused", training=False, img_size=(size, size), batch=batch, p50=seconds,
        p90=seconds, best=seconds, images_per_second=batch / seconds, peak_memory=size**2, own_memory=0, macs=1,
        share=1,
    )  # fmt: skip


MACHINE = {"processor": "a processor", "threads": 2, "dtype": "float32", "torch": "2.12"}


def speeds(names: list[str], path: Path) -> None:
    timings = [timing_of(name, i, batch) for batch in (1, 8) for i, name in enumerate(list_models()[: len(names)])]
    draw_benchmark(Benchmark(machine=MACHINE, timings=timings), path)


def growth(names: list[str], path: Path) -> None:
    timings = [timing_of(name, i, 1, size) for i, name in enumerate(names[:20]) for size in (224, 448, 896, 1024)]
    draw_benchmark(Benchmark(machine=MACHINE, timings=timings), path)


OF_CLASSES = [
    objects, classes_of_pixels, low_overlay, sheet, sheet_of_wrong_ones, judged, compared, compared_alone, confusion,
    detectors_curves, curves_over_thresholds, first_batch, first_batch_of_several_labels,
]  # fmt: skip
SHEETS = [sheet, sheet_of_wrong_ones, judged, compared]
"""Of these a sheet of more columns would be scaled down on a page, and its letters with it."""
OTHERS = [calibration, curves, attention, attention_of_a_tall_picture, first_crops, speeds, growth]


@pytest.mark.parametrize(
    ("draw", "number"),
    [
        *((draw, 3) for draw in OF_CLASSES),
        # A matrix of 200 names is drawn for seconds.
        *(pytest.param(draw, 200, marks=[pytest.mark.slow] if draw is confusion else []) for draw in OF_CLASSES),
        *((draw, 80) for draw in [confusion, *OTHERS]),
    ],
)
def test_letters_can_be_read(draw: Callable[[list[str], Path], None], number: int, written: Written, tmp_path: Path):
    draw(names_of(number), tmp_path / "drawn.png")
    written.check()
    if draw in SHEETS:
        assert 4 < written.inches <= WIDEST


@pytest.mark.parametrize(
    "names",
    [
        ["nucleus"],
        ["cat", "dog"],
        ["a", "b", "c"],
        [
            "leaf of a potato plant with late blight, first stage",
            "leaf of a potato plant with late blight, second stage",
        ],
        ["W" * 60, "iris", "a photograph of a temple"],
    ],
)
def test_few_classes_have_their_whole_names(names: list[str], written: Written, tmp_path: Path):
    matrix = np.arange(len(names) ** 2).reshape(len(names), -1) * 1_234_567
    draw_confusion(matrix, names, names, "pictures", tmp_path / "drawn.png")
    written.check()
    texts = ["".join(text.get_text().split()) for text in written.boxes]
    assert all(texts.count("".join(name.split())) == 1 for name in names)  # and one with its count
    assert {"predicted", "true(pictures)", "oftherow"} <= set(texts)


def test_a_sheet_of_many_pictures_is_no_wider_than_a_page(written: Written, tmp_path: Path):
    many_pictures(names_of(3), tmp_path / "drawn.png")
    assert 4 < written.inches <= WIDEST


def test_frames_of_videos():
    assert _letters(Image.new("L", (64, 48))) == LEAST_PIXELS
    assert _letters(Image.new("L", (1920, 1080))) > LEAST_PIXELS


@pytest.mark.parametrize("name", ["W" * 60, "i" * 60, "длинное имя " * 5, "two words"])
def test_names_end_where_there_is_no_room(name: str):
    short = shorten(name, inches=1.0)
    assert 0 < width(short) <= 1.0
    assert short.endswith("…") == (short != name)

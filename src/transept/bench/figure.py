"""Pictures of a benchmark: accuracy over speed, or time over resolution."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator

from transept.bench.timing import Benchmark, Timing, growth
from transept.cost.printed import PUBLISHED
from transept.draw.legend import shorten, width
from transept.draw.names import Named, name_marks
from transept.files import write_atomically
from transept.models.registry import list_models
from transept.style import GRID, LEAST, LINES, OTHERS, OURS, QUIET, TEXT
from transept.weights.catalogue.records import checkpoints_of

PEERS_TOP1 = {
    "resnet50": 80.4,  # arXiv 2110.00476, Table 1: timm's own training, A1
    "efficientnet_b0": 77.1,  # arXiv 1905.11946, Table 2
    "deit_small_patch16_224": 79.8,  # arXiv 2012.12877, Table 5
    "deit_base_patch16_224": 81.8,  # the same
    "swin_tiny_patch4_window7_224": 81.3,  # arXiv 2103.14030, Table 1
    "convnext_tiny": 82.1,  # arXiv 2201.03545, Table 1
    "efficientformer_l3": 82.4,  # arXiv 2206.01191, Table 1
    "nextvit_small": 82.5,  # arXiv 2207.05501, Table 4
}
"""Published top-1 of timm's models that serve as peers, in percent."""

_COLORS = {"transept": OURS, "timm": OTHERS}
_WIDE, _GROWTH = 6.0, 6.5
"""Inches of a panel."""
_DASHES = ("solid", "dashed", "dotted")
_MARKERS = {"eager": "o", "fused": "D", "compiled": "s", "onnxruntime": "v", "openvino": "^"}


def draw_benchmark(result: Benchmark, path: Path) -> None:
    """Time over resolution where a model was measured at several image sizes, else accuracy over speed."""
    sizes = {(timing.model, timing.img_size) for timing in result.timings}
    if len(sizes) > len({model for model, _ in sizes}):
        number = len({_series(timing) for timing in result.timings})
        figure = Figure(figsize=(2 * _GROWTH, 4.8 + 0.2 * number), dpi=144, layout="constrained")
        left, right = (figure.add_subfigure(half) for half in figure.add_gridspec(1, 2))
        _draw_growth(left, result.timings, lambda timing: 1e3 * timing.p50, "milliseconds")
        _draw_growth(right, result.timings, _activations, "MiB at once, the model's own aside")
        panels, names = [], []
    else:
        batches = sorted({timing.batch for timing in result.timings})
        number = len({timing.model for timing in result.timings})
        figure = Figure(figsize=(2 + _WIDE * len(batches), max(5, 2 + 0.8 * number)), dpi=144, layout="constrained")
        panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
        names = [
            _draw_accuracy(axes, [timing for timing in result.timings if timing.batch == batch])
            for axes, batch in zip(panels, batches, strict=True)
        ]
        panels[0].set_ylabel("published top-1 (%)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=3 * len(batches), frameon=False, fontsize=LEAST
        )
    for axes in figure.axes:
        axes.grid(color=GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    machine = result.machine
    figure.suptitle(
        f"{machine['processor']}, {machine['threads']} threads, {machine['dtype']}, torch {machine['torch']}",
        x=0.01,
        ha="left",
        fontsize=LEAST,
        color=QUIET,
    )
    for axes, named in zip(panels, names, strict=True):
        name_marks(figure, axes, named)
    write_atomically(path, figure.savefig)


def top1(model: str) -> float | None:
    """Published top-1 in percent, where it is known; of several checkpoints, the first of the catalogue."""
    if model not in list_models():
        return PEERS_TOP1.get(model)
    scores = [weights.top1 for weights in checkpoints_of(model) if weights.top1 is not None]
    return scores[0] if scores else PUBLISHED[model].top1 if model in PUBLISHED else None


def _draw_accuracy(axes: Axes, timings: Sequence[Timing]) -> list[Named]:
    """One row of marks for each model; returns the names, and where the fastest is."""
    rows: dict[str, list[Timing]] = {}
    for timing in timings:
        rows.setdefault(timing.model, []).append(timing)
    names: list[Named] = []
    for model, row in rows.items():
        score = top1(model)
        if score is None:
            continue
        speeds = [timing.images_per_second for timing in row]
        axes.plot(speeds, [score] * len(row), color=GRID, linewidth=2, zorder=1)
        for timing, speed in zip(row, speeds, strict=True):
            axes.plot(speed, score, _MARKERS[timing.form], color=_COLORS[timing.source], markersize=6)
        names.append(Named(max(speeds), score, model, TEXT))
    for source, form in dict.fromkeys((timing.source, timing.form) for timing in timings):
        axes.plot([], [], _MARKERS[form], color=_COLORS[source], label=f"{source}, {form}")
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    share = min(0.5, (0.2 + max((width(name.name) for name in names), default=0.0)) / (_WIDE - 1))
    axes.set_xlim(right=high * (high / low) ** (share / (1 - share)))  # room for names
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    steps = "training steps" if timings[0].training else "inference"
    axes.set_xlabel(f"images per second, {steps}, batch {timings[0].batch}")
    return sorted(names, key=lambda name: -name.y)


def _activations(timing: Timing) -> float:
    return (timing.peak_memory - timing.own_memory) / 2**20


def _series(timing: Timing) -> tuple[str, str, str, int]:
    return timing.model, timing.source, timing.form, timing.batch


def _draw_growth(figure: SubFigure, timings: Sequence[Timing], cost: Callable[[Timing], float], unit: str) -> None:
    axes = figure.subplots()
    series: dict[tuple[str, str, str, int], list[Timing]] = {}
    for timing in timings:
        series.setdefault(_series(timing), []).append(timing)
    for i, ((model, source, form, batch), points) in enumerate(series.items()):
        label = f"{shorten(model)} ({source}, {form}, batch {batch})"
        if len(points) > 1:
            label += f": pixels^{growth(points, cost):.2f}"
        pixels = [timing.img_size[0] * timing.img_size[1] for timing in points]
        (line,) = axes.plot(pixels, [cost(t) for t in points], marker=_MARKERS[form], label=label)
        line.set(color=LINES[i % len(LINES)], linestyle=_DASHES[i // len(LINES) % len(_DASHES)])
    sizes = sorted({t.img_size for t in timings}, key=lambda size: size[0] * size[1])
    axes.set_xscale("log")
    axes.set_yscale("log")
    labels = [f"{h} x {w}" for h, w in sizes]
    axes.set_xticks([h * w for h, w in sizes], labels, fontsize=LEAST, rotation=90)
    axes.minorticks_off()
    axes.set_xlabel("image size (axis: pixels)")
    axes.set_ylabel(unit)
    figure.legend(loc="outside lower left", frameon=False, fontsize=LEAST)

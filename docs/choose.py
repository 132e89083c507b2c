"""Draws docs/images/choose.png: published accuracy over measured speed: `uv run python docs/choose.py`.

Of every variant, and of six models of timm, as `benchmarks/variants.py` has measured them.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transept.bench.figure import top1
from transept.bench.speeds import Speed, kept_speeds, speeds_machine
from transept.draw.names import Named, name_marks
from transept.files import write_atomically
from transept.models.registry import find_model
from transept.style import BLUE, GREEN, GRID, ORANGE, PURPLE, QUIET, SKY, TEXT, VERMILLION, YELLOW

FILE = Path(__file__).parent / "images" / "choose.png"
LOOKS = {
    "CAT": (ORANGE, "s"),
    "CabViT": (YELLOW, "v"),
    "CrossFormer": (GREEN, "^"),
    "XCiT": (VERMILLION, "o"),
    "CaiT": (BLUE, "D"),
    "CrossViT": (PURPLE, "P"),
    "BiXT": (SKY, "X"),
    "timm": (QUIET, "*"),
}
"""The colour and the mark of each family."""


def draw(axes: Axes, batch: int, speeds: dict[str, Speed]) -> list[Named]:
    """A mark for each model, and a line from its eager form; returns what is to be named, the most wanted first."""
    best = 0.0
    named: list[Named] = []
    points = [
        (speed.images_per_second["fast"][batch], score, name)
        for name, speed in speeds.items()
        if (score := top1(name)) and batch in speed.images_per_second["fast"]
    ]
    for rate, score, name in sorted(points, reverse=True):
        timm = speeds[name].source == "timm"
        color, mark = LOOKS["timm" if timm else find_model(name)[1].name]
        slow = speeds[name].images_per_second["eager"].get(batch)
        if slow:
            axes.plot([slow, rate], [score, score], color=color, linewidth=1, alpha=0.35, zorder=1)
        axes.plot(rate, score, mark, color=color, markersize=8 if timm else 6, markeredgecolor="white", zorder=2)
        if timm:
            named.insert(0, Named(rate, score, short(name), QUIET))
        elif score > best:  # nothing is both faster and better
            named.append(Named(rate, score, short(name), TEXT))
        best = max(best, score)
    axes.set_xscale("log")
    axes.set_xlim(min(points)[0] / 2.2, max(points)[0] * 6)
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if low < tick < high])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel(f"images per second, batch {batch}")
    axes.grid(color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return named


def short(name: str) -> str:
    return name.removesuffix("_224").replace("_patch16", "").replace("_patch4_window7", "")


def main() -> None:
    speeds, machine = kept_speeds(), speeds_machine()
    figure = Figure(figsize=(12, 8), dpi=120, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    named = [draw(axes, batch, speeds) for axes, batch in zip(panels, (1, 8), strict=True)]
    panels[0].set_ylabel("published top-1 on ImageNet-1k (%)")
    for family, (color, mark) in LOOKS.items():
        panels[1].plot([], [], mark, color=color, label=family)
    figure.legend(loc="outside lower center", ncols=len(LOOKS), frameon=False)
    figure.suptitle(
        f"marks: {machine['fast']}, ours fused; lines begin at eager float32. {machine['processor']}, "
        f"{machine['threads']} threads, torch {machine['torch']}",
        fontsize=10,
        color=QUIET,
        x=0.01,
        ha="left",
    )
    for axes, points in zip(panels, named, strict=True):
        name_marks(figure, axes, points)
    write_atomically(FILE, figure.savefig)


if __name__ == "__main__":
    main()

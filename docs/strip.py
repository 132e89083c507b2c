"""Draws what the first pages show, from trained runs: `uv run python docs/strip.py DIGITS BCCD NUCLEI MASKS`.

The runs are those of `transept train digits`, `train quick-det --data BCCD` (blood cells, MIT, Shenggan/BCCD_Dataset),
`train quick-seg --data NUCLEI` (CC0, BBBC038) and `train quick-inst --data NUCLEI`. Written are docs/images/strip.png,
the cards of the first page in docs/images/cards, and the pictures of docs/gallery.md in docs/images/gallery.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageOps

IMAGES = Path(__file__).parent / "images"
CARD = (480, 300)
PANEL = (520, 390)


def call(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "transept", *map(str, words)], check=True)


def fitted(file: Path, size: tuple[int, int], where: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """The middle (or another part) of a picture, as large as it can be."""
    with Image.open(file) as picture:
        return ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.LANCZOS, centering=where)


def whole(file: Path, size: tuple[int, int]) -> Image.Image:
    """All of a picture, on white."""
    with Image.open(file) as picture:
        return ImageOps.pad(picture.convert("RGB"), size, Image.Resampling.LANCZOS, color="white")


def kept(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=192).save(path, optimize=True)


def shown(file: Path, name: str, width: int = 1100) -> None:
    """A picture of the gallery, no wider than it is read at."""
    with Image.open(file) as picture:
        rgb = picture.convert("RGB")
        if rgb.width > width:
            rgb = rgb.resize((width, round(rgb.height * width / rgb.width)), Image.Resampling.LANCZOS)
    kept(rgb, IMAGES / "gallery" / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("digits", "bccd", "nuclei", "masks"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        samples = sorted((args.digits / "samples").iterdir())
        call("predict", args.digits, *samples[:6], "--out", out / "labels.png")
        call("explain", args.digits, samples[8], "--out", out / "why.png")
        call("eval", args.digits, "--report", out / "digits")
        found = {}
        for name, score in (("bccd", 0.4), ("nuclei", None), ("masks", 0.5)):
            run = getattr(args, name)
            pictures = sorted((run / "samples").iterdir())
            options = [] if score is None else ["--score", score]
            call("predict", run, *pictures, *options, "--out", out / name)
            call("eval", run, "--report", out / f"{name}-report")
            ending = "objects" if score else "overlay"
            found[name] = sorted((out / name).glob(f"*.{ending}.png"))
        panels = [
            whole(out / "labels.png", PANEL),
            fitted(found["bccd"][0], PANEL, (0, 0.5)),
            whole(found["nuclei"][0], PANEL),
            whole(out / "why.png", PANEL),
        ]
        strip = Image.new("RGB", (len(panels) * (PANEL[0] + 12) - 12, PANEL[1]), "white")
        for i, panel in enumerate(panels):
            strip.paste(panel, (i * (PANEL[0] + 12), 0))
        kept(strip, IMAGES / "strip.png")
        cards = {
            "classify": whole(out / "labels.png", CARD),
            "detect": fitted(found["bccd"][0], CARD, (0, 0.5)),
            "segment": fitted(found["nuclei"][0], CARD, (0, 0.5)),
            "explain": fitted(out / "why.png", CARD, (0, 0)),
            "evaluate": whole(out / "digits" / "confusion.png", CARD),
        }
        if (IMAGES / "choose.png").is_file():
            cards["choose"] = fitted(IMAGES / "choose.png", CARD, (0.05, 0.4))
        for name, card in cards.items():
            kept(card, IMAGES / "cards" / f"{name}.png")
        shown(out / "labels.png", "digits")
        shown(out / "digits" / "confident.png", "digits-wrong")
        for name in ("bccd", "nuclei", "masks"):
            shown(found[name][-1 if name == "masks" else 0], name)  # the last has many, and bright ones
            shown(out / f"{name}-report" / "worst.png", f"{name}-wrong")
            print(name, json.loads((out / f"{name}-report" / "report.json").read_text()).keys())


if __name__ == "__main__":
    main()

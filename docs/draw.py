"""Draws who can look at whom into docs/images/families: `uv run python docs/draw.py`.

The models are freshly initialised, and the photograph is scikit-learn's china.jpg, by danielbuechele (CC BY 2.0).
"""

from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms.functional import to_tensor

import transept
from transept.analysis.attention_sheet import Panel, Row, draw_attention

FOLDER = Path(__file__).parent / "images" / "families"
SIZE = 224
TOKEN = (96, 120)
"""The pixel whose token's maps are drawn: on the temple."""


def photograph() -> Image.Image:
    picture = Image.fromarray(load_sample_image("china.jpg"))
    side = min(picture.size)
    left = (picture.width - side) // 2
    return picture.crop((left, 0, left + side, side)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def panel(title: str, found: transept.AttentionMap, head: int | None = None) -> Panel:
    maps = found.maps[0]
    values = maps.mean(dim=0) if head is None else maps[head]
    share = float(values.sum() if found.kind == "cross-block" else values.max())
    note = f"{'sum' if found.kind == 'cross-block' else 'max'} {share:.1%}"
    return Panel(title, note, values.numpy(), over_image=found.over == "image")


def draw() -> None:
    torch.manual_seed(0)
    picture = photograph()
    mark = TOKEN[0] / SIZE, TOKEN[1] / SIZE

    def maps(name: str, kind: str, block: int) -> list[transept.AttentionMap]:
        model = transept.create_model(name, num_classes=10).eval()
        image = to_tensor(picture)[None] * 2 - 1
        layers = transept.attention_maps(model, image, kind, token=TOKEN)
        wanted = list(dict.fromkeys(found.name for found in layers))[block]
        return [found for found in layers if found.name == wanted]

    (inner,) = maps("cat_tiny", "inner-patch", 0)
    (cross,) = maps("cat_tiny", "cross-patch", 0)
    cat = [
        Row("Inner-patch attention", [panel(f"head {head}", inner, head) for head in range(inner.heads)]),
        Row("Cross-patch attention", [panel(f"channel {channel}", cross, channel) for channel in (0, 1, 2)]),
    ]
    (short,) = maps("crossformer_small", "short-distance", 0)
    (far,) = maps("crossformer_small", "long-distance", 0)
    groups = [Row("Attention in groups", [panel("short distance", short), panel("long distance", far)])]
    blocks = maps("cabvit_h_l1", "cross-block", 2)
    sources = ["tokens" if found.source is None else f"digest of {found.source}" for found in blocks]
    across = [
        Row("Attention across blocks", [panel(title, found) for title, found in zip(sources, blocks, strict=True)])
    ]
    for name, rows in (("cat", cat), ("crossformer", groups), ("cabvit", across)):
        draw_attention(picture, rows, FOLDER / f"{name}.png", token=mark)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    draw()

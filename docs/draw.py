"""Draws the attention on the families' pages into docs/images/families: `uv run python docs/draw.py [FAMILY ...]`.

Who *can* look at whom in CAT, CrossFormer and CabViT is shown by freshly initialised models, on scikit-learn's
china.jpg, by danielbuechele (CC BY 2.0). In the others every token reaches every other, so theirs are small models,
trained here on the built-in digits (some minutes on two cores), and what they see is a held-out digit.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

import transept
from transept.data.classification.sets import load_splits
from transept.data.classification.transforms import eval_transform
from transept.explain.page import Panel, Row, draw_attention
from transept.tasks.classify import Classifier
from transept.training.loop.run import train
from transept.training.options.pages import read_recipe
from transept.training.options.parsing import parse_recipe

FOLDER = Path(__file__).parent / "images" / "families"
SIZE = 224
TOKEN = (96, 120)
"""The pixel whose token's maps are drawn: on the temple."""
MARK = TOKEN[0] / SIZE, TOKEN[1] / SIZE
DIGIT = 5
"""Which held-out digit the trained models see."""


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


def maps(name: str, kind: str, block: int) -> list[transept.AttentionMap]:
    """Of a fresh model's block of a kind: one, or in CabViT another for each digest."""
    torch.manual_seed(0)
    model = transept.create_model(name, num_classes=10).eval()
    image = to_tensor(photograph())[None] * 2 - 1
    layers = transept.attention_maps(model, image, kind, token=TOKEN)
    wanted = list(dict.fromkeys(found.name for found in layers))[block]
    return [found for found in layers if found.name == wanted]


def heads(found: transept.AttentionMap) -> list[Panel]:
    return [panel(f"head {head}", found, head) for head in range(found.heads)]


SMALL = "--model.options.embed_dim 64 --model.options.num_heads 4 --model.options.patch_size 4"


def trained(name: str, *options: str, widths: str = SMALL) -> Classifier:
    """A small model, by default with patches of 4 x 4 pixels, trained on the digits as recipe and options say."""
    small = widths.split()
    recipe = parse_recipe(read_recipe("digits") | {"model": {"name": name}}, [*small, *options])
    with tempfile.TemporaryDirectory() as folder:
        result = train(recipe, Path(folder) / "run")
        print(f"{name}: {result.metrics['top1']:.1%} of the held-out digits")
        return Classifier.load(result.run / "best.safetensors")


def draw_digit(task: Classifier, rows: list[Row], name: str, mark: tuple[float, float] | None = None) -> None:
    picture, image = digit(task)
    (prediction,) = task.predict([picture], task.inference(top=3))
    best = [(item.label, item.score) for item in task.items(prediction)]
    view = picture.resize(image.shape[-2:], Image.Resampling.BICUBIC)
    draw_attention(view, rows, FOLDER / f"{name}.png", best=best, token=mark)


def digit(task: Classifier) -> tuple[Image.Image, torch.Tensor]:
    picture = load_splits("digits").val[DIGIT][0]
    return picture, eval_transform(task.preprocessing)(picture)[None]


def draw_cat() -> None:
    (inner,) = maps("cat_tiny", "inner-patch", 0)
    (cross,) = maps("cat_tiny", "cross-patch", 0)
    rows = [
        Row("Inner-patch attention", heads(inner)),
        Row("Cross-patch attention", [panel(f"channel {channel}", cross, channel) for channel in (0, 1, 2)]),
    ]
    draw_attention(photograph(), rows, FOLDER / "cat.png", token=MARK)


def draw_crossformer() -> None:
    (short,) = maps("crossformer_small", "short-distance", 0)
    (far,) = maps("crossformer_small", "long-distance", 0)
    rows = [Row("Attention in groups", [panel("short distance", short), panel("long distance", far)])]
    draw_attention(photograph(), rows, FOLDER / "crossformer.png", token=MARK)


def draw_cabvit() -> None:
    blocks = maps("cabvit_h_l1", "cross-block", 2)
    sources = ["tokens" if found.source is None else f"digest of {found.source}" for found in blocks]
    panels = [panel(title, found) for title, found in zip(sources, blocks, strict=True)]
    draw_attention(photograph(), [Row("Attention across blocks", panels)], FOLDER / "cabvit.png", token=MARK)


def first_and_last(title: str, layers: Sequence[transept.AttentionMap], note: str = "") -> list[Row]:
    """The heads of the first and of the last block."""
    first, last = Row(f"{title}, block 0{note}", heads(layers[0])), f"{title}, block {len(layers) - 1}"
    return [first, Row(last, heads(layers[-1]))]


def class_attention(task: Classifier, image: Tensor) -> list[Row]:
    first, second = transept.attention_maps(task.model, image, "class")
    return [Row("Class attention, first block", heads(first)), Row("Class attention, second block", heads(second))]


def draw_xcit() -> None:
    task = trained("xcit_nano_12_p8_224", "--model.img_size", "32", "--model.options.depth", "4")
    _, image = digit(task)
    covariance = transept.attention_maps(task.model, image, "cross-covariance")
    rows = first_and_last("Cross-covariance attention", covariance, ": channel to channel")
    draw_digit(task, rows + class_attention(task, image), "xcit")


def draw_cait() -> None:
    # Its own 1e-5, made for great depth, would take more epochs.
    scale = ["--model.options.init_scale", "0.1", "--schedule.epochs", "10", "--schedule.warmup_epochs", "1"]
    task = trained("cait_xxs24_224", "--model.img_size", "24", "--model.options.depth", "3", *scale)
    _, image = digit(task)
    token = (image.shape[-1] // 2, image.shape[-2] // 2)
    talking = transept.attention_maps(task.model, image, "talking-heads", token=token)
    rows = first_and_last("Talking-heads attention", talking) + class_attention(task, image)
    draw_digit(task, rows, "cait", mark=(0.5, 0.5))


def draw_crossvit() -> None:
    widths = "--model.options.embed_dims [32,64] --model.options.num_heads 4 --model.options.depth 1"
    task = trained("crossvit_tiny_240", "--model.img_size", "60", widths=widths)
    _, image = digit(task)
    *_, small, large = transept.attention_maps(task.model, image, "class")
    rows = [
        Row("Small branch's class token to the large patches", heads(small)),
        Row("Large branch's class token to the small patches", heads(large)),
    ]
    draw_digit(task, rows, "crossvit")


def draw_bixt() -> None:
    few = "--model.options.depth 3 --model.options.num_latents 8 --schedule.epochs 8 --schedule.warmup_epochs 1"
    task = trained("bixt_ti_l64_p16", "--model.img_size", "24", *few.split())
    _, image = digit(task)
    token = (image.shape[-1] // 2, image.shape[-2] // 2)
    gathered = transept.attention_maps(task.model, image, "latents-to-tokens")
    spread = transept.attention_maps(task.model, image, "tokens-to-latents", token=token)
    rows = [
        Row("Latents to tokens, last block", heads(gathered[-1])),
        Row(f"A token through the latents, block {len(spread) - 1}", heads(spread[-1])),
    ]
    draw_digit(task, rows, "bixt", mark=(0.5, 0.5))


DRAWN = {
    "cat": draw_cat,
    "crossformer": draw_crossformer,
    "cabvit": draw_cabvit,
    "xcit": draw_xcit,
    "cait": draw_cait,
    "crossvit": draw_crossvit,
    "bixt": draw_bixt,
}

if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for family in sys.argv[1:] or DRAWN:
        DRAWN[family]()

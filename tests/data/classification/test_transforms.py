"""The evaluation transform against the official evaluations, spelt out with torchvision's own steps."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms

import transept
from transept.data.classification.transforms import (
    Augmentation,
    Preprocessing,
    eval_transform,
    preprocessing_of,
    train_transform,
    transforms_for,
)
from transept.errors import UsageError
from transept.models.backbone import Backbone
from transept.models.registry import build_model, find_model, list_models, skeletons
from transept.tasks.classify import Classifier
from transept.weights.catalogue.records import CHECKPOINTS, set_preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = {
    "bixt": dict(depth=2, embed_dim=64, num_heads=2),
    "crossvit": dict(depth=1, embed_dims=(32, 64), num_heads=2),
    "cat_": dict(embed_dim=32, num_heads=(1, 2, 4, 8), depths=(1, 1, 1, 1)),
    "cabvit_h": dict(embed_dims=(32, 32, 32, 32), depths=(1, 1, 1, 1), num_heads=(2, 2)),
    "cabvit_p": dict(embed_dim=32, depth=1, num_heads=2),
    "crossformer": dict(embed_dim=32, num_heads=(1, 2, 4, 8), depths=(1, 1, 1, 1)),
    "xcit": dict(depth=1, embed_dim=32, num_heads=2),
    "cait": dict(depth=1, embed_dim=48, num_heads=2),
}
FIRST = ["cat_tiny", "cabvit_h_l1", "cabvit_p_l0", "crossformer_tiny", "xcit_nano_12_p16_224", "cait_xxs24_224"]


def small(name: str, **options: Any) -> Backbone:
    """A variant with few channels and blocks: its preprocessing does not depend on them."""
    return build_model(name, **next(SMALL[prefix] for prefix in SMALL if name.startswith(prefix)), **options)


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    noise = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), np.uint8))
    return noise.resize((width, height), Image.Resampling.BILINEAR)


def official(name: str, size: int) -> transforms.Compose:
    """What the family's official evaluation does at a square size (the specs' evaluation paragraphs)."""
    bicubic = transforms.InterpolationMode.BICUBIC
    if name.startswith(("xcit", "cait")):
        resize = transforms.Resize(size, bicubic)
    elif name.startswith("cabvit") and size >= 384:
        resize = transforms.Resize((size, size), bicubic)
    elif name.startswith("cabvit"):
        resize = transforms.Resize(int(size / 0.875), bicubic)
    else:
        resize = transforms.Resize(int(256 / 224 * size), bicubic)
    return transforms.Compose(
        [resize, transforms.CenterCrop(size), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )


@pytest.mark.parametrize("size", [224, 288, 384])
@pytest.mark.parametrize("name", FIRST)
def test_equals_the_official_recipe_to_the_bit(name: str, size: int):
    options = dict(pad=True) if name == "cat_tiny" else {}  # it divides no map of 288
    model = small(name, img_size=size, **options)
    ours, theirs = transforms_for(model), official(name, size)
    for shape in ((500, 333), (333, 517), (640, 480), (97, 260)):
        image = picture(*shape)
        out = ours(image)
        assert out.shape == (3, size, size)
        assert out.dtype == torch.float32
        assert torch.equal(out, theirs(image)), (name, size, shape)


def test_sizes_are_rounded_down_as_officially():
    """384 / 0.875 is 438.86; the official evaluations cut the fraction off."""
    for size in range(32, 1025):
        steps = eval_transform(Preprocessing(img_size=(size, size), crop_pct=0.875)).transforms
        assert steps[0].size == [int(256 / 224 * size)]


@pytest.mark.parametrize("name", FIRST)
def test_timm_reads_the_same_from_the_model(name: str):
    for img_size in (224, 448, (224, 448)):
        model = small(name, img_size=img_size)
        config = timm.data.resolve_data_config(model=model)
        timms = timm.data.create_transform(**config)
        image = picture(301, 420)
        assert torch.equal(transforms_for(model)(image), timms(image)), (name, img_size)


def test_every_variant_starts_with_its_weights_preprocessing():
    """Random weights are to be fed as the official ones of the same name."""
    for name in list_models():
        config = find_model(name)[1].variants[name]
        whole = name.startswith(("xcit", "cait")) or ("crossvit" in name and max(config.img_size) > 240)
        with skeletons():
            model = small(name)
        expected = Preprocessing(img_size=config.img_size, crop_pct=1.0 if whole else 0.875)
        assert preprocessing_of(model) == expected
        for entry in CHECKPOINTS:
            if entry.registered == name and entry.task == "classification" and entry.origin in ("official", "timm"):
                set_preprocessing(model, entry)
                assert preprocessing_of(model) == expected == entry.preprocessing


def test_pressed_pictures_keep_their_edges():
    """MMPretrain's 384-pixel files were scored on whole pictures, their proportions lost."""
    entry = next(entry for entry in CHECKPOINTS if entry.name == "xcit_nano_12_p16_384.mmpretrain_dist_in1k")
    image = picture(300, 200)
    expected = transforms.functional.to_tensor(image.resize((384, 384), Image.Resampling.BICUBIC))
    expected = transforms.functional.normalize(expected, list(MEAN), list(STD))
    assert torch.equal(eval_transform(entry.preprocessing)(image), expected)


def test_tasks_and_foreign_models():
    own = Preprocessing(img_size=(16, 24), crop_pct=0.5, mean=(0, 0, 0), std=(1, 1, 1))
    task = Classifier(small("xcit_nano_12_p16_224", num_classes=2), "ab", own)
    image = picture(120, 80)
    assert torch.equal(transept.transforms_for(task)(image), eval_transform(own)(image))
    foreign = timm.create_model("test_vit")
    config = timm.data.resolve_data_config(model=foreign)
    assert torch.equal(transforms_for(foreign)(image), timm.data.create_transform(**config)(image))


def test_models_that_cannot_say_are_refused():
    with pytest.raises(UsageError, match="Linear does not say how its pictures are prepared"):
        transforms_for(torch.nn.Linear(1, 2))
    model = small("xcit_nano_12_p16_224", in_chans=4)
    with pytest.raises(UsageError, match="XCiT takes images of 4 channels; .* RGB, which has 3"):
        transforms_for(model)
    model = small("xcit_nano_12_p16_224")
    set_preprocessing(model, next(entry for entry in CHECKPOINTS if entry.method == "mask_rcnn"))
    model.pretrained_cfg["input_size"] = (3, 800, 1333)
    with pytest.raises(UsageError, match="a dense model's, whose pictures are scaled to fit 800x1333 by its own task"):
        transforms_for(model)
    model.pretrained_cfg["crop_mode"] = "border"
    with pytest.raises(UsageError, match="XCiT wants crop_mode='border'; known: center, squash, fit"):
        transforms_for(model)


def test_three_augment_is_grey_inverted_or_blurred():
    """One of the three each time, each as often."""
    augmentation = Augmentation(crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, three_augment=True)
    preprocessing = Preprocessing(img_size=(32, 32), mean=(0, 0, 0), std=(1, 1, 1))
    image = picture(32, 32)
    plain = transforms.functional.to_tensor(image)
    inverted = torch.where(plain >= 128 / 255, 1 - plain, plain)
    seen: Counter[str] = Counter()
    torch.manual_seed(0)
    transform = train_transform(preprocessing, augmentation)
    for _ in range(300):
        out = transform(image)
        is_grey = torch.equal(out[0], out[1]) and torch.equal(out[1], out[2])
        is_inverted = torch.allclose(out, inverted, atol=1e-6)
        smoother = out.diff(dim=-1).abs().sum() <= plain.diff(dim=-1).abs().sum()  # by a tenth of a pixel: as it was
        seen["grey" if is_grey else "inverted" if is_inverted else "blurred"] += 1
        assert is_grey or is_inverted or smoother
    assert set(seen) == {"grey", "inverted", "blurred"}
    assert min(seen.values()) > 70

"""Segmenters: building, losses, whole, sliding and multi-scale inference, files."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy, interpolate
from torchvision import tv_tensors

import transept
from tests.helpers import BACKBONES
from transept.checks import shown
from transept.data.classification.transforms import Preprocessing
from transept.data.segmentation.transforms import SegmentationPreprocessing, segmentation_eval_transform
from transept.errors import UsageError
from transept.heads.fcn import FCNHead
from transept.models.registry import skeletons
from transept.ops.interpolation import resize_map
from transept.style import drawing_palette
from transept.tasks.classify import Classifier
from transept.tasks.forms import in_form
from transept.tasks.segment import (
    METHODS,
    MULTI_SCALE,
    Outputs,
    SegmentationInference,
    Segmenter,
    _rows_of,
    create_segmenter,
)

TINY = dict(num_classes=5, width=16, depth=2)
SMALL_SCENES = SegmentationPreprocessing(scale=(96, 64))


def prepare(preprocessing: SegmentationPreprocessing, picture: torch.Tensor, ratio: float = 1.0) -> torch.Tensor:
    return segmentation_eval_transform(preprocessing, ratio)(tv_tensors.Image(picture))[None]


def tiny(method: str = "upernet", **options) -> Segmenter:
    return create_segmenter(method, backbone="xcit_nano_12_p16", **(TINY | options)).eval()


@pytest.fixture(params=["semantic_fpn", "upernet"])
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    return tiny(request.param, preprocessing=SMALL_SCENES)


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 110, 3), dtype=np.uint8))


def test_training_and_evaluation(segmenter: Segmenter):
    images = torch.randn(2, 3, 65, 97)
    logits = segmenter(images)
    assert logits.shape == (2, 5, 65, 97)
    outputs = segmenter.train()(images)
    assert outputs.decode.shape[:2] == (2, 5)
    assert outputs.decode.shape[2:] == (20, 28)  # ceil(65 / 16) * 4
    if segmenter.method == "upernet":
        assert outputs.auxiliary.shape == (2, 5, 5, 7)
    else:
        assert outputs.auxiliary is None
    segmenter.loss(outputs, torch.randint(5, (2, 65, 97))).backward()
    without = [name for name, p in segmenter.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    assert sum(not p.grad.any() for p in segmenter.parameters()) == 0


def test_dropout_only_in_training():
    segmenter = tiny()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(segmenter(images), segmenter(images))
    maps = segmenter.backbone(images)
    head = segmenter.decode_head.train()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert not torch.equal(head(maps), head(maps))
    dropped = head.dropout(torch.ones(1, 1000, 2, 2))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.9])
    assert (dropped[0] == dropped[0, :, :1, :1]).all()  # whole channels
    assert 0.05 < float((dropped == 0).float().mean()) < 0.15


def test_loss_by_hand():
    segmenter = tiny()
    decode, auxiliary = torch.randn(2, 5, 8, 10), torch.randn(2, 5, 2, 3)
    masks = torch.randint(5, (2, 31, 37))
    masks[0, :20] = 255
    total = 0.0
    for weight, logits in ((1.0, decode), (0.4, auxiliary)):
        resized = interpolate(logits, size=(31, 37), mode="bilinear", align_corners=False)
        log_p = resized.log_softmax(dim=1)
        for b in range(2):
            for y in range(31):
                for x in range(37):
                    if masks[b, y, x] != 255:
                        total -= weight * float(log_p[b, masks[b, y, x], y, x])
    expected = total / masks.numel()  # ignored pixels count in the mean
    assert float(segmenter.loss(Outputs(decode, auxiliary), masks)) == pytest.approx(expected, rel=1e-5)
    resized = interpolate(decode, size=(31, 37), mode="bilinear", align_corners=False)
    share = float((masks != 255).float().mean())
    assert float(segmenter.loss(decode, masks)) == pytest.approx(
        share * float(cross_entropy(resized, masks, ignore_index=255)), rel=1e-5
    )
    assert float(segmenter.loss(decode, torch.full_like(masks, 255))) == 0


def test_masks_that_do_not_fit():
    segmenter = tiny()
    logits = torch.randn(2, 5, 8, 8)
    with pytest.raises(transept.TranseptError, match=r"masks are \(3, 8, 8\); give one H x W mask for each of 2"):
        segmenter.loss(logits, torch.zeros(3, 8, 8, dtype=torch.long))
    with pytest.raises(transept.TranseptError, match="a mask holds the label 7; classes are 0 to 4, and 255 is"):
        segmenter.loss(logits, torch.full((2, 8, 8), 7))
    with pytest.raises(UsageError, match="UPerNet was given one image to train on"):
        segmenter.train()(torch.randn(1, 3, 64, 64))


def test_converted_batch_norms_keep_their_activations():
    head = tiny().decode_head
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(tiny().decode_head)
    converted.load_state_dict(head.state_dict())
    units = [m for m in converted.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(units) == 4 + 1 + 3 + 3 + 1
    assert sum(isinstance(m, nn.ReLU) for m in converted.modules()) == len(units)
    maps = [torch.randn(1, 128, side, side) for side in (16, 8, 4, 2)]
    torch.testing.assert_close(converted.eval()(maps), head.eval()(maps))


def test_scale_of_test_pictures():
    rule = SegmentationPreprocessing()
    assert rule.fitted_size((512, 683)) == (512, 683)
    assert rule.fitted_size((512, 683), 0.5) == (256, 342)
    assert rule.fitted_size((683, 512), 0.5) == (342, 256)
    assert rule.fitted_size((100, 1000)) == (205, 2048)
    assert rule.fitted_size((1, 5000)) == (1, 2048)
    assert SegmentationPreprocessing(scale=None).fitted_size((301, 200), 0.5) == (151, 100)
    aligned = SegmentationPreprocessing(multiple_of=32)
    picture = torch.randint(256, (3, 512, 683), dtype=torch.uint8)
    assert prepare(aligned, picture).shape == (1, 3, 512, 704)
    assert prepare(aligned, picture, 0.5).shape == (1, 3, 256, 352)
    grey = prepare(rule, torch.full((3, 512, 512), 124, dtype=torch.uint8))
    torch.testing.assert_close(grey[0, 0], torch.full((512, 512), (124 - 123.675) / 58.395), rtol=1e-3, atol=1e-5)


@torch.inference_mode()
def test_single_scale_prediction(segmenter: Segmenter, picture: Image.Image):
    (prediction,) = segmenter.train().predict([picture])
    assert segmenter.training
    segmenter.eval()
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    small = prepare(SMALL_SCENES, image)
    assert small.shape == (1, 3, 61, 96)
    logits = interpolate(segmenter(small), size=(70, 110), mode="bilinear", align_corners=False)
    scores, labels = logits.softmax(dim=1)[0].max(dim=0)
    assert torch.equal(prediction.labels, labels)
    torch.testing.assert_close(prediction.scores, scores)
    assert torch.equal(segmenter.predict([image])[0].labels, labels)
    assert torch.equal(segmenter.decode(logits).labels[0], labels)


@torch.inference_mode()
def test_multi_scale_and_flip_is_the_mean_of_its_parts(segmenter: Segmenter, picture: Image.Image):
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    shares = []
    for ratio in (0.5, 1.25):
        scaled = prepare(SMALL_SCENES, image, ratio)
        for flipped in (False, True):
            logits = segmenter(scaled.flip(-1)).flip(-1) if flipped else segmenter(scaled)
            shares.append(interpolate(logits, size=(70, 110), mode="bilinear", align_corners=False).softmax(dim=1)[0])
    mean = segmenter.probabilities(picture, SegmentationInference(ratios=(0.5, 1.25), flip=True))
    torch.testing.assert_close(mean, torch.stack(shares).mean(dim=0))
    torch.testing.assert_close(mean.sum(dim=0), torch.ones(70, 110))
    mirrored = segmenter.probabilities(
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), SegmentationInference(flip=True)
    )
    torch.testing.assert_close(
        mirrored.flip(-1), segmenter.probabilities(picture, SegmentationInference(flip=True)), atol=1e-4, rtol=0
    )
    assert MULTI_SCALE == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@torch.inference_mode()
def test_windows_of_a_picture(segmenter: Segmenter, picture: Image.Image):
    whole = segmenter.probabilities(picture)
    one = segmenter.probabilities(picture, SegmentationInference(crop=(64, 96)))  # the image is 61 x 96
    torch.testing.assert_close(one, whole)
    several = segmenter.probabilities(picture, SegmentationInference(crop=(32, 48), batch_size=3, device="cpu"))
    assert several.shape == whole.shape
    assert not torch.allclose(several, whole)
    again = segmenter.probabilities(picture, SegmentationInference(crop=(32, 48), stride=(22, 32), batch_size=1))
    torch.testing.assert_close(several, again)  # the default stride is two thirds


def test_save_and_load(segmenter: Segmenter, tmp_path: Path, picture: Image.Image):
    named = create_segmenter(
        segmenter.method,
        backbone="crossformer_tiny",
        num_classes=3,
        width=16,
        img_size=(96, 64),
        depths=(1, 1, 2, 1),
        classes=["sky", "road", "tree"],
        palette=[(1, 2, 3), (4, 5, 6), (250, 0, 9)],
    ).eval()
    named.save(str(tmp_path / "best.safetensors"))
    loaded = Segmenter.load(tmp_path / "best.safetensors")
    assert (loaded.classes, loaded.palette) == (named.classes, named.palette)
    assert loaded.preprocessing == named.preprocessing == SegmentationPreprocessing(multiple_of=32)
    assert loaded.backbone.config.img_size == (96, 64)
    assert not loaded.training
    small = dataclasses.replace(named.preprocessing, scale=(96, 64))
    named.preprocessing = loaded.preprocessing = small
    assert torch.equal(loaded.probabilities(picture), named.probabilities(picture))
    with pytest.raises(transept.TranseptError, match="holds a model that was trained to segment, not to classify"):
        Classifier.load(tmp_path / "best.safetensors")


def test_files_that_are_no_segmenter(tmp_path: Path):
    segmenter = tiny()
    save_file(segmenter.state_dict(), tmp_path / "plain.safetensors")
    with pytest.raises(transept.TranseptError, match=r"does not say which .* create_segmenter\(method, backbone=name,"):
        Segmenter.load(tmp_path / "plain.safetensors")
    segmenter.save(tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-100])
    with pytest.raises(transept.TranseptError, match="is truncated or damaged"):
        Segmenter.load(tmp_path / "cut.safetensors")
    with pytest.raises(transept.TranseptError, match="there is no weights file"):
        Segmenter.load(tmp_path / "absent.safetensors")
    preprocessing = Preprocessing(img_size=(32, 32))
    classifier = Classifier(transept.create_model("xcit_nano_12_p16", depth=1, num_classes=2), "ab", preprocessing)
    classifier.save(tmp_path / "classifier.safetensors")
    assert Classifier.load(tmp_path / "classifier.safetensors").preprocessing == preprocessing
    with pytest.raises(transept.TranseptError, match="trained to classify, not to segment"):
        Segmenter.load(tmp_path / "classifier.safetensors")


def test_whole_and_backbone_weights(tmp_path: Path):
    classifier = transept.create_model("xcit_nano_12_p16", depth=2)
    torch.save({"model": classifier.state_dict()}, tmp_path / "classifier.pth")
    segmenter = tiny(backbone_weights=tmp_path / "classifier.pth")
    assert torch.equal(segmenter.backbone.blocks[1].mlp.fc1.weight, classifier.blocks[1].mlp.fc1.weight)
    official = {"module." + key: value for key, value in segmenter.state_dict().items()}
    torch.save({"state_dict": official, "meta": {"CLASSES": ("a", "b")}}, tmp_path / "iter_1.pth")
    again = tiny(weights=tmp_path / "iter_1.pth")
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(images), segmenter(images))
    other = tiny(num_classes=7)
    kept = other.decode_head.conv_seg.weight.clone()
    report = transept.load_weights(other, tmp_path / "iter_1.pth")
    assert report.missing == [
        f"{head}_head.conv_seg.{part}" for head in ("decode", "auxiliary") for part in ("weight", "bias")
    ]
    assert torch.equal(other.decode_head.conv_seg.weight, kept)
    assert torch.equal(other.decode_head.bottleneck.conv.weight, segmenter.decode_head.bottleneck.conv.weight)
    with pytest.raises(transept.TranseptError, match="do not fit"):
        transept.load_weights(tiny("semantic_fpn"), tmp_path / "iter_1.pth")


def test_derived_buffers_of_official_files_are_dropped(tmp_path: Path):
    options = dict(num_classes=3, width=16, depths=(1, 1, 1, 1))
    segmenter = create_segmenter("semantic_fpn", backbone="cat_tiny", **options)
    index = "backbone.layers.0.pre_ipsa_blocks.0.attn.relative_position_index"
    torch.save({"state_dict": segmenter.state_dict() | {index: torch.zeros(49, 49).long()}}, tmp_path / "latest.pth")
    report = transept.load_weights(
        create_segmenter("semantic_fpn", backbone="cat_tiny", **options), tmp_path / "latest.pth"
    )
    assert (report.missing, report.unexpected) == ([], [])


def test_published_options():
    def groups(segmenter: Segmenter) -> tuple:
        config = segmenter.backbone.config
        return config.grouping, config.group_sizes, config.intervals

    with skeletons():
        for method, expected in (
            ("semantic_fpn", ("legacy", (14, 14, 7, 7), (16, 8, 2, 1))),
            ("upernet", ("legacy", (7, 7, 7, 7), (8, 4, 2, 1))),
        ):
            assert groups(create_segmenter(method, backbone="crossformer_base")) == expected
        own = create_segmenter("upernet", backbone="crossformer_small", grouping="current", group_sizes=(4, 4, 4, 4))
        assert groups(own) == ("current", (4, 4, 4, 4), (8, 4, 2, 1))
        xcit = create_segmenter("semantic_fpn", backbone="xcit_tiny_12_p8", drop_path_rate=0.1, in_chans=4)
    assert xcit.neck.out_channels == 192
    assert xcit.backbone.patch_embed.proj[0][0].in_channels == 4
    assert xcit.backbone.blocks[3].drop_path.drop_prob == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(method="upernett"), "no segmentation method is called 'upernett'; did you mean 'upernet'"),
        (dict(backbone="xcit_nanno_12_p16"), "did you mean 'xcit_nano_12_p16_"),
        (
            dict(img_sze=3),
            "no option of a segmenter on xcit_nano_12_p16_224 is called 'img_sze'; did you mean 'img_size'",
        ),
        (dict(num_clases=3), "did you mean 'num_classes'"),
        (dict(num_classes=256), "256 classes; give 1 to 255, as label 255 is ignored"),
        (dict(num_classes=0), "0 classes; give 1 to 255"),
        (dict(width=15), "width=15; give a positive even number"),
        (dict(classes=["a"]), "1 names of classes were given for num_classes=5"),
        (dict(palette=[(0, 0, 0)] * 3), "the palette has 3 colours for 5 classes"),
        (dict(weights="a.pth", backbone_weights="b.pth"), "weights hold the whole segmenter"),
        (dict(weights="absent.pth"), "there is no weights file 'absent.pth'"),
    ],
)
def test_calls_that_are_wrong(options: dict, message: str):
    given = dict(method="upernet", backbone="xcit_nano_12_p16") | TINY | options
    with pytest.raises(transept.TranseptError, match=message):
        transept.create_segmenter(given.pop("method"), **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(ratios=()), r"ratios=\(\); give one or more positive"),
        (dict(ratios=(1.0, -2.0)), "ratios=.*positive"),
        (dict(crop=(0, 5)), r"crop=\(0, 5\); give a positive height and width"),
        (dict(crop=(8, 8), stride=(9, 8)), r"stride=\(9, 8\) is larger than crop=\(8, 8\)"),
        (dict(stride=(3, 3)), r"stride=\(3, 3\) is of sliding windows"),
        (dict(crop=(8, 8), batch_size=0), "batch_size=0 must be at least 1"),
    ],
)
def test_inference_that_is_wrong(options: dict, message: str):
    with pytest.raises(UsageError, match=message):
        SegmentationInference(**options)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (torch.zeros(3, 8, 8), r"the picture is \(3, 8, 8\) of float32; give 3 x H x W bytes"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), r"the picture is \(1, 8, 8\) of uint8"),
    ],
)
def test_pictures_that_are_none(picture: torch.Tensor, message: str):
    with pytest.raises(transept.TranseptError, match=message):
        tiny().predict([picture])


def test_grey_pictures_are_taken_as_grey():
    segmenter = tiny(preprocessing=SMALL_SCENES)
    grey = Image.fromarray(np.arange(64 * 48, dtype=np.uint8).reshape(64, 48))
    assert torch.equal(segmenter.predict([grey])[0].labels, segmenter.predict([grey.convert("RGB")])[0].labels)


@pytest.mark.parametrize(
    "options", [dict(scale=(0, 5)), dict(scale=(5,)), dict(multiple_of=0)], ids=lambda options: str(options)
)
def test_preprocessing_that_is_wrong(options: dict):
    name, value = next(iter(options.items()))
    with pytest.raises(UsageError, match=re.escape(f"{name}={shown(value)}")):
        SegmentationPreprocessing(**options)


@pytest.mark.parametrize(
    ("method", "backbone"),
    [
        pytest.param(method, name, marks=[pytest.mark.slow] if method == "upernet" and "xcit" not in name else [])
        for method in METHODS
        for name in BACKBONES
    ],
)
@torch.no_grad()
def test_every_family_at_an_odd_size(method: str, backbone: str):
    segmenter = create_segmenter(method, backbone=backbone, num_classes=5, width=16, **BACKBONES[backbone]).eval()
    images = torch.randn(2, 3, 61, 90)
    logits = segmenter(images)
    assert logits.shape == (2, 5, 61, 90)
    torch.testing.assert_close(segmenter(images[1:]), logits[1:], atol=1e-4 * float(logits.std()), rtol=0)
    assert segmenter.train()(images).decode.isfinite().all()


def test_auxiliary_head_reads_its_level():
    head = FCNHead((3, 5, 7, 9), 4, level=1, channels=6).eval()
    maps = [torch.full((1, c, 4, 4), float("nan")) for c in (3, 5, 7, 9)]
    maps[1] = torch.randn(1, 5, 4, 4)
    assert head(maps).shape == (1, 4, 4, 4)
    assert head(maps).isfinite().all()


@torch.no_grad()
def test_initial_values_of_heads():
    for method in ("semantic_fpn", "upernet"):
        segmenter = create_segmenter(method, backbone="xcit_nano_12_p16", depth=1)
        for name, module in segmenter.named_modules():
            if name.endswith("conv_seg"):
                assert float(module.weight.std()) == pytest.approx(0.01, rel=0.05)
                assert not module.bias.any()
            elif name.startswith(("decode", "aux")) and isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * module.kernel_size[0] ** 2
                assert float(module.weight.std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
                assert module.bias is None
            elif name.startswith(("decode", "aux")) and isinstance(module, nn.BatchNorm2d):
                assert (module.eps, module.momentum) == (1e-5, 0.1)
                assert module.weight.eq(1).all()
                assert not module.bias.any()


def test_palette():
    palette = drawing_palette(150)
    assert len(set(palette)) == 150
    assert palette[:19] == drawing_palette(19)
    steps = np.abs(np.diff(np.array(palette), axis=0)).sum(axis=1)
    assert steps.min() > 60  # neighbours differ


@pytest.mark.parametrize(
    "inference",
    [
        SegmentationInference(),
        SegmentationInference(ratios=(0.5, 1.5), flip=True),
        SegmentationInference(crop=(32, 32)),
        SegmentationInference(crop=(24, 40), stride=(17, 13), ratios=(0.5, 1.0, 1.5), flip=True, batch_size=3),
    ],
    ids=["whole", "scales and mirror", "windows", "windows of scales and mirror"],
)
def test_large_pictures_are_labelled_by_strips(monkeypatch: pytest.MonkeyPatch, inference: SegmentationInference):
    """The same labels and scores, and never all classes of all pixels at once."""
    model = tiny(preprocessing=SMALL_SCENES)
    pixels = np.random.default_rng(0).integers(0, 256, (190, 131, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    (whole,) = model.predict([picture], inference)
    crop = inference.crop or (0, 0)
    monkeypatch.setattr("transept.tasks.segment._WHOLE", len(model.classes) * crop[0] * 37)  # columns at a time
    monkeypatch.setattr("transept.tasks.segment._PIECE", len(model.classes) * 131 * 7)
    monkeypatch.setattr(Segmenter, "probabilities", None)
    (strips,) = model.predict([picture], inference)
    assert (strips.labels == whole.labels).float().mean() > 0.999  # all but ties
    assert (strips.labels.dtype, strips.scores.dtype) == (whole.labels.dtype, whole.scores.dtype)
    torch.testing.assert_close(strips.scores, whole.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["eager", "fused", pytest.param("compiled", marks=pytest.mark.slow)])
def test_forms_keep_coarse_logits_of_large_pictures(monkeypatch: pytest.MonkeyPatch, form: str):
    model = tiny(preprocessing=SMALL_SCENES)
    images = torch.rand(1, 3, 64, 96)
    coarse = model(images, coarse=True)
    assert coarse.shape[-2:] == (16, 24)
    torch.testing.assert_close(resize_map(coarse, (64, 96)), model(images))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (190, 131, 3), dtype=np.uint8))
    # A compiled form compiles anew for each further size.
    inference = SegmentationInference(ratios=(1.0,) if form == "compiled" else (0.5, 1.5), flip=True)
    monkeypatch.setattr("transept.tasks.segment._WHOLE", 0)
    (expected,) = model.predict([picture], inference)
    seen = []
    monkeypatch.setattr(
        "transept.tasks.segment._rows_of", lambda logits, *where: seen.append(logits) or _rows_of(logits, *where)
    )
    (labelled,) = in_form(model, form, "float32").predict([picture], inference)
    torch.testing.assert_close(labelled.scores, expected.scores, rtol=1e-4, atol=1e-5)
    longest = max(max(image.shape[-2:]) for image, _ in model._scaled(picture, inference))
    assert max(max(logits.shape[-2:]) for logits in seen) < 0.3 * longest

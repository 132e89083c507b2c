"""`transept.compile`: the same answers as eager in every form, and a word on which form it took."""

import copy
import json
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_cpp_code

import transept
from tests.golden import weights
from tests.golden.recorded import GOLDEN, arrange, build, largest_difference
from tests.helpers import SMALL, image, lively
from transept.errors import TranseptError, UsageError
from transept.inference import packed
from transept.inference.compile import BFLOAT16_LIMIT, best_precision, in_precision, sample_images, spread_error
from transept.inference.processor import fast_bfloat16, instructions, missing


def small(name: str, **options) -> nn.Module:
    return lively(transept.create_model(name, num_classes=7, img_size=64, **SMALL[name], **options)).eval()


@pytest.fixture
def no_compiler() -> Iterator[None]:
    """A machine without a C++ compiler: Inductor is pointed at one that is not there."""
    from torch._inductor import config

    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        yield


@pytest.mark.slow  # the compiler takes half a minute
def test_any_number_of_images():
    model = small("xcit_nano_12_p8_224")
    compiled = transept.compile(model, "float32")
    assert compiled.form.name == "compiled"
    assert compiled.form.dtype == "float32"
    assert compiled.form.error < 2e-5
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for count in (2, 3, 5):
        images = image(count)
        outputs = compiled(images)
        assert spread_error([model(images).detach()], [outputs]) < 2e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before, "another batch was compiled anew"
    with torch.no_grad():
        compiled.blocks[0].mlp.fc1.weight.zero_()  # the product reads a packed one
    compiled.blocks[0].norm1.eps = 1.0  # nobody asks before a call
    assert torch.equal(compiled(images), outputs), (
        "weights are inputs, and not constants that lie as products want them"
    )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before, (
        "the modules are asked whether they changed"
    )
    with pytest.raises(UsageError, match="a fused or compiled model is for inference"):
        compiled.train()
    assert model(image()).requires_grad, "the model was changed"


@pytest.mark.slow  # the compiler takes half a minute
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch is without oneDNN")
def test_one_image_goes_to_onednn_where_mkl_is_narrow(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packed, "mkl_is_narrow", lambda: True)
    model = small("xcit_nano_12_p8_224")
    compiled, code = run_and_get_cpp_code(lambda: transept.compile(model, "float32", batch=1))
    assert compiled.form.error < 2e-5
    assert "aoti_torch_cpu__linear_pointwise" in code
    assert "_mkl_linear" not in code
    outputs = compiled(image(1))
    assert spread_error([model(image(1)).detach()], [outputs]) < 2e-5


@pytest.mark.slow  # the compiler takes a minute
@torch.inference_mode()
def test_images_of_further_sizes():
    model = lively(
        transept.create_model("xcit_nano_12_p16_224", features_only=True, **SMALL["xcit_nano_12_p8_224"])
    ).eval()
    compiled = transept.compile(model, "float32")
    assert compiled.form.name == "compiled"
    for size in ((64, 64), (96, 64), (48, 128), (64, 64)):
        images = torch.rand(1, 3, *size)
        assert spread_error(model(images), compiled(images)) < 2e-5, size


@pytest.mark.slow  # the compiler takes a minute
@torch.inference_mode()
def test_a_second_model_of_another_size():
    """Dynamo took its sizes for those of the first one, which had changed: a graph for any size, with constants."""
    for side in (64, 32):
        model = small("xcit_nano_12_p8_224")
        compiled = transept.compile(model, "float32", img_size=side)
        assert compiled.form.name == "compiled"
        for count in (1, 3):
            images = torch.randn(count, 3, side, side)
            assert spread_error([model(images)], [compiled(images)]) < 2e-5


@pytest.mark.slow  # the compiler takes a minute
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("xcit_nano_12_p16", 2e-5),
        ("cait_xxs24_224", 2e-5),
        ("cat_tiny", 2e-5),
        ("crossformer_tiny", 2e-5),
        ("cabvit_h_l1", 2e-5),
        ("crossvit_tiny_240", 5e-5),  # it resizes the picture in float32
        ("bixt_ti_l32_p16", 2e-5),
    ],
)
@torch.inference_mode()
def test_outputs_equal_the_official_model(name: str, exact: float, dtype: str):
    golden = json.loads(next(path for path in GOLDEN if path.stem == name).read_text())
    images = torch.from_numpy(weights.image_for(golden["input"]["seed"], golden["input"]["shape"]))
    compiled = transept.compile(build(golden), dtype, batch=len(images), img_size=images.shape[-2:])
    assert compiled.form.name == "compiled"
    logits, recorded = compiled(images), golden["outputs"]["logits"]
    limit = exact if dtype == "float32" else BFLOAT16_LIMIT
    assert largest_difference(arrange(logits, recorded["shape"]), recorded) < limit * recorded["std"]


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_it_is_fused():
    model = small("cait_xxs24_224")
    form = transept.compile(model, "float32")
    assert form.form.name == "fused"
    assert str(form.form).startswith("fused in float32: as asked; there is no C++ compiler, such as g++")
    assert spread_error([model(image(3)).detach()], [form(image(3))]) < 2e-5


@pytest.mark.usefixtures("no_compiler")
def test_half_precision_takes_and_gives_float32():
    model = small("xcit_nano_12_p8_224")
    form = transept.compile(model, "bfloat16")
    assert form.form.dtype == "bfloat16"
    logits = form(image())
    assert logits.dtype == torch.float32
    assert form.head.weight.dtype == torch.bfloat16
    error = spread_error([model(image()).detach()], [logits])
    assert 1e-4 < error < BFLOAT16_LIMIT
    assert torch.equal(copy.deepcopy(form)(image()), logits)


@pytest.mark.usefixtures("no_compiler")
def test_the_precision_that_this_processor_does_best():
    unit = fast_bfloat16()
    dtype, reason = best_precision("auto", torch.device("cpu"))
    assert (dtype == "bfloat16") == (unit is not None)
    assert reason == (f"this processor has {unit}" if unit else "bfloat16 is no faster here")
    assert transept.compile(small("cait_xxs24_224")).form.dtype == dtype
    assert "avx512_f" not in missing(instructions())
    assert missing(["sve", "avx512_f", "no_such_unit"]) == sorted({"sve", "avx512_f", "no_such_unit"} - instructions())


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.inference_mode()
def test_a_detector_keeps_its_decoding(dtype: str):
    detector = transept.create_detector("mask_rcnn", backbone="xcit_nano_12_p16", num_classes=3, depth=1, width=32)
    lively(detector).eval()
    form = transept.compile(detector, dtype, img_size=(64, 96))
    images = sample_images(detector.backbone, (64, 96), 1)
    expected = detector.decode(detector(images), [(64, 96)])[0]
    actual = form.decode(form(images), [(64, 96)])[0]
    assert actual.boxes.dtype == actual.scores.dtype == torch.float32
    assert len(expected.scores) > 5
    if dtype == "float32":
        torch.testing.assert_close(actual.boxes, expected.boxes, atol=1e-2, rtol=0)
    else:
        assert abs(float(actual.scores[0] - expected.scores[0])) < 0.05


def test_wrong_words():
    model = small("cait_xxs24_224")
    with pytest.raises(UsageError, match=r"no dtype .* is called 'bfloat15'; did you mean 'bfloat16'"):
        transept.compile(model, "bfloat15")
    with pytest.raises(UsageError, match="'int8'; 8 bits are for ONNX Runtime: transept export --int8"):
        transept.compile(model, "int8")
    with pytest.raises(UsageError, match="batch=0 must be positive"):
        transept.compile(model, batch=0)
    with pytest.raises(TranseptError, match="cannot compile a Linear: it contains no model of transept"):
        transept.compile(nn.Linear(2, 2))


def test_outputs_of_other_shapes_are_infinitely_far():
    assert spread_error([torch.ones(2, 3)], [torch.ones(2, 4)]) == float("inf")
    assert spread_error([torch.tensor([1.0, 3.0])], [torch.tensor([1.0, 3.5])]) == pytest.approx(0.5 / 2**0.5)
    assert in_precision(nn.Linear(2, 2).bfloat16(), "float32").weight.dtype == torch.float32

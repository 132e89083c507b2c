"""Every option of a recipe, set to a value of the wrong type and to one out of its range: the sentence begins with it.

An option without a range stands in `FREE`, so that a new one must state its own.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from transept.cli.main import main
from transept.errors import UsageError
from transept.training.options.pages import read_recipe, recipe_names
from transept.training.options.parsing import option_types, parse_recipe

# Option (or all options whose last name it is): a value that the type allows and the range does not.
OUT_OF_RANGE: dict[str, Any] = {
    "accumulate": 0,
    "alpha": 1.5,
    "anchor_scale": 0,
    "batch_size": 0,
    "bands": [-1],
    "betas": [0.9, 1],
    "blur": [0, 0, 2],
    "bottleneck_dim": 0,
    "category_max_ratio": 2,
    "center_momentum": -0.1,
    "checkpoint_seconds": -1,
    "classifier_std": 0,
    "clip_grad": 0,
    "crop": [0, 3],
    "crop_pct": 1.1,
    "crop_ratio": [2, 1],
    "crop_resize": 7,
    "crop_scale": [0, 1],
    "crop_short_sides": [],
    "crop_sides": [600, 384],
    "cutmix": -1,
    "detect.augmentation.color_jitter": -1,
    "classify.augmentation.color_jitter": -1,
    "pretrain.views.color_jitter": [0, 0, 0, 0.6],
    "ema.decay": 1,
    "detect.method": "retina",
    "segment.method": "fcn",
    "detect.width": 33,
    "segment.width": 3,
    "devices": 0,
    "drop_path_rate": 1,
    "epochs": 0,
    "erasing": -0.1,
    "evaluate_every": 0,
    "patience": 0,
    "flip": 2,
    "fold": [6, 5],
    "fold_seed": -1,
    "flip_vertical": 2,
    "freeze": -1,
    "freeze_last_layer": -1,
    "gamma": 0,
    "global_scale": [0.5, 0.4],
    "hidden_dim": 0,
    "img_size": 0,
    "iterations": 0,
    "knn_k": 0,
    "knn_temperature": 0,
    "label_separator": "",
    "label_smoothing": 1,
    "layer_decay": 0,
    "local_crops": -1,
    "local_scale": [0, 0.3],
    "local_size": 0,
    "lr": -1,
    "lr_batch": 0,
    "mean": [0, 0, 255],
    "milestones": [8, 3],
    "min_lr": -1,
    "mixup": -1,
    "model.name": "xcit_nan_12_p8_224",
    "model.options": {"no_such_option": 1},
    "momentum": 2,
    "multiple_of": 0,
    "nodes": 0,
    "optimizer.name": "adamv",
    "out_dim": 0,
    "photometric": 2,
    "pixel_range": [4095, 0],
    "power": 0,
    "probability": 2,
    "randaugment": "rand-x9",
    "repeat_threshold": 0,
    "repeats": 0,
    "resize_ratio": [0, 1],
    "rois": 0,
    "rotation": 400,
    "scale": [0, 800],
    "scenes": [0, 10],
    "seed": -1,
    "short_sides": [480, 0],
    "solarize": 2,
    "split": "",
    "train_split": "",
    "val_split": "",
    "std": [0, 1, 1],
    "student_temp": 0,
    "switch": 2,
    "tau": 0,
    "teacher": "regnety_161",
    "teacher_temp": 0,
    "teacher_temp_start": 0,
    "teacher_temp_warmup_epochs": -1,
    "translation": 2,
    "val_fraction": 0,
    "warmup_epochs": -1,
    "warmup_iterations": -1,
    "warmup_lr": -1,
    "warmup_ratio": 2,
    "optimizer.weight_decay": -1,
    "weight_decay_end": -1,
    "workers": -1,
}
# Their type says all that can be asked of them before data is read: flags, words of a fixed list, free text.
FREE = set(
    """accept_changed_data antialias bgr bn_in_head by_epoch channels_last class_weights classify.distill.kind
    classify.distill.weights classify.mix.mode compile cosine_from_start
    data ema.evaluate engine erasing_mode fast_decode grad_checkpointing keep_empty
    loggers model.weights multi_label no_weight_decay norm_eval norm_last_layer per_picture precision reduce_zero_label
    sampler schedule.decay scale_bounds skip_bad_annotations skip_bad_images strategy sync_batchnorm task
    classify.loss three_augment""".split()
)
PAGES = {"classify": "digits", "detect": "quick-det", "segment": "quick-seg", "pretrain": "quick-dino"}
OPTIONS = option_types()


def takes_text(name: str) -> bool:
    return OPTIONS[name] in (str, str | None)


def wrong_type(name: str) -> Any:
    return 3 if takes_text(name) else "[[often]]"


def out_of_range(name: str) -> Any:
    return OUT_OF_RANGE.get(name, OUT_OF_RANGE.get(name.rpartition(".")[2]))


def page_with(page: str, name: str, value: Any) -> dict[str, Any]:
    """A built-in page with one value changed."""
    values = read_recipe(page)
    *sections, last = name.split(".")
    inner = values
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[last] = value
    return values


def sentence(page: dict[str, Any], options: list[str]) -> str:
    with pytest.raises(UsageError) as error:
        parse_recipe(page, options)
    return str(error.value)


def starts_with(text: str, name: str) -> bool:
    return text.startswith(name) and not text[len(name)].isalnum() and "\n" not in text and len(text) < 400


def test_every_option_states_its_range_or_is_free():
    ranged = {name for name in OPTIONS if out_of_range(name) is not None}
    free = {name for name in OPTIONS if name in FREE or name.rpartition(".")[2] in FREE}
    assert ranged | free == set(OPTIONS)
    assert not ranged & free
    known = OPTIONS.keys() | {name.rpartition(".")[2] for name in OPTIONS}
    assert OUT_OF_RANGE.keys() | FREE <= known


def page_of(name: str) -> str:
    """A recipe that reads the option."""
    return PAGES.get(name.partition(".")[0], PAGES["classify"])


def test_values_out_of_range():
    ranged = [name for name in OPTIONS if out_of_range(name) is not None]
    said = {name: sentence(page_with(page_of(name), name, out_of_range(name)), []) for name in ranged}
    assert [text for name, text in said.items() if not starts_with(text, name)] == []


def test_values_of_the_wrong_type():
    said = {name: sentence(page_with(page_of(name), name, wrong_type(name)), []) for name in OPTIONS}
    assert [text for name, text in said.items() if not starts_with(text, name)] == []


def test_on_the_command_line():
    texts = {name: wrong_type(name) for name in OPTIONS if not takes_text(name)}  # any word is text
    said = {name: sentence(read_recipe(page_of(name)), [f"--{name}={text}"]) for name, text in texts.items()}
    assert [text for name, text in said.items() if not starts_with(text, f"{name}=[[often]]")] == []


def test_the_only_wrong_value_of_any_page():
    """All others are read before, so the page is whole but for that. Of each method and model the first page."""
    pages = {
        re.sub(r"_(tiny|small|base|large|medium|nano|pp|l\d|[xs]*\d).*", "", name): name for name in recipe_names()
    }
    assert 15 < len(pages) < len(recipe_names())
    said = {name: sentence(page_with(name, "batch_size", 0), []) for name in pages.values()}
    assert set(said.values()) == {"batch_size=0 must be greater than 0"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--detect.augmentation.flip 2", "detect.augmentation.flip=2 is not in [0, 1]"),
        ("--segment.augmentation.crop [0,3]", "segment.augmentation.crop=[0, 3] must be greater than 0"),
        ("--optimizer.lr much", "optimizer.lr=much; give a number"),
        ("--hardware.devices 1.5", "hardware.devices=1.5; give a whole number or null"),
        ("--optimizer.betas [0.5]", "optimizer.betas=[0.5]; give a list of 2, each a number or null"),
        ("--optimizer.name adamv", "optimizer.name='adamv' is not known; did you mean 'adam' or 'radam' or 'nadam'?"),
        ("--model.options.depth x", "model.options.depth='x'; give a whole number"),
        ("--model.options.patch_size 5", "model.options.patch_size=5 has no stem; use 16 or 8 (published) or 4"),
        ("--batch_size", "batch_size has no value; give --batch_size VALUE"),
        (
            "--model.weights start.pth",
            "model.weights='start.pth': there is no weights file 'start.pth'; give the path of a .safetensors, .pth, "
            ".pt or .pdparams file",
        ),
        (
            "--model.weights xcit_nano_12_p16_224.fb_in2k",
            "model.weights='xcit_nano_12_p16_224.fb_in2k': no published checkpoint is called "
            "'xcit_nano_12_p16_224.fb_in2k'; did you mean 'xcit_nano_12_p16_224.fb_in1k' or "
            "'xcit_nano_12_p8_224.fb_in1k' or 'xcit_nano_12_p16_224.timm_fb_in1k'?",
        ),
        (
            "--classify.distill.kind hard --classify.distill.teacher resnet18 --classify.distill.weights teacher.pth",
            "classify.distill.weights='teacher.pth': there is no weights file 'teacher.pth'; give the path of a "
            ".safetensors, .pth, .pt or .pdparams file",
        ),
        (
            "--hardware.devices 2 --sync_batchnorm true",
            "sync_batchnorm=true works on GPUs only; on CPUs give false",
        ),
        (f"--val_fraction=1{'0' * 400}", "val_fraction=1000000000... has a number of 401 digits; give fewer"),
        (
            f"--classify.augmentation.crop_scale=[0.5,{'9' * 400}]",
            "classify.augmentation.crop_scale=[0.5,99999... has a number of 400 digits; give fewer",
        ),
    ],
)
def test_the_exit_code_and_the_whole_sentence(options: str, said: str, capsys: pytest.CaptureFixture):
    assert main(["train", "digits", "--data", "no such folder", *options.split()]) == 2
    assert capsys.readouterr().err == f"transept: {said}\n"


@pytest.mark.parametrize(("key", "text"), [("~", "None"), ("4", "4"), ("true", "True"), ("2020-01-01", "2020-01-01")])
@pytest.mark.parametrize("section", ["", "model", "model.options"])
def test_keys_that_are_not_text(key: str, text: str, section: str, tmp_path: Path):
    """`&depth: 4`, with a slip of the finger, is an anchor for nothing."""
    page: Any = {"task": "classify", "data": "digits", "model": {"name": "xcit_nano_12_p8_224", "options": {}}}
    inner = page
    for name in filter(None, section.split(".")):
        inner = inner[name]
    inner["KEY"] = 1
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(page).replace("KEY", key))
    with pytest.raises(UsageError, match=rf"no (recipe option|option of .*) is called '(model\.)?{text}'; "):
        parse_recipe(read_recipe(str(tmp_path / "a.yaml")), [])

"""Recipes of published detectors: every number is the published one, every page trains, the steps are mmdetection's."""

import csv
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from timm.layers import DropPath

from transept.data.detection.transforms import DetectionAugmentation, DetectionPreprocessing
from transept.errors import TranseptError, UsageError
from transept.models.registry import find_model, skeletons
from transept.tasks.detect import Detector, create_detector
from transept.training.jobs.detection import DetectJob
from transept.training.loop.module import TaskModule
from transept.training.loop.run import train
from transept.training.options.detect import DetectOptions
from transept.training.options.model import ModelOptions
from transept.training.options.optimizer import OptimizerOptions
from transept.training.options.pages import read_recipe, recipe_names
from transept.training.options.parsing import parse_recipe
from transept.training.options.recipe import Recipe
from transept.training.options.schedule import ScheduleOptions
from transept.weights.load import create_model, find_checkpoint

pytest.importorskip("faster_coco_eval")


class Column(NamedTuple):
    """What the runs of a repository share (detection.md, sections 8 and 9)."""

    weight_decay: float
    exempt: list[str]
    precision: Any = "32-true"


_TABLES = ["norm", "relative_position_bias_table"]
COLUMNS = {
    "cat": Column(0.05, _TABLES),
    "cf": Column(1e-4, []),
    "cf3": Column(0.05, [*_TABLES, "absolute_pos_embed"]),
    "xcit": Column(0.05, [*_TABLES, "absolute_pos_embed"], "16-mixed"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "-": {},
    "heads": dict(num_heads=[4, 8, 16, 32]),
    "narrow": dict(group_sizes=[7, 7, 7, 7], intervals=[8, 4, 2, 1], grouping="legacy"),
    "wide": dict(group_sizes=[14, 14, 7, 7], intervals=[16, 8, 2, 1], grouping="legacy"),
    "pp": dict(group_sizes=[7, 7, 7, 7], intervals=[8, 4, 2, 1], grouping="current"),
    "1.0": {"eta": 1.0},
    "1e-5": {"eta": 1e-5},
}

# Sections 8 to 10, and of CrossFormer++ crossformer.md, sections 6 and 8: drop path, options, AP of boxes and of masks,
# millions of parameters (of CrossFormer++ published for one row alone, as 43.0).
TABLE = """
mask_rcnn_cat_small_1x_ms             cat   0.2   -       41.6  38.6  56.801
mask_rcnn_cat_base_1x_ms              cat   0.2   heads   41.8  38.7  71.050
fcos_cat_small_1x                     cat   0.2   -       40.0  -     44.740
fcos_cat_base_1x                      cat   0.2   heads   41.0  -     58.990
atss_cat_small_1x                     cat   0.2   -       42.0  -     44.740
atss_cat_base_1x                      cat   0.2   heads   42.5  -     58.990
retinanet_cat_small_1x                cat   0.2   -       40.1  -     47.465
retinanet_cat_base_1x                 cat   0.2   -       41.4  -     61.702
cascade_rcnn_cat_small_1x             cat   0.2   -       44.1  -     81.799
cascade_rcnn_cat_small_1x_ms          cat   0.2   -       45.2  -     81.799
cascade_rcnn_cat_base_1x              cat   0.2   -       44.8  -     96.037
cascade_rcnn_cat_base_1x_ms           cat   0.2   -       46.3  -     96.037
retinanet_crossformer_small_1x        cf    0.2   narrow  44.4  -     40.825
retinanet_crossformer_base_1x         cf    0.3   narrow  46.2  -     62.139
mask_rcnn_crossformer_small_1x        cf    0.2   narrow  45.4  41.4  50.161
mask_rcnn_crossformer_base_1x         cf    0.3   narrow  47.2  42.7  71.475
mask_rcnn_crossformer_small_3x        cf3   0.2   wide    48.7  43.9  50.161
mask_rcnn_crossformer_base_3x         cf3   0.3   wide    49.8  44.5  71.475
cascade_mask_rcnn_crossformer_small_3x  cf3 0.2   wide    52.2  45.2  87.996
retinanet_crossformer_pp_small_1x     cf    0.2   pp      45.1  -     -
retinanet_crossformer_pp_base_1x      cf    0.3   pp      46.6  -     -
mask_rcnn_crossformer_pp_small_1x     cf    0.2   pp      46.4  42.1  -
mask_rcnn_crossformer_pp_base_1x      cf    0.3   pp      47.7  43.2  -
mask_rcnn_xcit_tiny_12_p16_3x         xcit  0     1.0     42.7  38.5  26.177
mask_rcnn_xcit_tiny_12_p8_3x          xcit  0     1.0     44.5  40.3  25.872
mask_rcnn_xcit_small_12_p16_3x        xcit  0.05  1.0     45.3  40.8  44.387
mask_rcnn_xcit_small_12_p8_3x         xcit  0.05  1.0     47.0  42.3  43.165
mask_rcnn_xcit_small_24_p16_3x        xcit  0.1   1e-5    46.5  41.8  65.805
mask_rcnn_xcit_small_24_p8_3x         xcit  0.1   1e-5    48.1  43.0  64.583
mask_rcnn_xcit_medium_24_p16_3x       xcit  0.15  1e-5    46.7  42.0  101.152
mask_rcnn_xcit_medium_24_p8_3x        xcit  0.15  1e-5    48.5  43.7  98.981
"""
ROWS = {name: rest for name, *rest in map(str.split, TABLE.strip().splitlines())}
# One of each repository; the quick ones of its methods.
REPRESENTATIVES = ["fcos_cat_base_1x", "retinanet_crossformer_small_1x", "mask_rcnn_xcit_tiny_12_p16_3x"]

CPU_PRECISION = "32-true"
"""Instead of 16-mixed, which needs a GPU; bf16-mixed, which tests/training/test_scale.py has, is slow on CPUs."""
TINY = {
    "cat": "--model.options.depths [1,1,1,1] --model.options.embed_dim 32 --model.options.num_heads [1,2,4,8]",
    "crossformer": "--model.options.depths [1,1,2,1] --model.options.embed_dim 32 --model.options.num_heads [1,2,4,8]",
    "xcit": "--model.options.depth 4 --model.options.embed_dim 32 --model.options.num_heads 2",
}
SMALL = (
    "--data digits-scenes --scenes [4,2] --workers 0 --batch_size 2 --model.weights null --detect.width 64 "
    "--detect.preprocessing.scale [96,64] --schedule.epochs 2 --schedule.milestones [1] --schedule.warmup_iterations 3"
)
MULTI_SCALE = (
    "--detect.augmentation.short_sides [48,64] --detect.augmentation.crop_short_sides [48] "
    "--detect.augmentation.crop_sides [40,60]"
)


def parts(name: str) -> tuple[str, str, str, bool]:
    """Method, model, schedule, and whether it is multi-scale."""
    methods = "retinanet|fcos|atss|mask_rcnn|cascade_rcnn|cascade_mask_rcnn"
    found = re.fullmatch(rf"({methods})_((?:cat|crossformer|xcit)_\w+?)_([13]x)(_ms)?", name)
    assert found
    method, model, schedule, several = found.groups()
    return method, model, schedule, several is not None or schedule == "3x"


@cache
def page(name: str, options: str = "") -> Recipe:
    return parse_recipe(read_recipe(f"detect/{name}"), options.split())


def tiny(name: str, options: str = "") -> Recipe:
    method, model, _, several = parts(name)
    if "rcnn" in method:
        options += " --detect.rois 16"
    if page(name).precision == "16-mixed":
        options += f" --precision {CPU_PRECISION}"
    return page(name, f"{TINY[model.partition('_')[0]]} {SMALL} {MULTI_SCALE if several else ''} {options}")


def test_there_is_a_page_for_every_published_row():
    assert {f"detect/{name}" for name in ROWS} == {name for name in recipe_names() if name.startswith("detect/")}


@pytest.mark.parametrize("name", ROWS)
def test_every_number_is_the_published_one(name: str):
    column, drop_path, options, *_ = ROWS[name]
    shared = COLUMNS[column]
    method, model, schedule, several = parts(name)
    pictures: dict[str, Any] = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), bgr=False)
    if method == "fcos":
        mean = (102.9801 / 255, 115.9465 / 255, 122.7717 / 255)
        pictures = dict(mean=mean, std=(1 / 255, 1 / 255, 1 / 255), bgr=True)
    multi_scale: dict[str, Any] = dict(short_sides=tuple(range(480, 801, 32)), crop_resize=0.5) if several else {}
    assert page(name) == Recipe(
        task="detect",
        batch_size=16,
        workers=8,
        sync_batchnorm=column == "xcit" or method == "cascade_mask_rcnn",
        precision=shared.precision,
        model=ModelOptions(
            name=model,
            weights=f"{model}_384.fb_dist_in1k" if column == "xcit" else f"{model}.in1k",
            drop_path_rate=float(drop_path),
            options=OPTIONS[options],
        ),
        detect=DetectOptions(
            method=method,
            width=256,
            keep_empty=False,
            preprocessing=DetectionPreprocessing(scale=(1333, 800), **pictures),
            augmentation=DetectionAugmentation(
                flip=0.5, crop_short_sides=(400, 500, 600), crop_sides=(384, 600), **multi_scale
            ),
        ),
        optimizer=OptimizerOptions(
            name="adamw",
            lr=1e-4,
            betas=(0.9, 0.999),
            weight_decay=shared.weight_decay,
            no_weight_decay=shared.exempt,
            clip_grad=None,
        ),
        schedule=ScheduleOptions(
            epochs=12 if schedule == "1x" else 36,
            decay="step",
            milestones=[8, 11] if schedule == "1x" else [27, 33],
            gamma=0.1,
            warmup_epochs=0,
            warmup_iterations=500,
            warmup_ratio=0.001,
        ),
    )


@pytest.mark.parametrize("name", ROWS)
def test_the_head_of_a_page(name: str):
    column, _, options, box, mask, millions = ROWS[name]
    text = (files("transept") / "recipes" / "detect" / f"{name}.yaml").read_text()
    head = re.sub(r"\n#? *", " ", text.partition("task:")[0])
    both = f"{box}" if mask == "-" else f"{box}, mask AP {mask}"
    assert re.search(rf"Score +Box AP {both}\. The (paper|authors)'s? figures?, not re-run by us", head)
    assert "8 GPUs x 2" in head
    assert millions == "-" or f" {millions} M parameters" in head
    assert ("Not established" in head) == (column == "cf3" or "pp_base" in name)
    assert ("bf16-mixed is the choice" in text) == (column == "xcit")
    assert f"# transept train detect/{name} --data COCO\n" in text
    model = page(name).model
    assert model.weights is not None
    published = find_checkpoint(model.weights)
    assert published.task == "classification"
    assert published.registered.startswith(model.name)
    assert ("share page" in head) == (published.download == "share page")
    assert ("start fresh" in head) == (options == "heads")


def test_pages_agree_with_the_published_detectors():
    for name, (column, _, options, *_) in ROWS.items():
        method, model, _, _ = parts(name)
        recipe = page(name)
        if (column == "cf" and options == "narrow") or column == "cat" or method == "cascade_mask_rcnn":
            expected = find_model(model)[1].dense_options.get((method, model), {})
            assert recipe.model.options == {key: list(v) if isinstance(v, tuple) else v for key, v in expected.items()}
        if column == "xcit":
            registered, family = find_model(model)
            assert family.variants[registered].eta == float(options)  # type: ignore
        fields = find_model(model)[1].dense_preprocessing.get((method, model))
        if fields:
            published = DetectionPreprocessing(**fields)
            assert (published.mean, published.std, published.bgr, published.scale) == (
                recipe.detect.preprocessing.mean,
                recipe.detect.preprocessing.std,
                recipe.detect.preprocessing.bgr,
                recipe.detect.preprocessing.scale,
            )


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_the_detector_of_a_page_has_the_published_size(name: str):
    recipe = page(name)
    with skeletons():
        detector = create_detector(recipe.detect.method, backbone=recipe.model.name, **recipe.model.options)
    count = f"{sum(p.numel() for p in detector.parameters()) / 1e6:.3f}"
    millions = ROWS[name][-1]
    assert count == millions or (millions == "-" and f" {count} M parameters" in _text(name))


def _text(name: str) -> str:
    return (files("transept") / "recipes" / "detect" / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_drop_path_is_linear_but_in_xcit(name: str):
    recipe = tiny(name, "--model.drop_path_rate 0.3")
    task: Any = DetectJob(recipe).build(load=False)
    rates = [module.drop_prob for module in task.modules() if isinstance(module, DropPath)]
    assert max(rates) == pytest.approx(0.3)
    assert (set(rates) == {0.3}) == (ROWS[name][0] == "xcit")


def rates_of(recipe: Recipe, at: list[int], steps_per_epoch: int) -> tuple[torch.optim.Optimizer, Any, list[float]]:
    """The optimiser, the task, and the learning rates of these steps, counted from 0."""
    job = DetectJob(recipe)
    task = job.build(load=False)
    configured: Any = TaskModule(task, job, recipe, steps_per_epoch=steps_per_epoch).configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for step in at:
        schedule.last_epoch = step - 1  # as if so many steps were taken
        optimizer.step()
        schedule.step()
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        rates.append(rate)
    return optimizer, task, rates


# Worked out by hand after mmdetection: 7330 batches of 16 in an epoch; at iteration t of the warm-up the rate of the
# epoch times 1 - (1 - t / 500) * 0.999; then, epochs counted from 0, a tenth from the first milestone's on.
STEPS = {
    "1x": {0: 1e-7, 1: 2.998e-7, 250: 5.005e-5, 499: 9.98002e-5, 500: 1e-4, 8 * 7330 - 1: 1e-4, 8 * 7330: 1e-5,
           11 * 7330 - 1: 1e-5, 11 * 7330: 1e-6, 12 * 7330 - 1: 1e-6},
    "3x": {0: 1e-7, 250: 5.005e-5, 500: 1e-4, 27 * 7330 - 1: 1e-4, 27 * 7330: 1e-5, 33 * 7330 - 1: 1e-5,
           33 * 7330: 1e-6, 36 * 7330 - 1: 1e-6},
}  # fmt: skip


@pytest.mark.parametrize("name", ["retinanet_cat_small_1x", "mask_rcnn_crossformer_small_1x",
                                  "mask_rcnn_xcit_small_12_p16_3x"])  # fmt: skip
def test_learning_rate_and_groups_of_weight_decay(name: str):
    schedule = page(name).schedule
    _, _, length, _ = parts(name)
    milestones = str(schedule.milestones).replace(" ", "")
    given = f"--schedule.epochs {schedule.epochs} --schedule.milestones {milestones} --schedule.warmup_iterations 500"
    optimizer, task, rates = rates_of(tiny(name, given), list(STEPS[length]), 7330)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert rates == pytest.approx(list(STEPS[length].values()), rel=1e-6)

    column = COLUMNS[ROWS[name][0]]
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    trained = {n: p for n, p in task.named_parameters() if p.requires_grad}
    assert decays.keys() == {id(p) for p in trained.values()}
    assert set(decays.values()) == ({0.0, column.weight_decay} if column.exempt else {column.weight_decay})
    exempt = {n for n, p in trained.items() if decays[id(p)] == 0}
    rule = "|".join(column.exempt)
    assert exempt == {n for n in trained if rule and re.search(rule, n)}
    # Biases of heads and necks decay, as do XCiT's layer scales and batch norms and CAT's encoding of positions.
    assert not [n for n in exempt if not n.startswith("backbone.") or "gamma" in n or ".bn." in n or n.endswith("ape")]


def test_a_milestone_inside_the_warm_up():
    """mmdetection warms up to the rate of the epoch; also when the warm-up outlasts the first milestone."""
    recipe = tiny("retinanet_cat_small_1x", "--schedule.warmup_iterations 5 --schedule.epochs 3")
    _, _, rates = rates_of(recipe, list(range(7)), 3)
    shares = [0.001, 0.2008, 0.4006, 0.06004, 0.08002, 0.1, 0.1]
    assert rates == pytest.approx([1e-4 * share for share in shares], rel=1e-6)


def test_a_cosine_after_a_warm_up_in_iterations():
    recipe = tiny("retinanet_cat_small_1x", "--schedule.decay cosine --schedule.min_lr 0 --schedule.epochs 3")
    job = DetectJob(recipe)
    module = TaskModule(job.build(load=False), job, recipe, steps_per_epoch=3)
    configured: Any = module.configure_optimizers()
    rates = []
    for step in range(10):
        configured["lr_scheduler"]["scheduler"].step_update(step)
        rates.append(configured["optimizer"].param_groups[0]["lr"])
    assert rates[3] == pytest.approx(1e-4)  # three steps of warm-up, and six of a half cosine
    assert rates[6] == pytest.approx(0.5e-4)
    assert rates[:4] == sorted(rates[:4])
    assert rates[9] == pytest.approx(0, abs=1e-12)


def check_run(name: str, folder: Path) -> None:
    recipe = tiny(name)
    result = train(recipe, folder, progress=False)
    table = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [row["step"] for row in table] == ["2", "4"]
    # After two of three steps of warm-up, in the second epoch of the lower rate; after four.
    assert [float(row["lr"]) for row in table] == pytest.approx([1e-5 * (1 - 0.999 / 3), 1e-5], rel=1e-4)
    assert all(0 < float(row["train_loss"]) < 50 for row in table)
    assert 0 <= result.metrics["map"] <= 1
    detector = Detector.load(folder / "best.safetensors")
    assert detector.method == recipe.detect.method
    assert (detector.preprocessing.mean, detector.preprocessing.bgr) == (
        recipe.detect.preprocessing.mean,
        recipe.detect.preprocessing.bgr,
    )
    assert ("mask_map" in result.metrics) == ("mask" in recipe.detect.method)
    assert parse_recipe(read_recipe(str(folder / "config.yaml")), []) == recipe


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_a_page_trains(name: str, tmp_path: Path):
    check_run(name, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ROWS if name not in REPRESENTATIVES])
def test_the_other_pages_train(name: str, tmp_path: Path):
    check_run(name, tmp_path / "run")


@pytest.mark.parametrize("name", ["fcos_cat_base_1x", "mask_rcnn_crossformer_base_3x", "mask_rcnn_xcit_tiny_12_p8_3x"])
def test_the_starting_weights_are_a_classifiers(name: str, tmp_path: Path):
    """Also where the detector's heads are not the classifier's: their tables start fresh."""
    recipe = tiny(name, f"--model.weights {tmp_path / 'weights.pth'}")
    options = dict(recipe.model.options) | {"img_size": 224}
    for key in ("group_sizes", "intervals", "grouping"):  # the classifier's own differ
        options.pop(key, None)
    if "cat_" in name:
        options["num_heads"] = [2, 4, 8, 16]
    classifier = create_model(recipe.model.name, **options)
    torch.save({"model": classifier.state_dict()}, tmp_path / "weights.pth")
    detector: Any = DetectJob(recipe).build(load=True)
    ours, theirs = detector.backbone.state_dict(), classifier.state_dict()
    fresh = {key for key in ours if key in theirs and ours[key].shape != theirs[key].shape and key != "ape"}
    assert all(key.endswith("relative_position_bias_table") for key in fresh)
    assert bool(fresh) == ("cat_" in name)
    same = [key for key in ours if key in theirs and ours[key].shape == theirs[key].shape]
    assert len([key for key in same if re.search(r"(qkv|mlp\.fc1)\.weight$", key)]) >= 8
    assert all(torch.equal(ours[key], theirs[key]) for key in same)


def test_other_heads_are_refused_of_a_detector(tmp_path: Path):
    """The tables of a trained detector are not thrown away."""
    small: dict[str, Any] = dict(depths=[1, 1, 1, 1], embed_dim=32)
    pyramid = create_model("cat_base", features_only=True, num_heads=[2, 4, 8, 16], **small)
    torch.save({"model": pyramid.state_dict()}, tmp_path / "weights.pth")
    with pytest.raises(TranseptError, match=r"relative_position_bias_table is \(169, 2\) in the file and \(169, 1\)"):
        create_model("cat_base", features_only=True, num_heads=[1, 2, 4, 8], weights=tmp_path / "weights.pth", **small)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--schedule.milestones []", r"schedule.milestones=\[\]; give rising numbers of epochs"),
        ("--schedule.milestones [11,8]", r"schedule.milestones=\[11, 8\]; give rising numbers"),
        ("--schedule.milestones [0]", r"schedule.milestones=\[0\]; give rising numbers"),
        ("--schedule.gamma 0", "schedule.gamma=0 is not in"),
        ("--schedule.warmup_iterations -1", "schedule.warmup_iterations=-1 must not be negative"),
        ("--schedule.evaluate_every 5", "schedule.evaluate_every=5 is of runs counted in iterations"),
    ],
)
def test_wrong_options(options: str, message: str):
    with pytest.raises(UsageError, match=message):
        page("retinanet_cat_small_1x", options)


def test_a_warm_up_longer_than_the_run(tmp_path: Path):
    recipe = tiny("retinanet_cat_small_1x", "--schedule.warmup_iterations 500")
    with pytest.raises(UsageError, match=r"warmup_iterations=500, but the run has 4 \(2 epochs of 2\); give fewer"):
        train(recipe, tmp_path / "run", progress=False)

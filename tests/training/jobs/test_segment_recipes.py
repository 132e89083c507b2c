"""Recipes of published segmenters: every number is the published one, every page trains, and runs resume exactly."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.layers import DropPath
from torch import nn

from tests.helpers import assert_same, ctrl_c, rows
from transept.cli.main import main
from transept.data.segmentation.transforms import SegmentationAugmentation, SegmentationPreprocessing
from transept.errors import TranseptError
from transept.models.registry import find_model
from transept.tasks.segment import Segmenter, create_segmenter
from transept.training.jobs.segmentation import SegmentJob
from transept.training.loop.interruption import RunInterruptedError
from transept.training.loop.module import TaskModule
from transept.training.loop.run import train
from transept.training.options.model import ModelOptions
from transept.training.options.optimizer import OptimizerOptions
from transept.training.options.pages import read_recipe, recipe_names
from transept.training.options.parsing import parse_recipe
from transept.training.options.recipe import Recipe
from transept.training.options.schedule import ScheduleOptions
from transept.training.options.segment import SegmentOptions
from transept.weights.load import create_model, find_checkpoint


class Column(NamedTuple):
    """What the runs of a repository share (segmentation.md, section 6)."""

    lr: float
    weight_decay: float
    exempt: list[str]
    power: float
    warmup: int
    multiple_of: int


_TABLES = ["norm", "relative_position_bias_table"]
COLUMNS = {
    "cat": Column(6e-5, 0.05, _TABLES, 1.0, 1500, 1),
    "cf-fpn": Column(1e-4, 1e-4, [], 0.9, 0, 32),
    "cf-uper": Column(6e-5, 0.01, ["norm"], 1.0, 1500, 32),
    "xcit": Column(6e-5, 0.01, [*_TABLES, "absolute_pos_embed"], 1.0, 1500, 1),
}
WIDE = dict(group_sizes=[14, 14, 7, 7], intervals=[16, 8, 2, 1], grouping="legacy")
NARROW = dict(group_sizes=[7, 7, 7, 7], intervals=[8, 4, 2, 1], grouping="legacy")
OPTIONS: dict[str, dict[str, Any]] = {
    "-": {},
    "wide": WIDE,
    "narrow": NARROW,
    "1.0": {"eta": 1.0},
    "1e-5": {"eta": 1e-5},
}

# Sections 5, 7 and 8: drop path, options, mIoU on one scale and on several.
TABLE = """
semantic_fpn_cat_small_80k           cat      0.2   -       40.6  42.1
semantic_fpn_cat_base_80k            cat      0.2   -       42.2  43.6
semantic_fpn_cat_small_160k          cat      0.2   -       42.2  42.8
semantic_fpn_cat_base_160k           cat      0.2   -       43.2  44.9
semantic_fpn_crossformer_small_80k   cf-fpn   0.2   wide    46.4  -
semantic_fpn_crossformer_base_80k    cf-fpn   0.3   wide    48.0  -
semantic_fpn_crossformer_large_80k   cf-fpn   0.5   wide    49.1  -
upernet_crossformer_small_160k       cf-uper  0.2   narrow  47.6  48.4
upernet_crossformer_base_160k        cf-uper  0.3   narrow  49.7  50.6
upernet_crossformer_large_160k       cf-uper  0.5   narrow  50.4  51.4
semantic_fpn_xcit_tiny_12_p16_80k    xcit     0     1.0     38.1  -
semantic_fpn_xcit_tiny_12_p8_80k     xcit     0     1.0     39.9  -
semantic_fpn_xcit_small_12_p16_80k   xcit     0.05  1.0     43.9  -
semantic_fpn_xcit_small_12_p8_80k    xcit     0.05  1.0     44.2  -
semantic_fpn_xcit_small_24_p16_80k   xcit     0.1   1e-5    44.6  -
semantic_fpn_xcit_small_24_p8_80k    xcit     0.1   1e-5    47.1  -
semantic_fpn_xcit_medium_24_p16_80k  xcit     0.2   1e-5    45.9  -
semantic_fpn_xcit_medium_24_p8_80k   xcit     0.2   1e-5    46.9  -
upernet_xcit_tiny_12_p16_160k        xcit     0     1.0     41.5  -
upernet_xcit_tiny_12_p8_160k         xcit     0     1.0     43.5  -
upernet_xcit_small_12_p16_160k       xcit     0.05  1.0     45.9  -
upernet_xcit_small_12_p8_160k        xcit     0.05  1.0     46.6  -
upernet_xcit_small_24_p16_160k       xcit     0.1   1e-5    46.9  -
upernet_xcit_small_24_p8_160k        xcit     0.1   1e-5    48.1  -
upernet_xcit_medium_24_p16_160k      xcit     0.15  1e-5    47.6  -
upernet_xcit_medium_24_p8_160k       xcit     0.15  1e-5    48.4  -
"""
ROWS = {name: rest for name, *rest in map(str.split, TABLE.strip().splitlines())}
# One of each repository, method and patch size; the others differ in numbers only.
REPRESENTATIVES = ["semantic_fpn_cat_small_80k", "upernet_crossformer_base_160k", "semantic_fpn_xcit_tiny_12_p8_80k"]

TINY = {
    "cat": "--model.options.depths [1,1,1,1] --model.options.embed_dim 32 --model.options.num_heads [1,2,4,8]",
    "crossformer": "--model.options.depths [1,1,2,1] --model.options.embed_dim 32 --model.options.num_heads [1,2,4,8]",
    "xcit": "--model.options.depth 3 --model.options.embed_dim 32 --model.options.num_heads 2",
}
SMALL = (
    "--workers 0 --batch_size 4 --model.weights null --segment.width 16 "
    "--segment.augmentation.crop [48,64] --segment.preprocessing.scale [64,48] "
    "--schedule.iterations 4 --schedule.evaluate_every 2"
)


@pytest.fixture(scope="module")
def ade20k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training and two validation pictures in ADE20K's layout, with its 150 classes and its unlabelled 0."""
    root = tmp_path_factory.mktemp("data") / "ADEChallengeData2016"
    lines = ["Idx,Ratio,Train,Val,Stuff,Name", *(f"{i},0.01,9,9,0,thing {i};object {i}" for i in range(1, 151))]
    random = np.random.default_rng(0)
    for half, count in (("training", 6), ("validation", 2)):
        for folder in ("images", "annotations"):
            (root / folder / half).mkdir(parents=True)
        for i in range(count):
            values = random.integers(0, 151, (5, 7), dtype=np.uint8).repeat(12, 0).repeat(12, 1)  # 60 high, 84 wide
            noise = random.integers(0, 40, (*values.shape, 3), dtype=np.uint8)
            Image.fromarray(values).save(root / "annotations" / half / f"{i}.png")
            Image.fromarray(values[..., None] + noise).save(root / "images" / half / f"{i}.png")
    (root / "objectInfo150.csv").write_text("\n".join(lines) + "\n")
    return root


def page(name: str, options: str = "") -> Recipe:
    return parse_recipe(read_recipe(f"segment/{name}"), options.split())


def tiny(name: str, data: Path, options: str = "") -> Recipe:
    recipe = page(name)
    family = recipe.model.name.partition("_")[0]
    warmup = "--schedule.warmup_iterations 2" if recipe.schedule.warmup_iterations else ""
    return page(name, f"--data {data} {TINY[family]} {SMALL} {warmup} {options}")


def poly(step: int, total: int, column: Column) -> float:
    """The learning rate of a step, counted from 0 (segmentation.md, section 6)."""
    rate = column.lr * (1 - step / total) ** column.power
    return rate if step >= column.warmup else rate * (1 - (1 - step / column.warmup) * (1 - 1e-6))


def test_there_is_a_page_for_every_published_row():
    assert {f"segment/{name}" for name in ROWS} == {name for name in recipe_names() if name.startswith("segment/")}


@pytest.mark.parametrize("name", ROWS)
def test_every_number_is_the_published_one(name: str):
    column, drop_path, options, _, _ = ROWS[name]
    shared = COLUMNS[column]
    method, model, thousands = re.fullmatch(r"(semantic_fpn|upernet)_(\w+)_(\d+)k", name).groups()  # type: ignore
    iterations = 1000 * int(thousands)
    weights = f"{model}_384.fb_dist_in1k" if column == "xcit" else f"{model}.in1k"
    assert page(name) == Recipe(
        task="segment",
        batch_size=16,
        workers=8,
        sync_batchnorm=True,
        precision="32-true",
        model=ModelOptions(name=model, weights=weights, drop_path_rate=float(drop_path), options=OPTIONS[options]),
        segment=SegmentOptions(
            method=method,
            preprocessing=SegmentationPreprocessing(scale=(2048, 512), multiple_of=shared.multiple_of),
            augmentation=SegmentationAugmentation(
                crop=(512, 512), resize_ratio=(0.5, 2.0), category_max_ratio=0.75, flip=0.5, photometric=0.5
            ),
        ),
        reduce_zero_label=True,
        optimizer=OptimizerOptions(
            name="adamw",
            lr=shared.lr,
            betas=(0.9, 0.999),
            weight_decay=shared.weight_decay,
            no_weight_decay=shared.exempt,
            clip_grad=None,
        ),
        schedule=ScheduleOptions(
            iterations=iterations,
            evaluate_every=iterations // 10,  # 8K of 80K, 16K of 160K
            decay="poly",
            power=shared.power,
            min_lr=0.0,
            warmup_iterations=shared.warmup,
            warmup_ratio=1e-6,
        ),
    )


@pytest.mark.parametrize("name", ROWS)
def test_the_head_of_a_page(name: str):
    _, _, _, miou, several = ROWS[name]
    text = (files("transept") / "recipes" / "segment" / f"{name}.yaml").read_text()
    head = re.sub(r"\n#? *", " ", text.partition("task:")[0])
    assert re.search(rf"Score +mIoU {miou}; .*figures, not re-run by us", head)
    assert "several scales were not published" in head if several == "-" else f" {several}" in head
    assert ("4 GPUs x 4" if ROWS[name][0] == "cf-fpn" else "8 GPUs x 2") in head
    assert "# transept train segment/" + name + " --data ADE20K\n" in text
    model = page(name).model
    assert model.weights is not None
    published = find_checkpoint(model.weights)
    assert published.task == "classification"
    assert published.registered.startswith(model.name)
    assert ("share page" in head) == (published.download == "share page")


def test_options_agree_with_the_models_own():
    for name, (column, _, options, _, _) in ROWS.items():
        recipe = page(name)
        if column.startswith("cf"):
            family = find_model(recipe.model.name)[1]
            expected = family.dense_options[recipe.segment.method, recipe.model.name]
            assert recipe.model.options == {key: list(v) if isinstance(v, tuple) else v for key, v in expected.items()}
        if column == "xcit":
            model, family = find_model(recipe.model.name)
            assert family.variants[model].eta == float(options)  # type: ignore


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_drop_path_is_linear_but_in_xcit(name: str):
    recipe = tiny(name, Path("-"), "--model.drop_path_rate 0.3")
    segmenter = create_segmenter(
        recipe.segment.method, backbone=recipe.model.name, width=16, drop_path_rate=0.3, **recipe.model.options
    )
    rates = [module.drop_prob for module in segmenter.modules() if isinstance(module, DropPath)]
    assert max(rates) == pytest.approx(0.3)
    assert (set(rates) == {0.3}) == (ROWS[name][0] == "xcit")


@pytest.mark.parametrize("name", ["semantic_fpn_cat_base_160k", "semantic_fpn_crossformer_small_80k",
                                  "upernet_crossformer_large_160k", "semantic_fpn_xcit_medium_24_p8_80k"])  # fmt: skip
def test_learning_rate_and_groups_of_weight_decay(name: str, ade20k: Path):
    column = COLUMNS[ROWS[name][0]]
    total = page(name).schedule.iterations or 0
    length = f"--schedule.iterations {total} --schedule.evaluate_every {total} --schedule.warmup_iterations "
    recipe = tiny(name, ade20k, length + str(column.warmup))
    job = SegmentJob(recipe)
    task = job.build(load=False)
    configured: Any = TaskModule(task, job, recipe, steps_per_epoch=total).configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert isinstance(optimizer, torch.optim.AdamW)
    for step in (0, 1, 749, 1499, 1500, total // 3, total - 1, total):
        schedule.last_epoch = step - 1  # as if so many steps were taken
        optimizer.step()
        schedule.step()
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(poly(step, total, column), rel=1e-9, abs=1e-18), step
            assert group["betas"] == (0.9, 0.999)

    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decays) == sum(len(group["params"]) for group in optimizer.param_groups)
    exempt = set()
    for parameter, values in task.named_parameters():
        assert decays[id(values)] in (0.0, column.weight_decay)
        if decays[id(values)] == 0:
            exempt.add(parameter)
    rule = "|".join(column.exempt)
    assert exempt == {n for n, _ in task.named_parameters() if rule and re.search(rule, n)}
    norms = [f"{n}.weight" for n, m in task.named_modules() if isinstance(m, nn.LayerNorm)]
    named_so = [n for n in norms if "norm" in n]
    assert named_so
    assert exempt.issuperset(named_so) == bool(rule)
    # Batch norms of the heads are called "bn", and biases "bias": both decay.
    assert not [n for n in exempt if ".bn." in n or (n.endswith("bias") and "norm" not in n)]
    assert any(".bn." in n for n, _ in task.named_parameters())


def check_run(name: str, data: Path, folder: Path) -> None:
    recipe = tiny(name, data)
    result = train(recipe, folder, progress=False)
    table = rows(folder)
    assert [row["step"] for row in table] == ["2", "4"]
    column = COLUMNS[ROWS[name][0]]
    column = column._replace(warmup=min(column.warmup, 2))
    assert [float(row["lr"]) for row in table] == pytest.approx([poly(2, 4, column), 0.0], rel=1e-5)
    assert all(
        0.5 < float(row["train_loss"]) < 10 for row in table
    )  # chance is ln 150 = 5, times 1.4 with the auxiliary loss; padding counts 0
    assert 0 <= result.metrics["miou"] <= 1
    segmenter = Segmenter.load(folder / "best.safetensors")
    assert segmenter.method == recipe.segment.method
    assert segmenter.classes[149] == "thing 150"
    assert segmenter.preprocessing.multiple_of == column.multiple_of
    assert parse_recipe(read_recipe(str(folder / "config.yaml")), []) == recipe


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_a_page_trains(name: str, ade20k: Path, tmp_path: Path):
    check_run(name, ade20k, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ROWS if name not in REPRESENTATIVES])
def test_the_other_pages_train(name: str, ade20k: Path, tmp_path: Path):
    check_run(name, ade20k, tmp_path / "run")


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_the_starting_weights_are_a_classifiers(name: str, ade20k: Path, tmp_path: Path):
    recipe = tiny(name, ade20k, f"--model.weights {tmp_path / 'weights.pth'}")
    options = dict(recipe.model.options) | {"img_size": 224}
    for key in ("group_sizes", "intervals", "grouping"):  # the classifier's own differ
        options.pop(key, None)
    classifier = create_model(recipe.model.name, **options)
    torch.save({"model": classifier.state_dict()}, tmp_path / "weights.pth")
    segmenter = SegmentJob(recipe).build(load=True)
    assert isinstance(segmenter, Segmenter)
    theirs = classifier.state_dict()
    ours = {k: v for k, v in segmenter.backbone.state_dict().items() if k in theirs and v.shape == theirs[k].shape}
    blocks = [k for k in ours if re.search(r"(qkv|mlp\.fc1)\.weight$", k)]
    assert len(blocks) >= 6
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items() if not key.endswith(("_index", "biases")))


def test_weights_behind_a_share_page_say_where_to_save_them(
    ade20k: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    recipe = page("semantic_fpn_crossformer_small_80k", f"--data {ade20k}")
    with pytest.raises(TranseptError, match=r"crossformer_small.in1k lies behind a share page .* save it as '.*pth'"):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_an_interrupted_segmenter_goes_on_exactly(ade20k: Path, tmp_path: Path):
    """With its loss, its place in the schedule and its groups; also when a batch is computed in parts."""
    longer = "--schedule.iterations 6 --schedule.evaluate_every 3 --schedule.warmup_iterations 4 --accumulate 2"
    recipe = tiny("upernet_xcit_small_12_p16_160k", ade20k, longer)
    train(recipe, tmp_path / "whole", progress=False)
    # The ninth part is the first of the fifth batch, whose second part must still be computed.
    with ctrl_c(Segmenter, 9), pytest.raises(RunInterruptedError, match="stopped before step 6"):
        train(recipe, tmp_path / "run", progress=False)
    column = COLUMNS["xcit"]._replace(warmup=4)
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 5
    groups = state["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert [group["lr"] for group in groups] == pytest.approx([poly(5, 6, column)] * 2)
    assert len(rows(tmp_path / "run")) == 1
    train(recipe, tmp_path / "run", resume=True, progress=False)
    assert_same(tmp_path / "run", tmp_path / "whole")
    assert [float(row["lr"]) for row in rows(tmp_path / "run")] == pytest.approx([poly(3, 6, column), 0.0], rel=1e-5)
    last = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [(len(g["params"]), g["weight_decay"]) for g in last] == [
        (len(g["params"]), g["weight_decay"]) for g in groups
    ]


def test_a_batch_in_parts_is_the_same_batch(tmp_path: Path):
    """CaiT has no batch norm. 1,437 pictures fill 22 parts of 64, of which the last two make no batch of 256.

    How runs in parts go on after an interruption, the segmenter above shows.
    """
    base = (
        "--model.img_size 16 --model.options.depth 1 --model.options.embed_dim 32 --model.options.num_heads 2 "
        "--model.options.patch_size 4 --schedule.epochs 1 --schedule.warmup_epochs 0 --batch_size 256 "
        "--optimizer.name sgd --optimizer.lr 0.1 --precision 32-true"
    )
    digits = read_recipe("digits") | {"model": {"name": "cait_xxs24_224"}}
    whole, parts = (parse_recipe(digits, [*base.split(), "--accumulate", n]) for n in ("1", "4"))
    for name, recipe in (("whole", whole), ("parts", parts)):
        train(recipe, tmp_path / name, progress=False)
        assert [row["step"] for row in rows(tmp_path / name)] == ["5"]
    ours, theirs = (load_file(tmp_path / name / "last.safetensors") for name in ("parts", "whole"))
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-4, atol=1e-6)


def test_too_few_pictures_for_a_batch_in_parts(ade20k: Path, tmp_path: Path):
    options = "--batch_size 12 --accumulate 4 --schedule.iterations null --schedule.evaluate_every null "
    options += "--schedule.warmup_iterations 0 --schedule.epochs 5"
    recipe = tiny("semantic_fpn_xcit_tiny_12_p8_80k", ade20k, options)
    with pytest.raises(TranseptError, match="fills 2 of the accumulate=4 parts of a batch; lower accumulate"):
        train(recipe, tmp_path / "run", progress=False)


def test_one_picture_at_a_time_is_too_few_for_upernet(ade20k: Path, tmp_path: Path):
    recipe = tiny("upernet_xcit_small_12_p16_160k", ade20k, "--accumulate 4")
    with pytest.raises(TranseptError, match="batch_size=4 with accumulate=4 computes one picture at a time"):
        train(recipe, tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--accumulate 3", "accumulate=3 does not divide batch_size=16"),
        ("--accumulate 0", "accumulate=0 must be greater than 0"),
        ("--optimizer.betas [0.9,1.0]", r"^optimizer.betas=\[0.9, 1\] is not in \[0, 1\)"),
        ("--segment.classifier_std 0", r"segment.classifier_std=0 must be greater than 0"),
        ("--schedule.warmup_ratio 2", r"schedule.warmup_ratio=2 is not in \[0, 1\]"),
    ],
)
def test_wrong_options(options: str, message: str):
    with pytest.raises(TranseptError, match=message):
        page("semantic_fpn_cat_small_80k", options)


def test_the_first_weights_of_the_classifier():
    options = "--model.options.depths [1,1,1,1] --segment.width 32"
    heads = []
    for std in (0.01, 0.1):
        torch.manual_seed(0)
        recipe = parse_recipe(read_recipe("quick-seg"), f"{options} --segment.classifier_std {std}".split())
        heads.append(SegmentJob(recipe).build(load=False).get_submodule("decode_head"))
    published, wider = (head.state_dict() for head in heads)
    assert published["conv_seg.weight"].std().item() == pytest.approx(0.01, rel=0.2)
    torch.testing.assert_close(wider.pop("conv_seg.weight"), 10 * published.pop("conv_seg.weight"))
    torch.testing.assert_close(wider, published, rtol=0, atol=0)


def test_betas_of_an_optimiser_without():
    with pytest.raises(TranseptError, match=r"optimizer.betas=\[0.9, 0.999\], but 'sgd' has none; give null"):
        page("semantic_fpn_xcit_tiny_12_p8_80k", "--optimizer.name sgd")


def test_the_command_line(ade20k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    name = "semantic_fpn_xcit_tiny_12_p8_80k"
    words = f"--data {ade20k} {TINY['xcit']} {SMALL} --schedule.warmup_iterations 0".split()
    assert main(["train", f"segment/{name}", *words]) == 0
    assert (tmp_path / "runs" / name / "best.safetensors").is_file()
    capsys.readouterr()
    assert main(["train", "segment/upernet_cat_small_160k"]) == 2
    assert "no recipe is called 'segment/upernet_cat_small_160k'; did you mean 'segment/" in capsys.readouterr().err
    assert main(["train"]) == 2
    known = capsys.readouterr().err
    assert "digits, quick, quick-det, quick-dino, quick-inst, quick-seg, " in known
    assert ", segment/... (26 published ones)" in known
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert all(f"segment/{name}" in re.sub(r"\s+", "", capsys.readouterr().out) for name in REPRESENTATIVES[:1])


def test_as_many_scenes_as_are_asked_for():
    splits = SegmentJob(parse_recipe(read_recipe("quick-seg"), ["--scenes", "[6,3]"])).splits
    assert (len(splits.train), len(splits.val)) == (6, 3)

"""Recipes of published classifiers: every number is the published one, every page trains, and runs resume exactly."""

import math
import re
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from tests.helpers import assert_same, ctrl_c, rows
from transept.cli.main import main
from transept.data.classification.transforms import Augmentation, Preprocessing
from transept.errors import TranseptError, TranseptWarning, UsageError
from transept.tasks.classify import Classifier
from transept.tasks.labelling import SingleLabel
from transept.training.jobs.classification import ClassifyJob
from transept.training.jobs.distillation import Teacher, distillation_loss
from transept.training.loop.freezing import freeze
from transept.training.loop.interruption import RunInterruptedError
from transept.training.loop.module import TaskModule, make_optimizer
from transept.training.loop.run import train
from transept.training.options.classify import ClassifyOptions, DistillOptions, MixOptions
from transept.training.options.model import ModelOptions
from transept.training.options.optimizer import EMAOptions, OptimizerOptions
from transept.training.options.pages import read_recipe, recipe_names
from transept.training.options.parsing import parse_recipe
from transept.training.options.recipe import Recipe
from transept.training.options.schedule import ScheduleOptions
from transept.weights.load import create_model, find_checkpoint

DOCS = Path(__file__).parents[3] / "docs" / "recipes.md"


class Column(NamedTuple):
    """What the runs of a family share (cat.md 5, cabvit.md 7, crossformer.md 7; xcit, cait, crossvit.md 6)."""

    epochs: int
    warmup: int
    batch: int
    lr: float
    warmup_lr: float
    min_lr: float
    weight_decay: float
    clip: float | None
    crop: float
    precision: str
    repeats: int
    ema: EMAOptions
    from_start: bool
    by_epoch: bool
    scale_bounds: bool


_NO_EMA, _DEIT_EMA = EMAOptions(), EMAOptions(decay=0.99996, evaluate=False)
_SWIN = Column(
    300, 20, 1024, 1e-3, 1e-6, 1e-5, 0.05, 5.0, 0.875, "16-mixed", 1, _NO_EMA, True, False, True
)  # 5e-4, 5e-7 and 5e-6 for each 512 pictures
_CROSSVIT = Column(
    300, 30, 4096, 4e-3, 1e-6, 1e-5, 0.05, None, 0.875, "16-mixed", 1, _NO_EMA, True, True, False
)  # 5e-4 for each 512 pictures
COLUMNS = {
    "cat": _SWIN,
    "crossformer": _SWIN,
    "cabvit": Column(
        300, 20, 1024, 2e-3, 0.0, 1e-6, 0.05, None, 0.875, "32-true", 1, EMAOptions(decay=0.9999), False, False, False
    ),
    "deit": Column(
        400, 5, 1024, 1e-3, 1e-6, 1e-5, 0.05, None, 1.0, "16-mixed", 3, _DEIT_EMA, True, True, False
    ),  # 5e-4 for each 512 pictures
    "crossvit": _CROSSVIT,
    "crossvit_x3": _CROSSVIT._replace(repeats=3),
    "tune": Column(30, 5, 512, 5e-6, 1e-6, 5e-6, 1e-8, None, 1.0, "16-mixed", 3, _DEIT_EMA, True, True, False),
}  # fmt: skip

# Drop path and top-1 in percent.
TABLE = """
cat_tiny                     cat          0.1   80.3
cat_small                    cat          0.2   81.8
cat_base                     cat          0.3   82.8
cabvit_h_l1                  cabvit       0.0   80.3
cabvit_h_l2                  cabvit       0.1   83.1
cabvit_h_l3                  cabvit       0.2   84.2
cabvit_h_l4                  cabvit       0.4   84.9
crossformer_tiny             crossformer  0.1   81.5
crossformer_small            crossformer  0.2   82.5
crossformer_base             crossformer  0.3   83.4
crossformer_large            crossformer  0.5   84.0
crossformer_pp_small         crossformer  0.2   83.2
crossformer_pp_base          crossformer  0.3   84.2
crossformer_pp_large         crossformer  0.5   84.7
crossformer_pp_huge          crossformer  0.5   84.9
cait_xxs24_224               deit         0.05  78.4
cait_xxs36_224               deit         0.1   79.7
cait_xs24_224                deit         0.05  -
cait_s24_224                 deit         0.1   83.5
cait_s36_224                 deit         0.2   -
cait_m36_224                 deit         0.3   -
cait_m48_224                 deit         0.3   -
cait_xxs24_384               tune         0.05  80.9
cait_xxs36_384               tune         0.1   82.2
cait_xs24_384                tune         0.05  84.1
cait_s24_384                 tune         0.1   85.1
cait_s36_384                 tune         0.2   85.4
cait_m36_384                 tune         0.3   86.1
cait_m48_448                 tune         0.3   86.5
crossvit_tiny_240            crossvit     0.1   73.4
crossvit_small_240           crossvit     0.1   81.0
crossvit_base_240            crossvit     0.1   82.2
crossvit_9_240               crossvit     0.1   73.9
crossvit_15_240              crossvit     0.1   81.5
crossvit_18_240              crossvit_x3  0.1   82.5
crossvit_9_dagger_240        crossvit     0.1   77.1
crossvit_15_dagger_240       crossvit     0.1   82.3
crossvit_18_dagger_240       crossvit_x3  0.1   82.8
"""
# XCiT: drop path, then top-1 at 224, at 224 distilled, and at 384 distilled.
XCIT = """
nano_12_p16    0.0   69.9 72.2 75.4
tiny_12_p16    0.0   77.1 78.6 80.9
tiny_24_p16    0.05  79.4 80.4 82.6
small_12_p16   0.05  82.0 83.3 84.7
small_24_p16   0.1   82.6 83.9 85.1
medium_24_p16  0.15  82.7 84.3 85.4
large_24_p16   0.25  82.9 84.9 85.8
nano_12_p8     0.0   73.8 76.3 77.8
tiny_12_p8     0.0   79.7 81.2 82.4
tiny_24_p8     0.05  81.9 82.6 83.7
small_12_p8    0.05  83.4 84.2 85.1
small_24_p8    0.1   83.9 84.9 85.6
medium_24_p8   0.15  83.7 85.1 85.8
large_24_p8    0.25  84.4 85.4 86.0
"""
ROWS = {name: rest for name, *rest in map(str.split, TABLE.strip().splitlines())}
for _size, _drop_path, *_scores in map(str.split, XCIT.strip().splitlines()):
    for _run, _column, _score in zip(("224", "224_dist", "384_dist"), ("deit", "deit", "tune"), _scores, strict=True):
        ROWS[f"xcit_{_size}_{_run}"] = [_column, _drop_path, _score]
# One of each family and kind of run; the others differ in numbers only.
REPRESENTATIVES = ["cat_tiny", "cabvit_h_l2", "crossformer_pp_small", "xcit_tiny_12_p16_224", "cait_xs24_384",
                   "crossvit_tiny_240"]  # fmt: skip

TINY = {
    "cat": "--model.options.depths [1,1,1,1] --model.options.embed_dim 32 --model.options.num_heads [1,2,4,8] "
    "--model.options.patch_size 4",
    "cabvit": "--model.options.depths [1,1,2,1] --model.options.embed_dims [16,16,32,32] "
    "--model.options.num_heads [1,1]",
    "crossformer": "--model.options.depths [1,1,2,1] --model.options.embed_dim 32 --model.options.num_heads [1,2,4,8]",
    "xcit": "--model.options.depth 2 --model.options.embed_dim 32 --model.options.num_heads 2",
    "cait": "--model.options.depth 2 --model.options.embed_dim 32 --model.options.num_heads 2",
    "crossvit": "--model.options.depth 1 --model.options.embed_dims [16,32] --model.options.num_heads 2",
}
SMALL = (
    "--workers 0 --batch_size 4 --optimizer.lr_batch 4 --precision 32-true --schedule.epochs 2 "
    "--schedule.warmup_epochs 1 --model.img_size 32 --model.weights null"
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of three training pictures and one for validation."""
    root = tmp_path_factory.mktemp("data") / "pictures"
    random = np.random.default_rng(0)
    for half, count in (("train", 3), ("val", 1)):
        for i, name in enumerate(("blue", "green", "red")):
            (root / half / name).mkdir(parents=True)
            for j in range(count):
                values = random.integers(0, 120, (40, 48, 3), dtype=np.uint8)
                values[..., 2 - i] += 100
                Image.fromarray(values).save(root / half / name / f"{j}.png")
    return root


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small network of timm's, for three classes."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), path)
    return path


def page(name: str, options: str = "") -> Recipe:
    return parse_recipe(read_recipe(f"classify/{name}"), options.split())


def tiny(name: str, data: Path, teacher: Path, options: str = "") -> Recipe:
    taught = (
        f"--classify.distill.teacher test_resnet --classify.distill.weights {teacher}"
        if page(name).classify.distill.teacher
        else ""
    )
    return page(name, f"--data {data} {TINY[name.partition('_')[0]]} {SMALL} {taught} {options}")


def rate(column: Column, step: float, total: int, warmup: int) -> float:
    """The learning rate after so many of all steps (or epochs)."""
    if step < warmup:
        return column.warmup_lr + step * (column.lr - column.warmup_lr) / warmup
    late = 0 if column.from_start else warmup
    return column.min_lr + (column.lr - column.min_lr) / 2 * (1 + math.cos(math.pi * (step - late) / (total - late)))


def test_there_is_a_page_for_every_published_row():
    pages = {name for name in recipe_names() if name.startswith("classify/")}
    assert {f"classify/{name}" for name in (*ROWS, *BIXT)} == pages
    assert len(ROWS) == 80


# Epochs, warm-up, batch, learning rate, drop path, start, top-1 (bixt.md 5 and 7).
BIXT = {
    "bixt_ti_l64_p16": (800, 5, 1024, 2.5e-3, 0.0, None, "80.1"),
    "bixt_ti_l64_p16_ft384": (30, 0, 512, 2.5e-5, 0.05, "bixt_ti_l64_p16.in1k", "81.85"),
}


@pytest.mark.parametrize("name", BIXT)
def test_bixt_as_published(name: str):
    epochs, warmup, batch, lr, drop_path, weights, top1 = BIXT[name]
    assert page(name) == Recipe(
        task="classify",
        batch_size=batch,
        workers=8,
        precision="16-mixed",
        model=ModelOptions(name=name, weights=weights, drop_path_rate=drop_path),
        classify=ClassifyOptions(
            loss="binary",
            label_smoothing=0.0,
            crop_pct=0.875,
            augmentation=Augmentation(
                crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), flip=0.5, three_augment=True, color_jitter=0.3
            ),
            mix=MixOptions(mixup=0.8, cutmix=1.0, probability=1.0, switch=0.5, mode="batch"),
        ),
        optimizer=OptimizerOptions(
            name="lambc", lr=lr, lr_batch=batch, betas=(0.9, 0.999), weight_decay=0.05, clip_grad=None
        ),
        schedule=ScheduleOptions(
            epochs=epochs,
            warmup_epochs=warmup,
            warmup_lr=1e-6,
            min_lr=1e-5,
            decay="cosine",
            cosine_from_start=True,
        ),
    )
    text = (files("transept") / "recipes" / "classify" / f"{name}.yaml").read_text()
    assert re.search(rf"Score +top-1 {top1} .*figure, not re-run by us", text)
    assert f"# transept train classify/{name} --data FOLDER\n" in text
    assert re.search(rf"\| `{name}` \|.*\| {top1} \|", DOCS.read_text(encoding="utf-8"))


def test_bixt_trains(pictures: Path, tmp_path: Path):
    """Its optimiser scales each step by itself, and keeps the norm of the gradient to 1 before."""
    options = "--model.options.depth 2 --model.options.embed_dim 48 --model.options.num_latents 5"
    recipe = page("bixt_ti_l64_p16", f"--data {pictures} {options} {SMALL}")
    optimizer: Any = make_optimizer(recipe.optimizer, nn.Linear(2, 2))
    assert (optimizer.defaults["max_grad_norm"], optimizer.defaults["trust_clip"]) == (1.0, True)
    train(recipe, tmp_path / "run", progress=False)
    assert all(0.2 < float(row["train_loss"]) < 2 for row in rows(tmp_path / "run"))  # chance is ln 2 = 0.7


def test_binary_loss_by_hand(pictures: Path):
    """The mean over pictures and classes, of shares as mixing leaves them, or of smoothed labels."""
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    p = logits.sigmoid()
    shares = torch.tensor([[0.3, 0.7, 0.0], [0.0, 0.0, 1.0]])
    expected = -(shares * p.log() + (1 - shares) * (1 - p).log()).mean()
    loss = SingleLabel(binary=True).loss
    torch.testing.assert_close(loss(logits, shares, None, 0.1), expected)  # smoothed when it was mixed
    smooth = nn.functional.one_hot(torch.tensor([1, 2]), 3) * 0.7 + 0.1
    expected = -(smooth * p.log() + (1 - smooth) * (1 - p).log()).mean()
    torch.testing.assert_close(loss(logits, torch.tensor([1, 2]), None, 0.3), expected)
    job = ClassifyJob(page("bixt_ti_l64_p16", f"--data {pictures} {SMALL}"))
    assert job.labelling.binary  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UsageError, match="loss=binary, but multi_label=true has that loss anyway"):
        ClassifyOptions(loss="binary", multi_label=True)


@pytest.mark.parametrize("name", ROWS)
def test_every_number_is_the_published_one(name: str):
    column, drop_path, _ = ROWS[name]
    c = COLUMNS[column]
    model, weights, img_size = name.removesuffix("_dist"), None, None
    if column == "tune":
        size = model.rpartition("_")[0]
        published = ROWS[f"{size}_224"][2] != "-"
        weights = f"{size}_224.fb_dist_in1k" if published else f"runs/{size}_224/last.safetensors"
    elif column == "deit" and ROWS[name][2] == "-":
        img_size = 224
        model = model.replace("224", "448" if "m48" in model else "384")
    taught = "dist" in name or name.startswith("cait")
    assert page(name) == Recipe(
        task="classify",
        batch_size=c.batch,
        workers=8,
        precision=c.precision,  # pyright: ignore
        model=ModelOptions(name=model, img_size=img_size, weights=weights, drop_path_rate=float(drop_path)),
        classify=ClassifyOptions(
            label_smoothing=0.1,
            crop_pct=c.crop,
            augmentation=Augmentation(
                crop_scale=(0.08, 1.0),
                crop_ratio=(3 / 4, 4 / 3),
                flip=0.5,
                randaugment="rand-m9-mstd0.5-inc1",
                color_jitter=0.0,
                erasing=0.25,
                erasing_mode="pixel",
                repeats=c.repeats,
            ),
            mix=MixOptions(mixup=0.8, cutmix=1.0, probability=1.0, switch=0.5, mode="batch"),
            distill=DistillOptions(
                kind="hard", teacher="regnety_160", weights="regnety_160.fb_in1k", alpha=0.5
            ) if taught else DistillOptions(),
        ),
        optimizer=OptimizerOptions(
            name="adamw",
            lr=c.lr,
            lr_batch=c.batch,
            betas=(0.9, 0.999),
            weight_decay=c.weight_decay,
            clip_grad=c.clip,
        ),
        schedule=ScheduleOptions(
            epochs=c.epochs,
            warmup_epochs=c.warmup,
            warmup_lr=c.warmup_lr,
            min_lr=c.min_lr,
            decay="cosine",
            cosine_from_start=c.from_start,
            by_epoch=c.by_epoch,
            scale_bounds=c.scale_bounds,
        ),
        ema=c.ema,
    )  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_the_head_of_a_page(name: str):
    column, _, top1 = ROWS[name]
    text = (files("transept") / "recipes" / "classify" / f"{name}.yaml").read_text()
    head = re.sub(r"\n#? *", " ", text.partition("\ntask:")[0])
    if top1 == "-":
        assert re.search("Score +not published", head)
    else:
        assert re.search(rf"Score +top-1 {top1}\b.*figure, not re-run by us", head)
        row = rf"\| `{name}` \|.*\| {top1} \|"
        assert re.search(row, DOCS.read_text(encoding="utf-8")), row
    assert "Hardware" in head
    assert ("Those of the fine-tuning were not published" in head) == (column == "tune")
    assert ("RegNetY-160" in head) == ("\n  distill:" in text)
    assert f"# transept train classify/{name} --data FOLDER\n" in text
    weights = yaml.safe_load(text)["model"].get("weights")
    if weights and "/" not in weights:
        checkpoint = find_checkpoint(weights)
        assert checkpoint.task == "classification"
        assert checkpoint.registered == re.sub(r"_(384|448)(_dist)?$", "_224", name)
    elif weights:
        assert Path(weights).parent.name in ROWS  # the run folder that `transept train` makes


def check_run(name: str, data: Path, teacher: Path, folder: Path) -> None:
    recipe = tiny(name, data, teacher)
    result = train(recipe, folder, progress=False)
    table = rows(folder)
    assert [row["step"] for row in table] == ["2", "4"]
    column = COLUMNS[ROWS[name][0]]
    if column.by_epoch:  # the rate of the epoch that follows, which is that of the one just finished
        expected = [rate(column, epoch, 2, 1) for epoch in range(2)]
    else:
        expected = [rate(column, step, 4, 2) for step in (2, 4)]
    assert [float(row["lr"]) for row in table] == pytest.approx(expected, rel=1e-4)
    assert all(0.2 < float(row["train_loss"]) < 5 for row in table)  # chance is ln 3 = 1.1
    assert 0 <= result.metrics["top1"] <= 1
    assert Classifier.load(folder / "best.safetensors").preprocessing.crop_pct == column.crop
    assert (folder / "ema.safetensors").exists() == (column.ema == _DEIT_EMA)
    assert parse_recipe(read_recipe(str(folder / "config.yaml")), []) == recipe


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_a_page_trains(name: str, pictures: Path, teacher: Path, tmp_path: Path):
    check_run(name, pictures, teacher, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ROWS if name not in REPRESENTATIVES])
def test_the_other_pages_train(name: str, pictures: Path, teacher: Path, tmp_path: Path):
    check_run(name, pictures, teacher, tmp_path / "run")


def test_an_interrupted_run_goes_on_exactly(pictures: Path, teacher: Path, tmp_path: Path):
    """With mixing, repeated augmentation, RandAugment, a teacher, an average that is saved, and layer decay."""
    options = "--ema.decay 0.7 --ema.evaluate true --optimizer.layer_decay 0.8 --accumulate 2"
    recipe = tiny("xcit_tiny_12_p16_224_dist", pictures, teacher, options)
    train(recipe, tmp_path / "whole", progress=False)
    # The fifth part is the first of the third batch, whose second part must still be computed.
    with ctrl_c(Classifier, 5), pytest.raises(RunInterruptedError, match="stopped before step 4"):
        train(recipe, tmp_path / "run", progress=False)
    train(recipe, tmp_path / "run", resume=True, progress=False)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_the_average_is_the_formulas(pictures: Path, teacher: Path, tmp_path: Path):
    steps: list[dict[str, Tensor]] = []

    def look(module: nn.Module, inputs: Any) -> None:
        if isinstance(module, Classifier) and module.training:
            steps.append({name: value.clone() for name, value in module.model.state_dict().items()})

    hook = register_module_forward_pre_hook(look)
    options = "--schedule.by_epoch false --schedule.epochs 1 --schedule.warmup_epochs 0 --ema.decay 0.6"
    recipe = tiny("xcit_tiny_12_p16_224", pictures, teacher, options)
    train(recipe, tmp_path / "beside", progress=False)
    hook.remove()
    last = load_file(tmp_path / "beside" / "last.safetensors")
    assert len(steps) == 2
    average = load_file(tmp_path / "beside" / "ema.safetensors")
    for name, value in average.items():
        if value.is_floating_point():
            expected = 0.6 * (0.6 * steps[0][name] + 0.4 * steps[1][name]) + 0.4 * last[name]
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(value, last[name]) for name, value in average.items())
    # The same run, but the average is what is evaluated and saved.
    train(page_with(recipe, "ema", EMAOptions(decay=0.6)), tmp_path / "instead", progress=False)
    saved = load_file(tmp_path / "instead" / "last.safetensors")
    assert all(torch.equal(value, average[name]) for name, value in saved.items())
    assert rows(tmp_path / "instead")[0]["train_loss"] == rows(tmp_path / "beside")[0]["train_loss"]
    assert rows(tmp_path / "instead")[0]["val_loss"] != rows(tmp_path / "beside")[0]["val_loss"]


def page_with(recipe: Recipe, name: str, value: Any) -> Recipe:
    return Recipe(**{**vars(recipe), name: value})


def test_distillation_by_hand(pictures: Path, teacher: Path):
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    taught = torch.tensor([[3.0, 0.0, 1.0], [0.5, 0.5, 1.0]])
    log_p = (logits - logits.logsumexp(1, keepdim=True)).tolist()
    hard = -(log_p[0][0] + log_p[1][2]) / 2
    assert distillation_loss(logits, taught, "hard").item() == pytest.approx(hard, rel=1e-6)
    tau, soft = 3.0, 0.0
    for student, master in zip(logits.tolist(), taught.tolist(), strict=True):
        total_s, total_t = (sum(math.exp(value / tau) for value in row) for row in (student, master))
        for s, t in zip(student, master, strict=True):
            p, q = math.exp(t / tau) / total_t, math.exp(s / tau) / total_s
            soft += p * math.log(p / q)
    assert distillation_loss(logits, taught, "soft", tau).item() == pytest.approx(soft * tau**2 / 6, rel=1e-5)

    # The loss of a step: both see the same pictures, the teacher normalised for itself.
    off = "--classify.mix.mixup 0 --classify.mix.cutmix 0 "
    off += "--classify.distill.mean [0.5,0.5,0.5] --classify.distill.std [0.25,0.5,0.5]"
    recipe = tiny(
        "cait_xxs24_224",
        pictures,
        teacher,
        f"--classify.distill.kind soft --classify.distill.alpha 0.3 --classify.distill.tau 2 {off}",
    )
    job = ClassifyJob(recipe)
    task = job.build(load=False).eval()
    raw, labels = torch.rand(2, 3, 32, 32), torch.tensor([2, 0])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (task.preprocessing.mean, task.preprocessing.std))
    outputs, loss = job.step(task, (raw - mean) / std, labels)
    network = timm.create_model("test_resnet", num_classes=3).eval()
    network.load_state_dict(torch.load(teacher, weights_only=True))
    answer = network((raw - 0.5) / torch.tensor([0.25, 0.5, 0.5]).view(3, 1, 1))
    expected = 0.7 * nn.functional.cross_entropy(outputs, labels) + 0.3 * distillation_loss(outputs, answer, "soft", 2)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    assert not any("teacher" in name for name in task.state_dict())


def test_mixing_reaches_the_loss(pictures: Path, teacher: Path):
    """Mixup's soft labels, smoothed once: the loss is the cross-entropy with the mixed targets."""
    job = ClassifyJob(tiny("cat_tiny", pictures, teacher, "--classify.mix.cutmix 0"))
    task = job.build(load=False)
    seen: list[Tensor] = []
    task.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 2])
    np.random.seed(3)
    logits, loss = job.step(task, images.clone(), labels)
    # What the model saw tells the share of the first pictures.
    kept = ((seen[0] - images.flip(0)) / (images - images.flip(0)))[0].median().item()
    assert 0 < kept < 1
    smooth = nn.functional.one_hot(labels, 3) * 0.9 + 0.1 / 3
    targets = kept * smooth + (1 - kept) * smooth.flip(0)
    torch.testing.assert_close(loss, -(targets * logits.log_softmax(1)).sum(1).mean(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": "regnety_161"}, "teacher='regnety_161' is not known; did you mean 'regnety_160'"),
        ({"teacher": "test_resnet"}, "the teacher test_resnet knows 1000 classes and the data has 3; give weights"),
        ({"teacher": "regnety_160", "weights": "regnety_160.fb_in1k"}, "has not been downloaded yet and TRANSEPT_OFFL"),
        ({"teacher": "cait_xxs24_224"}, "has not been downloaded yet and TRANSEPT_OFFLINE forbids to"),
        (
            {"teacher": "resnet18.a1_in1k", "num_classes": 1000},
            "could not be downloaded .*; give a file with --classify.dis",
        ),
        ({"teacher": "test_vit", "weights": "FILE"}, r"teacher.pth' do not fit test_vit"),
    ],
)
def test_a_teacher_that_cannot_be_had(
    options: dict[str, Any], message: str, teacher: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for variable in ("TORCH_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("TRANSEPT_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    num_classes = options.pop("num_classes", 1000 if "cait" in options["teacher"] else 3)
    if options.get("weights") == "FILE":
        options["weights"] = str(teacher)
    with pytest.raises(TranseptError, match=message):
        Teacher(DistillOptions(kind="hard", **options), num_classes, Preprocessing(img_size=(32, 32)))


def test_layer_decay_is_timms(pictures: Path, teacher: Path):
    recipe = tiny("xcit_tiny_12_p16_224", pictures, teacher, "--optimizer.layer_decay 0.7 --schedule.warmup_epochs 0")
    job = ClassifyJob(recipe)
    task = job.build(load=False)
    configured: Any = TaskModule(task, job, recipe, steps_per_epoch=2).configure_optimizers()
    optimizer, names = configured["optimizer"], {id(p): name for name, p in task.model.named_parameters()}
    # Stem 0, two blocks, two class-attention blocks, head: by hand.
    place = {"blocks.0": 1, "blocks.1": 2, "cls_attn_blocks.0": 3, "cls_attn_blocks.1": 4, "norm": 4, "head": 5}
    seen = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            layer = next((i for part, i in place.items() if name.startswith(part + ".")), 0)
            assert group["lr"] == pytest.approx(1e-3 * 0.7 ** (5 - layer)), name
            exempt = parameter.ndim <= 1 or name == "cls_token"
            assert group["weight_decay"] == (0.0 if exempt else 0.05), name
            seen.add(name)
    assert seen == set(names.values())
    theirs = param_groups_layer_decay(
        task.model, 0.05, no_weight_decay_list=task.model.no_weight_decay(), layer_decay=0.7
    )
    ours = [(g["lr_scale"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups]
    assert ours == [(g["lr_scale"], g["weight_decay"], len(g["params"])) for g in theirs]


def test_frozen_stages_keep_weights_and_statistics(pictures: Path, teacher: Path, tmp_path: Path):
    recipe = tiny("cabvit_h_l1", pictures, teacher, "--model.freeze 3 --ema.decay null "
                  f"--model.weights {tmp_path / 'start.pth'}")  # fmt: skip
    start = create_model("cabvit_h_l1", num_classes=3, img_size=32, **recipe.model.options).state_dict()
    torch.save(start, tmp_path / "start.pth")
    train(recipe, tmp_path / "run", progress=False)
    end = load_file(tmp_path / "run" / "last.safetensors")
    frozen = {name for name in end if name.startswith(("patch_embed.", "layer_0.", "layer_1.", "layer_2."))}
    assert any(name.endswith("running_var") for name in frozen)
    assert all(torch.equal(end[name], start[name]) for name in frozen)
    moved = {name for name in end if not torch.equal(end[name], start[name])}
    assert {"head.weight", "norm_head.weight"} < moved
    assert any(name.startswith("layer_3.") and name.endswith("running_mean") for name in moved)


def test_freezing_by_name_and_its_errors():
    model = create_model("cat_tiny", num_classes=2)
    freeze(model, ["patch_embed", "ape", "layers.0.cpsa_blocks"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {"ape", "patch_embed.norm.bias", "layers.0.cpsa_blocks.0.attn.qkv.weight"} < frozen
    assert all(name.startswith(("ape", "patch_embed", "layers.0.cpsa_blocks")) for name in frozen)
    assert not model.patch_embed.training
    assert model.layers[0].training
    with pytest.raises(TranseptError, match="model.freeze=5, but cat_tiny has 4 stages; give 0 to 4"):
        freeze(model, 5)
    with pytest.raises(TranseptError, match="no part of cat_tiny is called 'layer.0'; did you mean 'layers.0'"):
        freeze(model, ["layer.0"])


def test_a_run_at_224_is_tuned_at_384(pictures: Path, teacher: Path, tmp_path: Path):
    """In small: positions of a 2 x 2 grid become those of 3 x 3, and everything else is taken over."""
    first = tiny("cait_xs24_224", pictures, teacher, "--schedule.epochs 1 --schedule.warmup_epochs 0")
    train(first, tmp_path / "first", progress=False)
    weights = tmp_path / "first" / "last.safetensors"
    job = ClassifyJob(tiny("cait_xs24_384", pictures, teacher, f"--model.weights {weights} --model.img_size 48"))
    ours, theirs = job.build(load=True).model.state_dict(), load_file(weights)
    grid = theirs.pop("pos_embed").reshape(1, 2, 2, 32).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(grid, (3, 3), mode="bicubic").flatten(2).mT
    torch.testing.assert_close(ours["pos_embed"], resized, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


def test_another_batch_size_is_another_recipe(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    recipe = page("cat_small", "--batch_size 256").scaled()  # linear, and so are both ends (cat.md, section 5)
    assert (recipe.optimizer.lr, recipe.schedule.min_lr, recipe.schedule.warmup_lr) == pytest.approx(
        (2.5e-4, 2.5e-6, 2.5e-7)
    )
    assert recipe.scaled() is recipe
    recipe = page("xcit_nano_12_p8_224", "--batch_size 2048").scaled()  # the ends are not scaled (xcit.md, section 6)
    assert (recipe.optimizer.lr, recipe.schedule.min_lr, recipe.schedule.warmup_lr) == pytest.approx((2e-3, 1e-5, 1e-6))
    unscaled = page("cabvit_h_l1", "--batch_size 256 --optimizer.lr_batch null").scaled()
    assert unscaled.optimizer.lr == 2e-3

    words = f"--data {pictures} {TINY['cat']} {SMALL} --optimizer.lr_batch 1024 --schedule.epochs 1 --out"
    assert main(["train", "classify/cat_tiny", *words.split(), str(tmp_path / "run")]) == 0
    errors = " ".join(capsys.readouterr().err.split())
    assert "learning rate 3.90625e-06 for batches of 4" in errors
    assert "batch_size=4, but the recipe is for 1024: the learning rate 0.001 becomes 3.90625e-06" in errors
    assert "no longer the published recipe" in errors
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["optimizer"]["lr"], config["optimizer"]["lr_batch"]) == (1e-3 / 256, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TranseptWarning)
        assert page("cat_tiny").scaled() == page("cat_tiny")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--batch_size 5", "classify.mix pairs the pictures of a batch, so batch_size / accumulate = 5 must be even"),
        ("--classify.mix.probability 2", r"^classify.mix.probability=2 is not in \[0, 1\]"),
        ("--classify.mix.mixup -1", "^classify.mix.mixup=-1 must not be negative"),
        ("--ema.decay 1", r"^ema.decay=1 is not in \(0, 1\)"),
        (
            "--classify.distill.kind none",
            "^classify.distill.teacher='regnety_160', but kind is none",
        ),
        ("--classify.distill.teacher null", "^classify.distill.kind=hard needs a teacher; give the name of a model"),
        ("--classify.distill.alpha 2", r"^classify.distill.alpha=2 is not in \[0, 1\]"),
        ("--optimizer.layer_decay 0", r"^optimizer.layer_decay=0 is not in \(0, 1\]"),
        (
            "--optimizer.layer_decay 0.5 --optimizer.no_weight_decay [norm]",
            "^optimizer.layer_decay=0.5 .*no_weight_dec",
        ),
        ("--optimizer.lr_batch 0", "optimizer.lr_batch=0 must be greater than 0"),
        ("--classify.crop_pct 0", r"^classify.crop_pct=0 is not in \[0.01, 1\]"),
        ("--classify.augmentation.randaugment rand-m9-x3", "augmentation.randaugment='rand-m9-x3'; give e.g. rand-m9"),
        ("--classify.augmentation.repeats 0", "^classify.augmentation.repeats=0 must be greater"),
        ("--schedule.decay poly", "schedule.cosine_from_start is of decay: cosine, not of poly"),
        ("--task segment", "^classify.mix is of task: classify, not of segment"),
    ],
)
def test_wrong_options(options: str, message: str):
    with pytest.raises(TranseptError, match=message):
        page("xcit_nano_12_p16_224_dist", options)


def test_the_guides_own_recipe():
    """What docs/recipes.md tells the reader to write is a recipe."""
    text = DOCS.read_text(encoding="utf-8")
    written = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    recipe = parse_recipe(written, ["--data", "FOLDER"])
    assert (recipe.model.weights, recipe.batch_size) == (written["model"]["weights"], written["batch_size"])
    assert recipe.optimizer.layer_decay == written["optimizer"]["layer_decay"]
    assert recipe.schedule.epochs == written["schedule"]["epochs"]

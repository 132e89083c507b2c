"""Pretraining runs: their schedules, their resumption, their score, folders without classes, and `eval --knn`."""

import itertools
import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file

import transept
from tests.helpers import rows
from transept.cli.main import main
from transept.data.classification.transforms import eval_transform
from transept.data.loading import TransformedSet, make_loader
from transept.errors import TranseptError, UsageError
from transept.metrics.knn import NearestNeighbours
from transept.tasks.load import load_features
from transept.tasks.pretrain import FeatureExtractor, Pretrainer
from transept.training.jobs.pretraining import PretrainJob
from transept.training.jobs.table import JOBS
from transept.training.loop.interruption import RunInterruptedError
from transept.training.loop.pretraining import MODULES, PretrainModule
from transept.training.loop.run import train
from transept.training.loop.states import read_state
from transept.training.options.pages import read_recipe, recipe_names
from transept.training.options.parsing import parse_recipe
from transept.training.options.recipe import Recipe
from transept.weights.fetch.keeping import cached
from transept.weights.load import find_checkpoint

pytest.importorskip("lightly")
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")  # lightly's

# Four steps an epoch, of eight pictures.
OPTIONS = (
    "--schedule.epochs 3 --schedule.warmup_epochs 1 --batch_size 8 --model.drop_path_rate 0.2 --optimizer.lr 1e-2 "
    "--model.options.depth 1 --model.options.embed_dim 16 --model.options.num_heads 2 --pretrain.views.local_crops 2 "
    "--pretrain.out_dim 16 --pretrain.hidden_dim 16 --pretrain.bottleneck_dim 8 --pretrain.weight_decay_end 0.4 "
    "--pretrain.teacher_temp_warmup_epochs 2 --pretrain.teacher_temp 0.07 --pretrain.momentum 0.9 "
    "--pretrain.bn_in_head false --pretrain.freeze_last_layer 1 "
    "--pretrain.views.color_jitter [0.4,0.4,0.4,0.1] --pretrain.views.blur [1,0.1,0.5] --pretrain.views.solarize 0.2"
).split()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reddish and bluish noise."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for half, count in (("train", 16), ("val", 6)):
        for number, name in enumerate(("red", "blue")):
            (root / half / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 128, (12, 14, 3), dtype=np.uint8)
                pixels[..., 2 * number] += 100
                Image.fromarray(pixels).save(root / half / name / f"{name}-{i}.png")
    return root


def recipe(data: Path, *options: str) -> Recipe:
    return parse_recipe(read_recipe("quick-dino"), [*OPTIONS, "--data", str(data), *options])


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = train(recipe(pictures), folder, progress=False)
    assert result.metrics["knn_top1"] == max(float(row["val_knn_top1"]) for row in rows(folder)) > 0.5
    return folder


class Interrupting(PretrainJob):
    """Ctrl-C, for real, while the sixth batch is read: in the second epoch of four batches."""

    def loaders(self, task: Any, *, epoch: int, batch: int) -> Any:
        loader, val = super().loaders(task, epoch=epoch, batch=batch)
        collate, read = loader.collate_fn, itertools.count(1)

        def interrupting(samples: list) -> Any:
            if next(read) == 6:
                signal.raise_signal(signal.SIGINT)
            return collate(samples)

        loader.collate_fn = interrupting
        return loader, val


def test_interrupted_in_mid_epoch_and_resumed(
    whole_run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setitem(JOBS, "pretrain", Interrupting)
        with pytest.raises(RunInterruptedError, match="stopped before step 6"):
            train(recipe(pictures), tmp_path / "run", progress=False)
    train(recipe(pictures), tmp_path / "run", resume=True, progress=False)
    assert rows(tmp_path / "run") == rows(whole_run)
    for name in ("best.safetensors", "last.safetensors"):
        ours, theirs = load_file(tmp_path / "run" / name), load_file(whole_run / name)
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), name
    ours, theirs = (read_state(folder)[0]["state_dict"] for folder in (tmp_path / "run", whole_run))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert theirs["task.criterion.center"].any()
    name = "backbone.cls_token"
    assert not torch.equal(theirs[f"task.teacher.{name}"], theirs[f"task.student.{name}"])


def test_the_schedules_are_dinos(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    decays, exempt, temperatures, momenta, prototypes = [], [], [], [], []
    update = Pretrainer.update_teacher

    class Recording(PretrainModule):
        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().optimizer_step(*args, **kwargs)
            groups = self.trainer.optimizers[0].param_groups
            decays.append(max(group["weight_decay"] for group in groups))
            exempt.append(min(group["weight_decay"] for group in groups))
            temperatures.append(self.task.teacher_temp)
            prototypes.append(self.task.student.head.last_layer.weight_v.detach().clone())

    def recording(task: Pretrainer, momentum: float) -> None:
        momenta.append(momentum)
        update(task, momentum)

    monkeypatch.setitem(MODULES, "pretrain", Recording)
    monkeypatch.setattr(Pretrainer, "update_teacher", recording)
    train(recipe(pictures, "--accumulate", "2"), tmp_path / "run", progress=False)
    cosines = [(1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]
    assert momenta == pytest.approx([1 - 0.1 * share for share in cosines])
    assert decays == pytest.approx([0.4 - 0.36 * share for share in cosines])
    assert exempt == [0] * 12
    assert temperatures == pytest.approx([0.04 + 0.03 * min(step / 8, 1) for step in range(12)])
    assert all(torch.equal(values, prototypes[0]) for values in prototypes[:4])  # the first epoch
    assert not torch.equal(prototypes[4], prototypes[3])


def test_the_loss_is_told_in_two_parts(whole_run: Path):
    for row in rows(whole_run):
        loss, entropy, divergence = (float(row[f"train_{name}"]) for name in ("loss", "teacher_entropy", "divergence"))
        assert loss == pytest.approx(entropy + divergence, rel=1e-4)
        assert 0 < entropy < math.log(16)
        assert divergence > 0


def test_a_dry_run_draws_the_crops(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = str(tmp_path / "run")
    assert main(["train", "quick-dino", *OPTIONS, "--data", str(pictures), "--out", out, "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    plan = said["plan"]
    assert (plan["pictures"], plan["part"], plan["image"], plan["steps"]) == (32, 8, [16, 16], 12)
    assert 0 < plan["learning"] < plan["parameters"] / 2  # the student without the prototypes' lengths
    assert plan["kept_bytes"] > 0
    drawn = np.asarray(Image.open(said["first_batch"]).convert("RGB")).astype(int)
    redness = drawn[..., 0] - drawn[..., 2]
    assert redness.max() > 30
    assert redness.min() < -30
    assert list(tmp_path.iterdir()) == [Path(said["first_batch"])]


@pytest.mark.slow
def test_two_processes_equal_one(pictures: Path, tmp_path: Path):
    """Without batch norm, which sees only a process' own part of a batch, and without drop path, which draws for it."""
    options = (
        "--model.name cait_xxs24_224 --model.drop_path_rate 0 --optimizer.name sgd --optimizer.lr 0.05 "
        "--model.options.init_scale 1"  # else all features are alike, and rounding chooses the neighbours
    ).split()
    for name, devices in (("one", "1"), ("two", "2")):
        train(recipe(pictures, *options, "--hardware.devices", devices), tmp_path / name, progress=False)
    ours, theirs = (read_state(tmp_path / name)[0]["state_dict"] for name in ("two", "one"))
    for key, value in theirs.items():
        assert torch.allclose(ours[key], value, atol=1e-6), key
    assert theirs["task.criterion.center"].any()
    ours, theirs = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert [row["val_knn_top1"] for row in ours] == [row["val_knn_top1"] for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        assert float(row["train_divergence"]) == pytest.approx(float(other["train_divergence"]), rel=1e-4)


@pytest.mark.slow
def test_features_become_better_than_untrained_ones(tmp_path: Path):
    """`quick-dino` on the built-in digits, a sixth of its length."""
    page = parse_recipe(read_recipe("quick-dino"), ["--schedule.epochs", "15"])
    job = PretrainJob(page)
    torch.manual_seed(page.seed)
    extractor = job.build(load=False).eval().features
    features, labels = [], []
    with torch.inference_mode():
        for half in (job.splits.train, job.splits.val):
            loader = make_loader(TransformedSet(half, eval_transform(extractor.preprocessing)), 64)
            parts = [(extractor(images), numbers) for images, numbers in loader]
            features.append(torch.cat([part for part, _ in parts]))
            labels.append(torch.cat([numbers for _, numbers in parts]))
    votes = NearestNeighbours(features[0], labels[0], 10, k=20)(features[1])
    untrained = float((votes.argmax(1) == labels[1]).float().mean())
    result = train(page, tmp_path / "run", progress=False)
    assert result.metrics["knn_top1"] > untrained + 0.05
    assert float(rows(tmp_path / "run")[-1]["train_divergence"]) > 0.1  # no collapse


def test_eval_finds_the_score_of_the_run(whole_run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["eval", str(whole_run), "--knn", "--linear", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["knn_top1"] == pytest.approx(max(float(row["val_knn_top1"]) for row in rows(whole_run)), abs=1e-5)
    assert result["linear_top1"] == 1  # red and blue
    assert (result["images"], result["training_images"], result["k"]) == (12, 32, 20)
    assert main(["eval", str(whole_run), "--knn", "--k", "1"]) == 0
    assert "k 1 " in capsys.readouterr().out


def test_eval_refuses_what_makes_no_sense(whole_run: Path, capsys: pytest.CaptureFixture[str]):
    for options, message in (
        ([], "was pretrained without classes; write its features with 'transept features', measure them with"),
        (["--k", "3"], "--k counts the neighbours of --knn; give that, too"),
        (["--knn", "--k", "0"], "--k 0 must be at least 1"),
        (["--knn", "--flip"], "--flip is for detectors and segmenters"),
    ):
        assert main(["eval", str(whole_run), *options]) in (1, 2)
        assert message in capsys.readouterr().err


def test_a_classifier_starts_from_the_teacher_and_has_features(
    whole_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    best = str(whole_run / "best.safetensors")
    options = "--schedule.epochs 1 --schedule.warmup_epochs 0 --optimizer.lr 1e-9 --model.img_size 16".split()
    same = OPTIONS[OPTIONS.index("--model.options.depth") :][:6]
    page = read_recipe("digits")
    classify = parse_recipe(page, ["--data", str(pictures), "--model.weights", best, *same, *options])
    train(classify, tmp_path / "run", progress=False)
    teacher, classifier = load_file(best), load_file(tmp_path / "run" / "last.safetensors")
    assert torch.allclose(classifier["cls_token"], teacher["cls_token"], atol=1e-6)
    assert main(["eval", str(tmp_path / "run"), "--knn", "--json"]) == 0
    assert 0.5 < json.loads(capsys.readouterr().out)["knn_top1"] <= 1


def test_pictures_without_classes(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "flat").mkdir()
    for file in (pictures / "train").rglob("*.png"):
        shutil.copy(file, tmp_path / "flat")
    out = str(tmp_path / "run")
    options = ["--schedule.epochs", "2", "--data", str(tmp_path / "flat"), "--out", out, "--json"]
    assert main(["train", "quick-dino", *OPTIONS, *options]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    table = rows(Path(out))
    losses = [float(row["val_loss"]) for row in table]
    assert [float(row["val_negative_loss"]) for row in table] == [-loss for loss in losses]
    assert result["negative_loss"] == pytest.approx(-min(losses), abs=1e-4)
    assert "knn_top1" not in result
    assert f"-loss {-min(losses):.4f} on the validation pictures" in captured.err
    assert isinstance(FeatureExtractor.load(Path(out) / "best.safetensors"), FeatureExtractor)
    assert main(["eval", out, "--knn"]) == 1
    assert "has no subfolders" in capsys.readouterr().err


@pytest.mark.slow
def test_released_backbones_have_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = "xcit_small_12_p16_224"
    model = transept.create_model(name, num_classes=0).eval()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("TRANSEPT_OFFLINE", "1")
    path = cached(find_checkpoint(f"{name}.fb_dino_in1k").file)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"teacher": {f"module.backbone.{key}": value for key, value in model.state_dict().items()}}, path)
    task, folder = load_features(f"{name}.fb_dino_in1k")
    assert folder is None
    assert task.preprocessing.img_size == (224, 224)
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(task(images), model(images))


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("pretrain/")])
def test_published_recipes(name: str):
    page = parse_recipe(read_recipe(name), [])
    assert (page.task, page.schedule.epochs, page.schedule.warmup_epochs) == ("pretrain", 300, 10)
    # Every page peaks at its own rate, for its own batch.
    rates = {"small_12_p16": (1024, 2e-3, 8), "medium_24_p16": (1024, 1e-3, 8), "medium_24_p8": (960, 9.375e-4, 6)}
    published = rates[page.model.name.removeprefix("xcit_")]
    assert (page.batch_size, page.optimizer.lr, page.pretrain.views.local_crops) == published
    assert page.optimizer.lr_batch == page.batch_size
    assert page.optimizer.clip_grad is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--pretrain.momentum 1.5", "pretrain.momentum=1.5 is not in"),
        ("--pretrain.knn_k 0", "pretrain.knn_k=0 must be greater than 0"),
        ("--pretrain.freeze_last_layer=-1", "pretrain.freeze_last_layer=-1 must not be negative"),
        ("--pretrain.views.local_scale [0.5,0.1]", "pretrain.views.local_scale=.* give .low, high."),
        ("--model.freeze 1", "model.freeze does not go with task: pretrain"),
        ("--ema.decay 0.9", "ema.decay does not go with task: pretrain"),
        ("--hardware.strategy fsdp", "hardware.strategy=fsdp does not go with task: pretrain"),
        ("--pretrain.knn 3", "no option is called 'pretrain.knn'; did you mean 'pretrain.knn_k'"),
    ],
)
def test_wrong_options(pictures: Path, options: str, message: str):
    with pytest.raises(UsageError, match=message):
        recipe(pictures, *options.split())


def test_an_empty_folder(tmp_path: Path):
    with pytest.raises(TranseptError, match="there are no pictures in"):
        PretrainJob(recipe(tmp_path))


# Pictures of other bands


def deep_pictures(root: Path, bands: int) -> Path:
    """Two classes that the last of so many 12-bit bands tells apart: TIFFs of four bands, PNGs of one."""
    random = np.random.default_rng(0)
    for i in range(24):
        folder = root / ("train" if i < 16 else "val") / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        values = random.integers(200, 900, (bands, 16, 16), dtype=np.uint16)
        values[-1] += 1500 * (i % 2)
        if bands == 1:
            Image.fromarray(values[0]).save(folder / f"{i}.png")
        else:
            tifffile.imwrite(folder / f"{i}.tif", values, photometric="minisblack", planarconfig="separate")
    return root


@pytest.mark.parametrize(("bands", "said"), [(4, "all"), pytest.param(1, "[0]", marks=pytest.mark.slow)])
def test_bands_from_pretraining_to_a_classifier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bands: int, said: str
):
    data, run = deep_pictures(tmp_path / "data", bands), tmp_path / "run"
    read = ["--data", str(data), "--bands", said, "--pixel_range", "auto"]
    assert main(["train", "quick-dino", *OPTIONS, *read, "--schedule.epochs", "1", "--out", str(run)]) == 0
    first = transept.load(run).reading
    assert main(["train", "--resume", str(run), "--schedule.epochs", "2"]) == 0
    task = transept.load(run)
    assert len(rows(run)) == 2
    assert task.reading == first
    assert len(first.bands) == task.in_chans == len(task.preprocessing.mean) == bands
    assert first.pixel_range[-1][1] > 2000
    capsys.readouterr()
    assert main(["eval", str(run), "--knn", "--k", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["knn_top1"] > 0.8
    picture, sheet = str(data / "val" / "a" / "16"), str(tmp_path / "sheet.png")
    assert main(["explain", str(run), picture + (".png" if bands == 1 else ".tif"), "--out", sheet]) == 0
    small = ["--model.name=xcit_nano_12_p8_224", "--model.img_size=16", "--schedule.epochs=1", "--batch_size=8"]
    small += ["--model.options={embed_dim: 16, depth: 1, num_heads: 2, patch_size: 4}", "--schedule.warmup_epochs=0"]
    start = ["train", "quick", *small, "--model.weights", str(run / "best.safetensors"), "--out", str(tmp_path / "c")]
    capsys.readouterr()
    assert main([*start, *read]) == 0
    assert "2 of the model start fresh (the file has no classifier)" in (line := capsys.readouterr().err)
    assert "the weights of" not in line
    assert transept.load(tmp_path / "c").reading == first
    start[-1] = str(tmp_path / "other")
    assert main([*start, *read[:-1], "[0, 4095]"]) == 0
    line = capsys.readouterr().err
    assert f"are of pictures read with bands={list(first.bands)} and pixel_range=[" in line
    assert "are read with bands=" in line

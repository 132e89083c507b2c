"""The catalogue against the list of what was published, and what a name leads to."""

import csv
import dataclasses
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch

import transept
from transept.errors import UsageError
from transept.models.registry import find_model, list_models
from transept.weights.catalogue.records import CHECKPOINTS, Checkpoint, checkpoints_of, set_preprocessing, unpublished
from transept.weights.fetch.locate import how_to_get, locate
from transept.weights.load import default_checkpoint, find_checkpoint

SPECS = Path(__file__).parents[4] / "shared" / "specs"
LATER = "crossvit_", "bixt_"
"""Models of the two families whose files have a list of their own."""


def rows(name: str = "checkpoints") -> list[dict[str, str]]:
    published = SPECS / f"{name}.tsv"
    if not published.is_file():
        return []
    with published.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def entries_of(row: dict[str, str]) -> list[Checkpoint]:
    """The entries that may stand for a row: same address, model and task."""
    variant = re.sub(r"_dist$", "", row["variant"])
    words = row["task"].lower().replace("r-cnn", "rcnn").split()
    task = {"dino-pretrain": "self-supervised", "distillation": "teacher"}.get(words[0], words[0])
    found = []
    for entry in CHECKPOINTS:
        addresses = {entry.url, *(page.url for page in entry.pages)}
        base = entry.model.removesuffix("_224").removesuffix("_384").removesuffix("_448")
        if row["url"] in addresses and entry.task == task and variant in (entry.model, base):
            found.append(entry)
    if row["family"] == "cat" and task != "classification":  # one release page for all
        multi, schedule = "(+)" in words, next(word for word in words if re.fullmatch(r"\d+[xk]", word))
        method = "_".join(words[1 : words.index(schedule)])
        found = [
            entry
            for entry in found
            if entry.method == method and ("_ms" in entry.tag) == multi and f"_{schedule}" in entry.tag
        ]
    return found


def scores_in(notes: str) -> dict[str, float]:
    names = {"top-1": "top1", "top-5": "top5", "k-NN": "knn", "linear": "linear"}
    names |= {"box AP": "box_ap", "mask AP": "mask_ap", "mIoU": "miou"}
    return {names[name]: float(value) for name, value in re.findall(rf"({'|'.join(names)}) ([\d.]+\d)", notes)}


@pytest.mark.skipif(not rows(), reason="the list of published checkpoints is not beside the repository")
def test_every_published_file_is_listed():
    assert len(rows()) == 198
    for row in rows():
        if row["url"] == "-":
            names = list_models("cabvit*") if row["variant"] == "all" else [row["variant"]]
            assert all(unpublished(name) and not checkpoints_of(name) for name in names), row
            continue
        entries = entries_of(row)
        # CAT's one release page stands for the old classifiers and the new; all others are one entry.
        assert len(entries) == (2 if row["family"] == "cat" and row["task"] == "classification 224" else 1), row
        for entry in entries:
            assert entry.sha256 == row["sha256 prefix"].removeprefix("-"), row
            printed = scores_in(row["notes"])
            assert {metric: entry.scores.get(metric) for metric in printed} == printed, row
            code = re.search(r"access key (\w+)", row["notes"])
            page = next((page for page in entry.pages if page.url == row["url"]), None)
            assert (page.code if page else "") == (code[1] if code else ""), row
            size = re.search(r"\b(224|384|448)\b", row["task"])
            if size and entry.task == "classification":
                assert entry.preprocessing.img_size == (int(size[1]), int(size[1])), row


@pytest.mark.skipif(not rows(), reason="the list of published checkpoints is not beside the repository")
def test_nothing_is_listed_that_was_not_published():
    urls = {row["url"] for row in rows() + rows("checkpoints_elsewhere")}
    for entry in CHECKPOINTS:
        if entry.model.startswith(LATER):
            continue
        addresses = {entry.url, *(page.url for page in entry.pages)} - {""}
        assert entry.origin == "timm" or addresses & urls, entry.name
        if entry.url and entry.url not in urls and entry.origin != "timm":
            assert "inferred" in entry.note, entry.name
    assert sum(entry.origin == "timm" for entry in CHECKPOINTS) == 14 * 3 + 10 + 11


NOT_LISTED = {"Brain-Score": 1, "landing page": 1}
"""A file without an address, and the page of BiXT's files."""


@pytest.mark.skipif(not rows(), reason="the list of published checkpoints is not beside the repository")
def test_what_others_published_is_listed():
    published = rows("checkpoints_elsewhere")
    assert len(published) == 141
    listed: Counter[str] = Counter()
    for row in published:
        entries = [e for e in CHECKPOINTS if row["url"] in (e.url, *(page.url for page in e.pages))]
        widths = re.findall(r"nano|tiny|xxs|xs|small|medium|large|s24|s36|m36|m48", row["variant"])
        suits = [e for e in entries if all(width in e.model for width in widths)]
        if not row["variant"].startswith("all"):
            size = re.search(r"classification (224|384)|(?<=_)(224|384|448)$", row["variant"] + " " + row["task"])
            patch = re.search(r"_p(8|16)\b", row["variant"])
            distilled = "distilled" in row["task"]
            if "one shared folder" in row["note"]:
                suits = [
                    e
                    for e in suits
                    if size and size[1] in e.model and patch and patch[0] in e.model
                    and re.search(r"_(12|24)_", row["variant"])[0] in e.model  # pyright: ignore
                    and ("_dist_" in e.tag) == distilled
                ]  # fmt: skip
            assert len(suits) == 1, row
            (entry,) = suits
            printed = {"top1": r"top-1 ([\d.]+\d)", "top5": r"top-5 ([\d.]+\d)", "knn": r"k-NN ([\d.]+\d)"}
            printed |= {"autoattack": r"AutoAttack ([\d.]+\d)"}
            scores = {metric: float(m[1]) for metric, text in printed.items() if (m := re.search(text, row["note"]))}
            assert {metric: entry.scores.get(metric) for metric in scores} == scores, row
            clean = re.search(r"clean ([\d.]+\d)", row["note"])
            assert not clean or float(clean[1]) == entry.scores.get("clean")
            sha256 = re.search(r"sha256 (\w{8})", row["note"])
            assert not sha256 or entry.sha256 == sha256[1]
            kind = {".pdparams": "PaddlePaddle", "MindSpore .ckpt": "MindSpore", ".weights.h5": "Keras"}
            kind |= {".zip": "zip archive"}
            assert entry.format == kind.get(row["format"], "PyTorch")
            suits = [entry]
        listed.update(e.name for e in suits)
    others = {e.name for e in CHECKPOINTS if e.origin not in ("official", "timm", "PASSL", "MMPretrain")}
    assert {name for name in others if not name.startswith(LATER)} == set(listed)


@pytest.mark.skipif(not rows(), reason="the list of published checkpoints is not beside the repository")
def test_the_files_of_crossvit_and_bixt():
    published = rows("checkpoints_crossvit_bixt")
    assert len(published) == 80
    left_out, listed = Counter(), set()
    for row in published:
        if row["url"] == "-" and "Brain-Score" not in row["task"]:
            assert row["variant"] == "crossvit_18_t2t" or "never released" in row["notes"]
            continue
        mark = next((mark for mark in NOT_LISTED if mark in row["task"]), None)
        if mark:
            left_out[mark] += 1
            continue
        address = f"{row['url']}/resolve/main/model.safetensors" if "timm port" in row["task"] else row["url"]
        (entry,) = (e for e in CHECKPOINTS if address in (e.url, *(page.url for page in e.pages)))
        assert entry.model == row["variant"]
        printed = scores_in(row["notes"])
        assert {metric: entry.scores.get(metric) for metric in printed} == printed, row
        listed.add(entry.name)
    assert left_out == NOT_LISTED
    assert listed == {entry.name for entry in CHECKPOINTS if entry.model.startswith(LATER)}
    assert unpublished("crossvit_18_dagger_480")
    for name in list_models("crossvit*") + list_models("bixt*"):
        assert bool(checkpoints_of(name)) != bool(unpublished(name)), name


def test_entries_are_whole():
    for attribute in ("name", "file"):
        counts = Counter(getattr(entry, attribute) for entry in CHECKPOINTS)
        assert counts.most_common(1)[0][1] == 1, counts.most_common(1)
    for entry in CHECKPOINTS:
        assert entry.task == "teacher" or find_model(entry.model)[0] in list_models()
        assert entry.url or entry.pages
        assert entry.licence in ("Apache-2.0", "MIT") or entry.origin in ("lucid", "robust XCiT")
        assert re.fullmatch(r"[0-9a-f]{8}|", entry.sha256)
        assert bool(entry.scores) == bool(entry.source)
        unscored = ("EasyCV", "DINO", "ppim", "Keras", "lucid", "birder", "MindCV", "TF Hub")
        assert entry.scores or entry.task == "teacher" or entry.origin in (*unscored, "SAT")
        assert all(1 < score < 100 for score in entry.scores.values())
        preprocessing = entry.preprocessing
        assert 0 < preprocessing.crop_pct <= 1
        assert len(preprocessing.mean) == len(preprocessing.std) == 3
        dense = entry.task in ("detection", "segmentation")
        assert (preprocessing.crop_mode == "fit") == dense
        assert bool(entry.method) == (dense or entry.task == "self-supervised")
        if entry.task == "classification":
            native = find_model(entry.model)[1].variants[find_model(entry.model)[0]].img_size
            assert preprocessing.img_size == entry.options.get("img_size", native)
        assert json.loads(json.dumps(entry.as_dict()))["preprocessing"]["img_size"] == list(preprocessing.img_size)


def test_timm_files_are_timms_own():
    for entry in CHECKPOINTS:
        if entry.origin == "timm":
            config = timm.models.get_pretrained_cfg(f"{entry.model}.{entry.tag.removeprefix('timm_')}")
            assert config is not None
            assert f"https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors" == entry.url
            assert config.input_size[1:] == entry.preprocessing.img_size
            assert (config.crop_pct, config.interpolation) == (entry.preprocessing.crop_pct, "bicubic")


def test_defaults():
    defaults = {
        "xcit_nano_12_p16": "xcit_nano_12_p16_224.fb_in1k",
        "xcit_nano_12_p16_384": "xcit_nano_12_p16_384.fb_dist_in1k",
        "cait_m48_448": "cait_m48_448.fb_dist_in1k",
        "cat_base": "cat_base.in1k",
        "crossformer_pp_huge": "crossformer_pp_huge.in1k",
    }
    assert {name: default_checkpoint(name).name for name in defaults} == defaults
    for name in list_models():
        if checkpoints_of(name):
            assert default_checkpoint(name).origin == "official"
            assert default_checkpoint(name).task == "classification"
    for name, why in (("cabvit_h_l2", "files of FcaFormer, its later name, fit"), ("cat_tiny_v2", "announced only")):
        with pytest.raises(transept.TranseptError, match=rf"no weights of {name} to fetch: .*{why}.*weights=FILE"):
            default_checkpoint(name)


def test_names_find_their_entries():
    assert find_checkpoint("xcit_small_12_p16.mask_rcnn_3x_coco").scores == {"box_ap": 45.3, "mask_ap": 40.8}
    assert find_checkpoint("xcit_small_12_p16_224.mask_rcnn_3x_coco").model == "xcit_small_12_p16"
    assert find_checkpoint("xcit_small_12_p16.fb_in1k").model == "xcit_small_12_p16_224"
    assert find_checkpoint("regnety_160.fb_in1k").sha256 == "a5fe301d"
    with pytest.raises(UsageError, match=r"did you mean 'xcit_small_12_p16.semantic_fpn_80k_ade20k'"):
        find_checkpoint("xcit_small_12_p16.semantic_fpn_8k_ade20k")
    with pytest.raises(UsageError, match="no model is called 'regnety_160'"):
        transept.create_model("regnety_160.fb_in1k")


def test_share_pages_are_named_and_a_saved_file_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    checkpoint = find_checkpoint("crossformer_tiny.in1k")
    path = tmp_path / "hub" / "checkpoints" / "crossformer_tiny.in1k.pth"
    with pytest.raises(transept.TranseptError) as error:
        transept.create_model("crossformer_tiny", pretrained=True)
    for part in (
        "https://drive.google.com/file/d/1YSkU9enn-ITyrbxLH13zNcBYvWSEidfq/view?usp=sharing (Google Drive)",
        "https://pan.baidu.com/s/1M45YXZgVvp6Ew9DO8UhdlA (Baidu, access code nkju)",
        "weights=FILE",
        str(path),
    ):
        assert part in str(error.value)
    assert str(path) in how_to_get(checkpoint)[-1]
    path.parent.mkdir(parents=True)
    small = dict(embed_dim=32, num_heads=(1, 2, 4, 8), depths=(1, 1, 1, 1))
    model = transept.create_model("crossformer_tiny", **small)
    torch.save({"model": model.state_dict()}, path)
    assert locate(checkpoint) == path
    loaded = transept.create_model("crossformer_tiny", pretrained=True, **small)
    assert torch.equal(loaded.head.weight, model.head.weight)
    assert loaded.pretrained_cfg["tag"] == "in1k"


def test_a_failed_download_names_the_release_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("TRANSEPT_RETRIES", "0")
    entry = find_checkpoint("cat_tiny.in1k")
    unreachable = dataclasses.replace(entry, url="http://127.0.0.1:9/cat_tiny_new.pth")
    with pytest.raises(transept.TranseptError, match=r"127.0.0.1:9.*release page is https://github.com/.*/tag/v1.0"):
        locate(unreachable)


def test_preprocessing_travels_with_the_weights():
    model = transept.create_model("xcit_nano_12_p16_224", depth=1, img_size=384)
    assert model.pretrained_cfg["crop_pct"] == 1.0
    entry = find_checkpoint("xcit_nano_12_p16_224.mmpretrain_in1k")
    set_preprocessing(model, entry)
    assert model.pretrained_cfg["crop_pct"] == 0.875
    assert model.pretrained_cfg["input_size"] == (3, 384, 384)
    set_preprocessing(model, find_checkpoint("cat_small.fcos_1x_coco"))
    assert model.pretrained_cfg["std"] == (1 / 255,) * 3
    with pytest.raises(UsageError, match="Linear has no pretrained_cfg"):
        set_preprocessing(torch.nn.Linear(2, 3), entry)


def test_a_checkpoint_brings_the_options_it_was_trained_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    small = dict(embed_dim=32, num_heads=(1, 2, 4, 8), depths=(1, 1, 1, 1))
    entry = find_checkpoint("crossformer_small.fpn_ade20k_40k")
    path = tmp_path / "hub" / "checkpoints" / entry.file
    path.parent.mkdir(parents=True)
    options = dict(group_sizes=(14, 14, 7, 7), intervals=(16, 8, 2, 1), grouping="legacy")
    trained = transept.create_model("crossformer_small", features_only=True, **small, **options)
    torch.save({"state_dict": {f"backbone.{name}": value for name, value in trained.state_dict().items()}}, path)
    loaded = transept.create_model(entry.name, pretrained=True, features_only=True, **small)
    assert (loaded.config.grouping, loaded.config.group_sizes) == ("legacy", (14, 14, 7, 7))
    image = torch.randn(1, 3, 160, 224)
    with torch.inference_mode():
        for ours, theirs in zip(loaded.eval()(image), trained.eval()(image), strict=True):
            assert torch.equal(ours, theirs)
    kept = transept.create_model(entry.name, grouping="current", features_only=True, **small)
    assert kept.config.grouping == "current"

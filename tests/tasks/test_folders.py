"""Models to folders and back: nothing lost, nothing executed, nothing half done."""

import json
import re
import resource
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

import transept
from tests.helpers import FAMILIES, image, slim, tiny
from transept.data.classification.transforms import Preprocessing
from transept.errors import UsageError
from transept.models.registry import skeletons
from transept.tasks.classify import Classifier


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("cait_xxs24_224").eval()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return transept.save_pretrained(model, tmp_path_factory.mktemp("saved"))


def classifier() -> Classifier:
    model = tiny("cait_xxs24_224", num_classes=3)
    preprocessing = Preprocessing(img_size=(64, 64), crop_pct=0.9, interpolation="bilinear", mean=(0.5,) * 3)
    return Classifier(model, ["cat", "dog\n#", "Löwe"], preprocessing).eval()


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_round_trip(name: str, features_only: bool, tmp_path: Path):
    options = dict(features_only=True, out_indices=(0, 2)) if features_only else dict(in_chans=3)
    model = slim(name, **options).eval()
    for key, buffer in model.named_buffers():
        if "running_mean" in key:  # BatchNorm's statistics are saved too
            buffer.uniform_()
    assert transept.save_pretrained(model, tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    again = transept.from_pretrained(tmp_path / "new" / "folder")
    assert type(again) is type(model)
    assert again.config == model.config
    assert not again.training
    state = model.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    ours, theirs = model(image()), again(image())
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert len(theirs) == 2
    assert {**again.pretrained_cfg, "num_classes": 0} == {**model.pretrained_cfg, "num_classes": 0}


@torch.inference_mode()
def test_options_channels_sizes_and_precision(tmp_path: Path):
    model = transept.create_model(
        "crossformer_tiny",
        img_size=(64, 96),
        in_chans=1,
        num_classes=0,
        depths=(1, 1, 1, 1),
        grouping="legacy",
        pad=True,
    )
    model.eval().bfloat16()
    transept.save_pretrained(model, tmp_path)
    again = transept.from_pretrained(tmp_path, drop_path_rate=0.1)
    assert (again.config, again.num_classes) == (model.config, 0)
    x = torch.randn(2, 1, 64, 96, dtype=torch.bfloat16)
    assert torch.equal(again(x), model(x))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_args"] == dict(in_chans=1, img_size=[64, 96], depths=[1, 1, 1, 1], grouping="legacy", pad=True)
    pooled = tiny("xcit_nano_12_p8_224").eval()
    pooled.reset_classifier(4, global_pool="avg")
    transept.save_pretrained(pooled, tmp_path)
    assert torch.equal(transept.from_pretrained(tmp_path)(image()), pooled(image()))


def test_classifier_keeps_classes_and_preprocessing(tmp_path: Path):
    task = classifier()
    transept.save_pretrained(task, tmp_path, licence="CC-BY-NC-4.0", datasets=["someone/pets"])
    again = transept.from_pretrained(tmp_path)
    assert isinstance(again, Classifier)
    assert (again.classes, again.preprocessing) == (task.classes, task.preprocessing)
    picture = Image.effect_noise((80, 70), 60).convert("RGB")
    (before,), (after,) = task.predict([picture]), again.predict([picture])
    assert torch.equal(before.scores, after.scores)
    assert torch.equal(before.labels, after.labels)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict() == dict(
        license="cc-by-nc-4.0", library_name="transept", pipeline_tag="image-classification",
        tags=["transept", "cait", "vision-transformer", "timm"], datasets=["someone/pets"],
    )  # fmt: skip
    assert "Resize the shorter side to 71 pixels (bilinear), crop the centre 64 x 64 (crop ratio 0.9)" in card.text
    assert "subtract the mean 0.5, 0.5, 0.5" in card.text


def test_wrapped_models(model, tmp_path: Path):
    transept.save_pretrained(torch.nn.DataParallel(model), tmp_path)
    transept.save_pretrained(torch.compile(model, backend="eager"), tmp_path)
    assert torch.equal(transept.from_pretrained(tmp_path).head.weight, model.head.weight)


def test_card_of_published_weights(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    transept.save_pretrained(model, tmp_path / "mine", weights="cait_xxs24_224.fb_dist_in1k")
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert (card.data.license, card.data.datasets) == ("apache-2.0", ["imagenet-1k"])
    for fact in ("arXiv 2103.17239", "`cait_xxs24_224.fb_dist_in1k`", "**78.4 %**", "XXS24_224.pth", "Apache-2.0",
                 "crop ratio 1.0", "bicubic", "64 x 64"):  # fmt: skip
        assert fact in card.text, fact
    monkeypatch.chdir(tmp_path)  # the card's code is run as it stands
    ours, theirs = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    scope: dict[str, Any] = {"images": image()}
    with torch.inference_mode():
        exec(ours, scope)
        exec(theirs, scope)
        assert torch.equal(scope["logits"], model(image()))
        assert torch.allclose(scope["model"](image()), model(image()), atol=1e-5)
    transept.save_pretrained(transept.from_pretrained("mine"), "again")  # where the weights come from is not lost
    assert "**78.4 %**" in Path("again", "README.md").read_text()
    transept.save_pretrained(model, "none")
    card = ModelCard.load("none/README.md")
    assert "no score is claimed" in card.text
    assert "license" not in card.data.to_dict()
    assert "%" not in card.text
    transept.save_pretrained(transept.create_model("cat_tiny_v2", depths=(1, 1, 1, 1)), "v2", licence="Mine 1")
    card = ModelCard.load("v2/README.md")
    assert "a reconstruction" in card.text
    assert (card.data.license, card.data.license_name) == ("other", "Mine 1")
    assert "timm" not in str(card)
    with pytest.raises(UsageError, match=r"did you mean 'cait_xxs24_224.fb_dist_in1k'"):
        transept.save_pretrained(model, "none", weights="cait_xxs24_224.fb_dst_in1k")


@pytest.mark.parametrize("name", ["cait_xxs24_224", "xcit_nano_12_p8_224", "xcit_tiny_12_p16_384"])
@torch.inference_mode()
def test_timm_reads_what_the_card_says_it_reads(name: str, tmp_path: Path):
    model = tiny(name).eval()
    transept.save_pretrained(model, tmp_path / name)
    assert "timm.create_model('local-dir:" in (tmp_path / name / "README.md").read_text()
    theirs = timm.create_model(f"local-dir:{tmp_path / name}", pretrained=True).eval()
    assert type(theirs).__module__.startswith("timm.")
    assert theirs.num_classes == 7
    assert torch.allclose(theirs(image()), model(image()), atol=1e-5)
    assert tuple(load_file(tmp_path / name / "model.safetensors")) <= tuple(theirs.state_dict())
    four = timm.create_model(f"local-dir:{tmp_path / name}", pretrained=True, in_chans=4)
    assert four(image()[:, [0, 1, 2, 0]]).shape == (2, 7)
    pyramid = tiny(name, features_only=True)
    transept.save_pretrained(pyramid, tmp_path / "pyramid")
    assert "timm" not in (tmp_path / "pyramid" / "README.md").read_text()


def test_timm_is_not_named_where_it_lacks_the_model(tmp_path: Path):
    model = transept.create_model("xcit_nano_12_p8_224", patch_size=4, depth=1, img_size=16, num_classes=2)
    transept.save_pretrained(model, tmp_path)
    assert "timm's own" not in (tmp_path / "README.md").read_text()
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["cat_tiny", "crossformer_tiny", "cabvit_h_l1"])
@torch.inference_mode()
def test_timm_gives_our_models_the_weights_it_is_told(name: str, tmp_path: Path):
    model = slim(name).eval()
    model.pretrained_cfg["mean"] = (0.5, 0.5, 0.5)
    transept.save_pretrained(model, tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(theirs(image()), model(image()))
    assert tuple(theirs.pretrained_cfg["mean"]) == (0.5, 0.5, 0.5)
    plain = timm.create_model(f"local-dir:{tmp_path}").eval()
    assert plain.num_classes == 7
    assert not torch.equal(plain(image()), model(image()))
    options = json.loads((tmp_path / "config.json").read_text())["model_args"] | {"num_classes": 7}
    for overlay in ({"file": str(tmp_path / "model.safetensors")}, {"state_dict": model.state_dict()}):
        theirs = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options).eval()
        assert torch.equal(theirs(image()), model(image()))
    with pytest.raises(UsageError, match=f"no published checkpoint is called '{name}.mine'"):
        timm.create_model(f"{name}.mine", pretrained=True)


def test_what_cannot_be_saved_is_refused(model, tmp_path: Path):
    folder = tmp_path / "out"
    for other, message in (
        (torch.nn.Linear(2, 2), "a Linear cannot be saved; only models that create_model made can"),
        (timm.create_model("resnet10t"), "a ResNet cannot be saved"),
    ):
        with pytest.raises(transept.TranseptError, match=message):
            transept.save_pretrained(other, folder)
    pruned = tiny("cait_xxs24_224")
    pruned.prune_intermediate_layers(1, prune_head=False)
    transept.save_pretrained(pruned, folder)  # the last block only: nothing went
    pruned.prune_intermediate_layers([0], prune_head=False)
    (folder / "config.json").rename(folder / "kept.json")
    with pytest.raises(transept.TranseptError, match=r"was changed after it was built.*blocks.1.* is missing"):
        transept.save_pretrained(pruned, folder)
    with skeletons():
        empty = tiny("cait_xxs24_224")
    with pytest.raises(transept.TranseptError, match="it is on the meta device"):
        transept.save_pretrained(empty, folder)
    assert not (folder / "config.json").exists()


def test_saving_again_keeps_what_is_not_ours(model, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "README.md").write_text("# My own words")
    transept.save_pretrained(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My own words"
    (tmp_path / "README.md").unlink()
    transept.save_pretrained(model, tmp_path, card=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]
    transept.save_pretrained(model, tmp_path)
    transept.save_pretrained(model, tmp_path, licence="MIT")  # a card of ours is written anew
    assert ModelCard.load(tmp_path / "README.md").data.license == "mit"


def test_a_failed_save_changes_nothing(model, tmp_path: Path):
    folder = tmp_path / "saved"
    transept.save_pretrained(model, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    larger = tiny("cait_xxs24_224", num_classes=9)
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, allowed[1]))  # the disk is full after a megabyte
    try:
        for place in (folder, tmp_path / "fresh"):
            with pytest.raises(transept.TranseptError, match=r"^cannot write to .*nothing saved before is lost"):
                transept.save_pretrained(larger, place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not (tmp_path / "fresh").exists()
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(transept.TranseptError, match="'config.json' is a folder there"):
        transept.save_pretrained(tiny("cait_xxs24_224", num_classes=9), folder)
    assert (folder / "model.safetensors").read_bytes() == before["model.safetensors"]
    (tmp_path / "file").touch()
    with pytest.raises(transept.TranseptError, match="cannot write to .*file"):
        transept.save_pretrained(model, tmp_path / "file")


CONFIGS = {
    "architecture": {
        "resnet50": "no model is called 'resnet50'",
        "cait_xxs24_22": "did you mean 'cait_xxs24_224'",
        "cait_xxs24": "architecture is 'cait_xxs24'; its name needs its image size",
        5: "architecture is 5, which is not a string",
    },
    "num_classes": {
        "7": 'num_classes is "7", which is not a whole number',
        -1: "which is not a whole number of 0 to 65536",
    },
    "num_class": {7: "no field is called 'num_class'; did you mean 'num_classes'"},
    "transept_version": {1: "transept_version is 1, which is not a string"},
    "global_pool": {"max": "global_pool of config.json is 'max'; cait_xxs24_224 has 'token', 'avg', ''"},
    "task": {"detect": """task is "detect", which is not 'classify'"""},
    "label_names": {"cat": 'label_names is "cat", which is not a list'},
    "model_args": {"a": 'model_args is "a", which is not an object'},
    "model_args.depth": {
        "two": 'model_args.depth is "two", which is not a whole number',
        True: "model_args.depth is true, which is not a whole number",
        60000: "do not fit the cait_xxs24_224 of config.json: it has",
        3: r"do not fit .* blocks.2.gamma_1 is missing \(.. differences in all\)",
    },
    "model_args.embed_dim": {
        65536: "embed_dim=65536 is not in .0, 16384",
        191: "describes no model that can be built: .*embed_dim=191",
    },
    "model_args.img_size": {
        64: "img_size is 64, which is not a list of 2",
        65536: "img_size is 65536, which is not a list",
    },
    "model_args.dept": {2: "did you mean 'model_args.depth'"},
    "model_args.weights": {"/etc/passwd": "no field is called 'model_args.weights'"},
    "model_args.features_only": {True: "do not fit", 0: "features_only is 0, which is not true or false"},
    "pretrained_cfg.crop_pct": {0: r"crop_pct is 0; it must be in \(0, 1\]", 1e999: "crop_pct is Infinity"},
    "pretrained_cfg.interpolation": {"cubic": "interpolation is 'cubic'; known: nearest, "},
    "pretrained_cfg.std": {0: "std is 0, which is not a list"},
    "pretrained_cfg.url": {"http://localhost": "no field is called 'pretrained_cfg.url'"},
}


@pytest.mark.parametrize(
    ("field", "value", "message"), [(field, value, m) for field, cases in CONFIGS.items() for value, m in cases.items()]
)
def test_wrong_configs(field: str, value: Any, message: str, saved: Path, tmp_path: Path):
    (tmp_path / "model.safetensors").hardlink_to(saved / "model.safetensors")
    page = json.loads((saved / "config.json").read_text())
    outer, _, inner = field.rpartition(".")
    (page[outer] if outer else page)[inner] = value
    (tmp_path / "config.json").write_text(json.dumps(page))
    with pytest.raises(transept.TranseptError, match=message) as caught:
        transept.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    assert "config.json" in str(caught.value)


def test_broken_files(model, tmp_path: Path):
    def load() -> str:
        with pytest.raises(transept.TranseptError) as caught:
            transept.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "has no config.json; save_pretrained writes" in load()
    transept.save_pretrained(model, tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    good, state = config.read_bytes(), load_file(weights)
    for text, message in (
        (b"", "is no valid JSON"),
        (b"\xff\xfe", "is no valid JSON"),
        (b"[" * 100_000, "is no valid JSON"),
        (b"9" * 5000, "is no valid JSON"),
        (b"[1]", "must hold an object of fields, not list"),
        (b"{}", "was not written by save_pretrained"),
        (good.replace(b'"num_classes": 7,\n  "model', b'"model'), "it has no field 'num_classes'"),
        (good.replace(b'"depth": 2', b'"deth": 2').replace(b'"0.2.0', b'"99.1.0'), "(written by transept 99.1.0"),
    ):
        config.write_bytes(text)
        assert message in load()
    config.write_bytes(good)
    save_file({**state, "extra": torch.zeros(1)}, weights)
    assert "extra is unknown to the model" in load()
    save_file({**state, "head.bias": torch.zeros(5)}, weights)
    assert "head.bias is (5,) for (7,) in the model" in load()
    save_file({**state, "head.bias": torch.zeros(7, dtype=torch.int64)}, weights)
    assert "head.bias is of type torch.int64 for torch.float32 in the model" in load()
    weights.write_bytes(weights.read_bytes()[:-50])
    assert "is no whole safetensors file" in load()
    weights.write_bytes(b"\xff" * 8)
    assert "is no whole safetensors file" in load()
    weights.unlink()
    torch.save(Hostile(tmp_path / "owned"), tmp_path / "pytorch_model.bin")
    assert "only 'pytorch_model.bin'; reading it could run code" in load()
    (tmp_path / "pytorch_model.bin").rename(weights)
    assert "is no whole safetensors file" in load()
    assert not (tmp_path / "owned").exists()


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_class_names_must_fit(tmp_path: Path):
    transept.save_pretrained(classifier(), tmp_path)
    page = json.loads((tmp_path / "config.json").read_text())
    for names, message in (
        (["a", "b"], "label_names has 2 names for num_classes 3"),
        (["a", "b", 3], r"label_names\[2\] is 3, which is not a string"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(page | {"label_names": names}))
        with pytest.raises(transept.TranseptError, match=message):
            transept.from_pretrained(tmp_path)
    del page["task"]
    (tmp_path / "config.json").write_text(json.dumps(page))
    with pytest.raises(transept.TranseptError, match="label_names belong to task 'classify'"):
        transept.from_pretrained(tmp_path)


def test_what_is_no_folder(model, tmp_path: Path):
    transept.save_pretrained(model, tmp_path)
    for source, message in (
        (tmp_path / "absent", "there is no folder .*absent"),
        ("./absent", "there is no folder './absent'"),
        ("a/b/c", "there is no folder 'a/b/c'"),
        (tmp_path / "config.json", "is a file; give its folder"),
        ("no spaces/allowed", "is neither a folder nor a repository's name"),
    ):
        with pytest.raises(transept.TranseptError, match=message):
            transept.from_pretrained(source)
    with pytest.raises(UsageError, match="revision='v1' is for repositories of the hub"):
        transept.from_pretrained(tmp_path, revision="v1")

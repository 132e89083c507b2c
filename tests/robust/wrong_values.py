"""Calls of the command line in which one or two values are wrong, and what every answer to them must be."""

import copy
import json
import math
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import date
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.robust import sets
from transept.cli.main import main
from transept.training.options.parsing import option_types

LONGEST = 300
SECONDS = 5.0
"""Of processor time, for a refusal."""

WRONG: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 10**9, -(10**9), 10**30, 10**400,
    0.5, -0.5, 1.5, 1e-300, 1e300, math.nan, math.inf, -math.inf,
    "", "two", "nan", "-1", "1e3", "[", "{}", "none", "train", "../..", "/", "$\\frac{", "ü", "\u202e", "x" * 400,
    "9" * 500, [], [0], [1, 2], [2, 1], [0.5, 1.5], [math.nan, 1], [-1, 1], [1, 2, 3], ["a", "b"], [[1]], [None],
    {}, {"a": 1}, {"depth": 2}, {"name": "cat_tiny"},
]  # fmt: skip
"""Values that some option or field takes, and most do not."""
values = (
    st.sampled_from(WRONG).map(copy.deepcopy)
    | st.integers(-3, 40)
    | st.floats(width=16)
    | st.text(max_size=8).filter(str.isprintable)
)


@dataclass(frozen=True, slots=True)
class Call:
    """A command, and what was put wrong."""

    words: list[str]
    wrong: list[str]
    """Names of fields and files, one of which the answer names where it refuses."""


@dataclass(frozen=True, slots=True)
class Answer:
    code: int
    line: str
    """The last one on stderr."""
    seconds: float


def ask(call: Call) -> Answer:
    out, err = StringIO(), StringIO()
    start = time.process_time()
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        code = main(call.words)
    return Answer(code, (err.getvalue().splitlines() or [""])[-1], time.process_time() - start)


def faults(call: Call, answer: Answer) -> list[str]:
    """What is wrong with an answer."""
    found = []
    if answer.code not in (0, 1, 2):
        found.append(f"exit code {answer.code}")
    if answer.code and answer.seconds > SECONDS:  # what is done may take longer
        found.append(f"{answer.seconds:.1f} seconds")
    if answer.code:
        line = answer.line.removeprefix("transept: ")
        if line == answer.line:
            found.append("no line")
        if "; run again with --debug" in line:
            found.append("unexpected")
        if len(line) > LONGEST:
            found.append(f"{len(line)} characters")
        if not any(_named(name, line) for name in call.wrong):
            found.append("names nothing of it")
    return found


def _named(wrong: str, line: str) -> bool:
    """Whether a line has a word, its backslashes doubled, without its dashes, or the beginning of a long one.

    An empty word is a path, too: that of this folder.
    """
    if not wrong:
        return "''" in line or "'.'" in line
    option = wrong.removeprefix("--") if len(wrong) > 4 else wrong
    return any(form in line for form in (wrong, repr(wrong)[1:-1], option, option.replace("-", "_"), wrong[:40]))


@dataclass(frozen=True, slots=True)
class Ground:
    """What is sound: sets, recipes and trained runs."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> "Ground":
        sets.class_folders(root / "classes")
        sets.coco(root / "coco")
        sets.masks(root / "masks")
        for task, data in (("classify", "classes"), ("detect", "coco/coco.json"), ("segment", "masks")):
            page = sets.PAGE | {"task": task, "data": str(root / data)}
            page |= {"detect": {"width": 32, "preprocessing": {"scale": [64, 64]}}} if task == "detect" else {}
            page |= {"segment": {"augmentation": {"crop": [32, 32]}}} if task == "segment" else {}
            (root / f"{task}.yaml").write_text(yaml.safe_dump(page))
            words = ["train", str(root / f"{task}.yaml"), "--out", str(root / f"run_{task}")]
            answer = ask(Call(words, []))
            assert answer.code == 0, answer
        return cls(root)

    def page(self, task: str) -> dict[str, Any]:
        return yaml.safe_load((self.root / f"{task}.yaml").read_text())

    def fresh(self, name: str) -> Path:
        """A folder for what is wrong."""
        folder = self.root / "wrong" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


Case = Callable[[Ground, Any], Call]
"""Draws, as hypothesis has it, a call."""


def recipe(ground: Ground, draw: Any) -> Call:
    """A page with wrong values, or options on the command line."""
    task = draw(st.sampled_from(["classify", "detect", "segment"]))
    page, words, wrong = ground.page(task), [], []
    folder = ground.fresh("recipe")
    for name in draw(st.lists(st.sampled_from(sorted(option_types())), min_size=1, max_size=2, unique=True)):
        value = draw(values)
        wrong += [name, name.rpartition(".")[2], name.partition(".")[0]]
        if draw(st.booleans()):
            words.append(f"--{name}={value if isinstance(value, str) else json.dumps(value)}")
        else:
            _put(page, name.split("."), value)
    if draw(st.integers(0, 9)) == 0:
        options = page["model"]["options"] if isinstance(page.get("model"), dict) else {}
        name = draw(
            st.sampled_from(["depth", "num_heads", "embed_dim", "patch_size", "eta", "img_size", "num_classes"])
        )
        if isinstance(options, dict):
            options[name] = draw(values)
            wrong += [name, "model"]
    if draw(st.integers(0, 9)) == 0:  # what YAML makes of keys that are not text
        key = draw(st.sampled_from([None, 4, 1.5, True, date(2020, 1, 1)]))
        _put(page, [*draw(st.sampled_from([[], ["model"], ["model", "options"], [task]])), key], 1)
        wrong.append(str(key))
    (folder / "page.yaml").write_text(yaml.safe_dump(page, sort_keys=False))
    words = ["train", str(folder / "page.yaml"), "--dry-run", "--out", str(folder / "plan"), *words]
    return Call(words, [*wrong, "page.yaml", "has no split", "--skip-bad"])


def _put(page: dict[str, Any], names: list[Any], value: Any) -> None:
    for name in names[:-1]:
        inner = page.setdefault(name, {})
        if not isinstance(inner, dict):
            return
        page = inner
    page[names[-1]] = value


def run_folder(ground: Ground, draw: Any) -> Call:
    """A run whose files were changed or cut off."""
    task = draw(st.sampled_from(["classify", "detect", "segment"]))
    folder = ground.fresh("run")
    run = folder / "changed"
    shutil.copytree(ground.root / f"run_{task}", run, ignore=shutil.ignore_patterns("tensorboard"))
    wrong = ["changed"]
    for name in draw(
        st.lists(
            st.sampled_from(["config.yaml", "config.yaml", "best.safetensors", "last.ckpt", "metrics.csv"]),
            min_size=1,
            max_size=2,
            unique=True,
        )
    ):
        wrong.append(name)
        file = run / name
        how = draw(st.sampled_from(["value", "value", "cut", "byte", "gone", "empty"]))
        if how == "value" and name == "config.yaml":
            page = yaml.safe_load(file.read_text())
            option = draw(st.sampled_from(sorted(option_types())))
            wrong += [option, option.rpartition(".")[2], option.partition(".")[0]]
            _put(page, option.split("."), draw(values))
            file.write_text(yaml.safe_dump(page, sort_keys=False))
        elif how == "gone":
            file.unlink()
        else:
            data = bytearray(file.read_bytes())
            place = draw(st.integers(0, len(data) - 1))
            wrong += option_types() if name == "config.yaml" else []
            if how == "byte":
                data[place] = draw(st.integers(0, 255))
            file.write_bytes(data[: 0 if how == "empty" else place] if how in ("cut", "empty") else data)
    picture = str(ground.root / "coco" / "images" / "1.png")
    verb = draw(st.sampled_from(["eval", "predict", "resume"]))
    words = {
        "eval": ["eval", str(run)],
        "predict": ["predict", str(run), picture, "--no-sheet"],
        "resume": ["train", "--resume", str(run)],
    }[verb]
    # What the page says of data and classes leads to those.
    return Call(words, [*wrong, "classes", "coco", "masks", "data"])


def coco(ground: Ground, draw: Any) -> Call:
    """Annotations with wrong values."""
    page, folder = sets.coco_page(), ground.fresh("coco")
    wrong = ["coco.json", "images/", "--skip-bad-annotations"]
    for _ in range(draw(st.integers(1, 2))):
        place: Any = page
        while True:
            key = draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner or draw(st.integers(0, 5)) == 0:
                break
            place = inner
        how = draw(st.sampled_from(["value", "value", "value", "gone", "twice"]))
        if how == "gone":
            del place[key]
        elif how == "twice" and isinstance(place, list):
            place.append(copy.deepcopy(place[key]))
        else:
            place[key] = draw(values)
        if not page:
            break
    for i in range(1, 5):
        (folder / "images").mkdir(exist_ok=True)
        (folder / "images" / f"{i}.png").hardlink_to(ground.root / "coco" / "images" / f"{i}.png")
    text = json.dumps(page)
    if draw(st.integers(0, 19)) == 0:
        text = text[: draw(st.integers(0, len(text)))]
    (folder / "coco.json").write_text(text)
    return Call(
        [
            "eval",
            str(ground.root / f"run_{draw(st.sampled_from(['detect', 'segment']))}"),
            "--data",
            str(folder / "coco.json"),
            *draw(st.sampled_from([[], ["--skip-bad-annotations"]])),
        ],
        wrong,
    )


def label_map(ground: Ground, draw: Any) -> Call:
    """Lists of classes with wrong lines."""
    name = draw(st.sampled_from(["classes.txt", "objectInfo150.csv", "palette.txt", "class_dict.csv", "labelmap.txt"]))
    sound = {
        "classes.txt": ["0 ground", "1 cell"],
        "objectInfo150.csv": ["Idx,Ratio,Train,Val,Stuff,Name", "1,0.1,1,1,1,ground", "2,0.1,1,1,1,cell"],
        "palette.txt": ["0 0 0 ground", "255 0 0 cell"],
        "class_dict.csv": ["name,r,g,b", "ground,0,0,0", "cell,255,0,0"],
        "labelmap.txt": ["# label:color_rgb:parts:actions", "ground:0,0,0::", "cell:255,0,0::"],
    }
    lines = list(sound[name])
    for _ in range(draw(st.integers(1, 2))):
        number = draw(st.integers(0, len(lines) - 1))
        how = draw(st.sampled_from(["word", "word", "line", "gone", "twice"]))
        if how == "word":
            words = lines[number].replace(",", " ").replace(":", " ").split() or [""]
            word = draw(st.sampled_from(words))
            lines[number] = lines[number].replace(word, str(draw(values)))
        elif how == "line":
            lines[number] = str(draw(values))
        elif how == "twice":
            lines.append(lines[number])
        elif len(lines) > 1:
            del lines[number]
    folder = ground.fresh("masks")
    for part in ("images", "masks"):
        shutil.copytree(ground.root / "masks" / part, folder / part)
    encoding = draw(st.sampled_from(["utf-8"] * 8 + ["utf-16", "latin-1"]))
    (folder / name).write_bytes("\n".join(lines).encode(encoding, errors="replace"))
    words = ["eval", str(ground.root / "run_segment"), "--data", str(folder)]
    return Call(words, [name, "masks"])


def command(ground: Ground, draw: Any) -> Call:
    """Words of a command that were left out, doubled, or are others."""
    root = ground.root
    picture, run = str(root / "classes" / "a" / "0.png"), str(root / "run_classify")
    sound = [
        ["predict", run, picture, "--no-sheet", "--top", "1", "--batch-size", "2"],
        ["predict", str(root / "run_detect"), picture, "--no-sheet", "--score", "0.5", "--tile", "32"],
        ["predict", str(root / "run_segment"), picture, "--no-sheet", "--crop", "32", "32"],
        ["eval", run, "--data", str(root / "classes"), "--split", "none", "--batch-size", "2", "--workers", "0"],
        ["eval", run, "--knn", "--k", "2"],
        ["explain", run, picture, "--out", str(root / "wrong" / "explained.png")],
        ["info", "xcit_nano_12_p8_224"],
        ["models", "xcit_nano*", "--weights"],
        ["count", "xcit_nano_12_p8_224", "--img-size", "64"],
        ["convert", str(root / "run_classify" / "best.safetensors"), "--identify"],
        ["train", str(root / "classify.yaml"), "--dry-run", "--out", str(root / "plan")],
    ]  # fmt: skip
    words = list(draw(st.sampled_from(sound)))
    # Where no picture can be read, each was named in a line of its own before.
    wrong = [*words, "argument", "which recipe?", "is a readable picture"]
    for _ in range(draw(st.integers(1, 2))):
        number = draw(st.integers(1, len(words) - 1))
        how = draw(st.sampled_from(["value", "value", "gone", "twice", "letter"]))
        before = words[number]
        if how == "gone" and len(words) > 2:
            del words[number]
        elif how == "twice":
            words.insert(number, before)
        elif how == "letter":
            words[number] = before[:-1] + draw(st.sampled_from("xo1"))
        else:
            words[number] = str(draw(values)).replace("\0", "")[:600]
        wrong += [before, words[min(number, len(words) - 1)]]
    return Call(words, wrong)


KINDS: dict[str, Case] = {
    "recipe": recipe,
    "run folder": run_folder,
    "coco": coco,
    "label map": label_map,
    "command": command,
}

"""One entry of the catalogue, and what makes one."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from transept.data.classification.transforms import Preprocessing
from transept.models.registry import find_model

Task = Literal["classification", "robust classification", "self-supervised", "detection", "segmentation", "teacher"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A page that only a person with a browser gets the file from."""

    url: str
    site: str
    code: str = ""
    """Access code that the site asks for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One released file. `model.tag` is its full name, in timm's words where timm has it."""

    model: str
    """The registered model that it is for; for dense files without the image size, as they were published."""
    tag: str
    task: Task = "classification"
    method: str = ""
    """The dense model around the backbone, e.g. `mask_rcnn`."""
    origin: str = "official"
    """Who wrote the file: the authors, or the code base that ported, mirrored or trained it."""
    url: str = ""
    """Where it can be fetched from; empty where there are only pages."""
    pages: tuple[Page, ...] = ()
    file: str
    """Its name in the cache."""
    sha256: str = ""
    """The first digits of its SHA-256, where the publisher stated them."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Published scores in percent, the main one first, by the names in `METRICS`."""
    source: str = ""
    """Who printed the scores."""
    licence: str
    """"" where none is stated."""
    preprocessing: Preprocessing
    """The one that the scores were taken with."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the family's config that differ from the model's."""
    note: str = ""
    unreadable: str = ""
    """What the file is, where it cannot be loaded here: the rest of a sentence that begins with its name."""

    @property
    def name(self) -> str:
        return f"{self.model}.{self.tag}"

    @property
    def download(self) -> Literal["direct", "share page"]:
        return "direct" if self.url else "share page"

    @property
    def format(self) -> str:
        """The kind of file, as `Contents.format` says it of a file that is there."""
        return next((form for suffix, form in _FORMATS.items() if self.file.endswith(suffix)), "PyTorch")

    @property
    def top1(self) -> float | None:
        """ImageNet-1k validation accuracy in percent."""
        return self.scores.get("top1")

    @property
    def registered(self) -> str:
        """The full name of its model; of a teacher, which is none of ours, its own."""
        return self.model if self.task == "teacher" else _registered(self.model)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        plain = {
            "name": self.name,
            "download": self.download,
            "format": self.format,
            "top1": self.top1,
        } | dataclasses.asdict(self)
        plain["preprocessing"] = self.preprocessing.as_dict()
        plain["pages"] = list(plain["pages"])
        return plain


_FORMATS = {
    ".safetensors": "safetensors",
    ".pdparams": "PaddlePaddle",
    ".ckpt": "MindSpore",
    ".h5": "Keras",
    ".zip": "zip archive",
    ".pb": "TensorFlow",
}
"""By the end of a file's name; all others are PyTorch's."""


@cache
def _registered(name: str) -> str:
    return find_model(name)[0]


FB = "https://dl.fbaipublicfiles.com"
XCIT_RUNS = ((224, "", "in1k"), (224, "_dist", "dist_in1k"), (384, "_dist", "dist_in1k"))
"""Size, mark of the official file, and tag of the three classifiers of each XCiT."""


def direct(url: str, **facts: Any) -> Checkpoint:
    named: dict[str, Any] = {"file": url.rsplit("/", 1)[-1]} | facts
    return Checkpoint(url=url, **named)


def whole(img_size: int) -> Preprocessing:
    """Crop ratio 1.0: XCiT and CaiT."""
    return Preprocessing(img_size=(img_size, img_size))


def cropped(img_size: int) -> Preprocessing:
    """224 of 256, and as much of other sizes: CAT, CrossFormer, BiXT and the smaller CrossViT."""
    return Preprocessing(img_size=(img_size, img_size), crop_pct=0.875)

"""The model card: the page that a repository of weights opens with."""

import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from transept.models.backbone import Family
from transept.weights.catalogue.records import Checkpoint

MARKER = "<!-- Written by transept. Remove this line to keep your own text when the model is saved again. -->"

_ORIGIN = """
The weights come from `{name}` ([file]({url})), possibly trained further since. {score} Its licence is {licence}.
"""
_SCORE = """That checkpoint's published score is
**{top1} %** top-1 on the validation set of ImageNet-1k ({source}); it was measured for the checkpoint, not for this
file."""
_NO_ORIGIN = """
No published checkpoint is recorded as the origin of these weights, and no score is claimed.
"""
_USE = {
    "classify": "(best,) = model.predict([picture])  # RGB pictures (PIL) of any size; names: model.items(best)",
    "features": "levels = model(images)  # `b {c} {h} {w}` normalised images to maps, finest first",
    "logits": "logits = model(images)  # `b {c} {h} {w}` normalised images to `b {num_classes}`",
    "pooled": "features = model(images)  # `b {c} {h} {w}` normalised images to pooled features",
}


def model_card(
    architecture: str,
    family: Family,
    *,
    use: str,
    num_classes: int,
    preprocessing: dict[str, Any],
    origin: Checkpoint | None,
    licence: str | None,
    datasets: Sequence[str] | None,
    repo_id: str,
    in_timm: bool,
) -> str:
    """The text of README.md.

    Args:
        architecture: the variant's name.
        use: what the model gives: "classify" (labels of pictures), "logits", "pooled" or "features" (a pyramid).
        num_classes: size of the logits, 0 for none.
        preprocessing: in the words of timm's `pretrained_cfg`.
        origin: the published weights that the model started from.
        licence: of the weights; default: the origin's.
        datasets: names on the hub of what it was trained on; default: the origin's.
        repo_id: what `from_pretrained` is given.
        in_timm: timm's own model of this name takes the weights.
    """
    licence = licence or (origin.licence if origin else None)
    if datasets is None and origin and "in1k" in origin.tag:
        datasets = ["imagenet-1k"]
    channels, height, width = preprocessing["input_size"]
    sizes = dict(c=channels, h=height, w=width, num_classes=num_classes)
    task = "image-classification" if use in ("classify", "logits") else "image-feature-extraction"
    # The hub's identifiers are lower-case SPDX names; what is none of them is "other" with its name.
    hub_name = None if licence is None else licence.lower() if licence.lower() in _LICENCES else "other"
    data = ModelCardData(
        license=hub_name,
        license_name=licence if hub_name == "other" else None,
        library_name="transept",
        pipeline_tag=task,
        tags=["transept", family.name.lower(), "vision-transformer", *(["timm"] if in_timm else [])],
        datasets=list(datasets) if datasets else None,
    )
    note = family.notes.get(architecture)
    text = f"""
{MARKER}

# {architecture}

{family.name}{f" with {num_classes} classes" if num_classes else ", without a classifier"}. Paper: {family.paper}.
{f"Note: {note}." if note else ""}

## Weights
{_origin(origin)}
Licence: {licence or "not stated"}.

## Preprocessing

{_describe(preprocessing)}

## Use

```python
import transept

model = transept.from_pretrained({repo_id!r})
{_USE[use].format(**sizes)}
```
"""
    if in_timm:
        source = f"hf-hub:{repo_id}" if "/" in repo_id else f"local-dir:{repo_id}"
        text += f"""
timm's own {architecture} takes the weights too:

```python
import timm

model = timm.create_model({source!r}, pretrained=True).eval()
```
"""
    text = re.sub(r"\n{3,}", "\n\n", text)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n{text}"))


def _origin(origin: Checkpoint | None) -> str:
    if origin is None:
        return _NO_ORIGIN
    score = "" if origin.top1 is None else _SCORE.format(top1=origin.top1, source=origin.source)
    url = origin.url or origin.pages[0].url
    return _ORIGIN.format(name=origin.name, url=url, score=score, licence=origin.licence or "not stated")


def _describe(preprocessing: dict[str, Any]) -> str:
    _, height, width = preprocessing["input_size"]
    crop = preprocessing["crop_pct"]
    side = f"{round(height / crop)} pixels" if height == width else f"{round(height / crop)} x {round(width / crop)}"
    return (
        f"Resize {'the shorter side' if height == width else ''} to {side} ({preprocessing['interpolation']}), crop "
        f"the centre {height} x {width} (crop ratio {crop}), scale to 0..1, subtract the mean "
        f"{_numbers(preprocessing['mean'])}, divide by the standard deviation {_numbers(preprocessing['std'])}."
    ).replace("  ", " ")


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(map(str, values))


_LICENCES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "gpl-3.0", "lgpl-3.0", "mpl-2.0", "openrail", "unknown", "other",
}  # fmt: skip

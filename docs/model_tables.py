"""Directives for the pages of families: what they show is read from the package while the site is built.

`{configurations} CAT`, `{costs} CAT`, `{results} CAT` are tables of a family's variants, of what they cost beside
what was printed, and of their published detectors and segmenters. `{papermap} CAT` is the list "section of the paper,
class" of the family's file, and `{departures} CAT` what its docstring says after
that list. `{choice}` is the table of all variants and of six models of timm, with the speeds that
`benchmarks/variants.py` measured.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from transept.bench.figure import top1
from transept.bench.speeds import kept_speeds, speeds_machine
from transept.cli.shared.tables import card, scores_as_printed
from transept.cost.kept import cost_of
from transept.models.backbone import Family
from transept.models.registry import FAMILIES, find_model
from transept.weights.catalogue.records import CHECKPOINTS, checkpoints_of


class _OfFamily(SphinxDirective):
    """A directive whose argument is the name of a family, and whose content is Markdown."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        names = {family.name: family for family in FAMILIES}
        if self.arguments[0] not in names:
            raise self.error(f"{self.name}: no family {self.arguments[0]!r}; there are {', '.join(names)}")
        return self.parse_text_to_nodes(self.text(names[self.arguments[0]]))

    def text(self, family: Family) -> str:
        raise NotImplementedError


class Configurations(_OfFamily):
    """What the variants differ in; names that differ in the image size alone share a row."""

    def text(self, family: Family) -> str:
        rows = []
        for config, named in groupby(family.variants.items(), key=lambda item: _without_size(item[1])):
            sizes = " ".join(str(config.img_size[0]) for _, config in named)
            name = next(name for name, other in family.variants.items() if _without_size(other) == config)
            rows.append({"variant": f"`{re.sub(r'_(224|384|448)$', '', name)}`", "size": sizes, **config})
        keys = list(dict.fromkeys(key for row in rows for key in row))
        told = [key for key in keys if len({row[key] for row in rows if key in row}) > 1]
        return _table(told, [[_plain(row.get(key, "")) for key in told] for row in rows])


class Costs(_OfFamily):
    def text(self, family: Family) -> str:
        heads = ["variant", "parameters, M", "printed", "MACs, G", "printed", "ImageNet-1k top-1, published"]
        rows = []
        sources = {}
        for name in family.variants:
            item = card(name, cost_of(name))
            printed = item["published"]
            if printed["source"]:
                sources[printed["source"]] = None
            scores = [w["top1"] for w in item["weights"] if w["origin"] == "official" and w["top1"]]
            rows.append(
                [
                    f"`{name}`",
                    f"{item['parameters'] / 1e6:.3f}",
                    _in(printed["parameters"], 1e6),
                    f"{item['macs'] / 1e9:.3f}",
                    _in(printed["macs"], 1e9),
                    " / ".join(map(str, dict.fromkeys(scores or filter(None, [printed["top1"]])))) or "-",
                ]
            )
        notes = "".join(f"\n`{name}`: {note}\n" for name, note in family.notes.items())
        return _table(heads, rows) + f"\n\nPrinted by: {', '.join(sources)}.\n{notes}"


class Results(_OfFamily):
    """Published detectors and segmenters; scores as the authors state them."""

    def text(self, family: Family) -> str:
        rows = [
            [f"`{entry.name}`", scores_as_printed(entry.scores)]
            for entry in CHECKPOINTS
            if entry.task in ("detection", "segmentation") and find_model(entry.model)[1] is family
        ]
        return _table(["checkpoint", "published"], rows)


GOOD_AT = {
    "CAT": "dense tasks at fixed sizes; published detectors and segmenters",
    "CabViT": "few parameters at batch 1; no published weights, so for training from scratch",
    "CrossFormer": "accuracy for its cost, dense tasks at any size; weights on share pages",
    "XCiT": "large pictures, of any size: time grows with the pixels; most weights, DINO, detectors",
    "CaiT": "classification at its best, from 224 to 448; time grows with the square of the pixels",
    "CrossViT": "classification of pictures of one size; two branches to look into",
    "BiXT": "long sequences: few latents read many tokens",
}


class Choice(SphinxDirective):
    """Every variant and timm's models: published accuracy, measured speed, memory, size, licence of the weights."""

    def run(self) -> list[nodes.Node]:
        speeds, machine = kept_speeds(), speeds_machine()
        heads = ["model", "top-1", "params, M", "MACs, G"]
        heads += [f"{form}, {batch}" for batch in (1, 8) for form in ("eager", "fast")] + ["MiB", "licence", "good at"]
        rows = []
        for name, speed in speeds.items():
            ours = speed.source == "transept"
            score = top1(name)
            released = [entry for entry in checkpoints_of(name) if entry.top1] if ours else []
            family = find_model(name)[1].name if ours else ""
            rows.append(
                [
                    f"`{name}`" if ours else f"timm's `{name}`",
                    f"{score:.1f}" if score else "-",
                    f"{speed.parameters / 1e6:.1f}",
                    f"{speed.macs / 1e9:.2f}",
                    *(
                        f"{rate:.3g}" if (rate := speed.images_per_second[form].get(batch)) else "-"
                        for batch in (1, 8)
                        for form in ("eager", "fast")
                    ),
                    f"{speed.memory['fast'][1]:.0f}",
                    released[0].licence if released else "see timm" if not ours else "none released",
                    GOOD_AT[family] if ours else "",
                ]
            )
        about = (
            f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}, timm {machine['timm']}; "
            f"eager in float32, fast in {machine['fast']} (ours fused)"
        )
        return self.parse_text_to_nodes(f"{about}.\n\n{_table(heads, rows)}")


class PaperMap(_OfFamily):
    def text(self, family: Family) -> str:
        return "```text\n" + _docstring(family)[0] + "\n```"


class Departures(_OfFamily):
    def text(self, family: Family) -> str:
        return _docstring(family)[1]


def _docstring(family: Family) -> tuple[str, str]:
    """The list of sections of the paper, and what follows it."""
    module = inspect.getmodule(family.classifier)
    paragraphs = (inspect.getdoc(module) or "").split("\n\n")
    at = next(i for i, paragraph in enumerate(paragraphs) if "VARIANTS" in paragraph)
    # Markdown takes a line right behind a list for a part of its last point.
    rest = re.sub(r"(?m)^(- .*(?:\n  .*)*)\n(?=\S)(?!- )", r"\1\n\n", "\n\n".join(paragraphs[at + 1 :]))
    return paragraphs[at], rest


def _without_size(config: Any) -> dict[str, Any]:
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {key: value for key, value in values.items() if key != "img_size"}


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _in(value: int | None, unit: float) -> str:
    return f"{value / unit:.6g}" if value else "-"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def setup(app: Sphinx) -> dict[str, bool]:
    for name, directive in (
        ("configurations", Configurations),
        ("costs", Costs),
        ("results", Results),
        ("papermap", PaperMap),
        ("departures", Departures),
    ):
        app.add_directive(name, directive)
    app.add_directive("choice", Choice)
    return {"parallel_read_safe": True}

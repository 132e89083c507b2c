"""A picture explained: which maps of a model to show, and how a sheet arranges them."""

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from PIL import Image

from transept.data.classification.transforms import Preprocessing, eval_transform
from transept.data.images import as_shown
from transept.errors import UsageError
from transept.explain.attention import (
    GRAD_CAM,
    ROLLOUT,
    AttentionMap,
    attention_kinds,
    attention_maps,
    has_token_maps,
)
from transept.explain.page import Panel, Row, draw_attention
from transept.tasks.task import Picture, Task, as_picture

_ROWS, _COLUMNS = 6, 8
_FINE = 8
"""Rows and columns that a layer's map has at least to stand for its kind, where there is one."""
_TITLES = {
    "self": "Self-attention",
    "cross-covariance": "Cross-covariance attention, channel to channel",
    "cross-block": "Attention across blocks",
    ROLLOUT: "Rollout",
    GRAD_CAM: "Grad-CAM",
}
"""Where it is not the kind's own name."""


def title_of(kind: str) -> str:
    """The heading of a kind of attention, e.g. "Class attention"."""
    return _TITLES.get(kind, f"{kind.capitalize()} attention")


class Explanation:
    """A picture as a model sees it, and the maps of it that were asked for.

    Args:
        task: a classifier, or a feature extractor, whose picture has no classes.
        picture: RGB, or bytes `c H W`, of any size.
        token: the pixel (x, y) of the picture whose token's maps are wanted; None: the middle of what the model sees.

    Raises:
        UsageError: the token lies outside of what the model sees.
    """

    def __init__(self, task: Task, picture: Picture, token: Sequence[int] | None = None) -> None:
        self.task = task
        self.best = task.best(picture, 3) if task.classes else None
        image = eval_transform(task.preprocessing)(as_picture(picture, task.in_chans))
        self.image = image[None].to(next(task.parameters()).device)
        self.shown: list[AttentionMap] = []
        shown = as_shown(picture)
        left, top, right, bottom = box = _seen(shown, task.preprocessing)
        self.view = shown.resize(
            (max(round(right - left), 1), max(round(bottom - top), 1)), Image.Resampling.BICUBIC, box
        )
        x, y = ((left + right) / 2, (top + bottom) / 2) if token is None else (token[0] + 0.5, token[1] + 0.5)
        if token and not (left <= x < right and top <= y < bottom):
            first, last = (
                (math.ceil(left - 0.5), math.ceil(top - 0.5)),
                (math.ceil(right - 1.5), math.ceil(bottom - 1.5)),
            )
            raise UsageError(
                f"--token {token[0]} {token[1]} lies outside of what the model sees of the picture, "
                f"x from {first[0]} to {last[0]} and y from {first[1]} to {last[1]}"
            )
        self.chosen = token is not None
        """Somebody chose the token."""
        self.mark = (x - left) / (right - left), (y - top) / (bottom - top)
        self.token = int(self.mark[0] * self.image.shape[-1]), int(self.mark[1] * self.image.shape[-2])
        """In pixels of the model's image."""

    @property
    def named(self) -> list[tuple[str, float]]:
        """The three most probable classes and their probabilities; none where the model knows no classes."""
        return [] if self.best is None else [(item.label, item.score) for item in self.task.items(self.best)]

    @property
    def marked(self) -> bool:
        return any(has_token_maps(self.task, shown.kind) for shown in self.shown)

    def overview(self) -> list[Row]:
        """One layer of each kind, the deepest with a fine enough map; then what explains the whole model.

        Raises:
            UsageError: the family shows no attention, and without classes there is no Grad-CAM.
        """
        rows, last = [], []
        for kind in attention_kinds(self.task):
            if kind in (ROLLOUT, GRAD_CAM):
                last += [panel for row in self._rows_of(kind, None, None) for panel in row.panels]
                continue
            layers = self._layers(kind, None)
            fine = [layer for layer in layers if min(layer[0].grid) >= _FINE]
            rows.append(self._row(fine[-1] if fine else max(reversed(layers), key=lambda layer: layer[0].grid)))
        if not rows and not last:
            raise UsageError("the model's family shows no attention, and a model without classes has no Grad-CAM")
        return [*rows, Row("Through the whole model", last)] if last else rows

    def rows_of(self, kind: str, blocks: Sequence[int] | None = None, head: int | None = None) -> list[Row]:
        """The layers of a kind, the last six where they are not chosen, with their heads.

        Raises:
            UsageError: no such kind, layer or head, or a token where the kind has one map for all of them.
        """
        if self.chosen and kind in attention_kinds(self.task) and not has_token_maps(self.task, kind):
            raise UsageError(f"{kind} asks for no token; leave out --token")
        return self._rows_of(kind, blocks, head)

    def _rows_of(self, kind: str, blocks: Sequence[int] | None, head: int | None) -> list[Row]:
        if kind in (ROLLOUT, GRAD_CAM) and head is not None:
            raise UsageError(f"{kind} has no heads; leave out --head")
        if kind == GRAD_CAM:
            return self._grad_cam(blocks)
        layers = self._layers(kind, blocks)
        if kind == ROLLOUT:
            return [Row(title_of(kind), [self._panel(layers[0][0], 0, "rollout", smooth=True)])]
        if head is None:
            return [self._row(layer) for layer in (layers if blocks else layers[-_ROWS:])]
        heads = min(layer[0].heads for layer in layers)
        if not 0 <= head < heads:
            raise UsageError(f"--head {head}: these layers have {heads} heads, 0 to {heads - 1}")
        panels = [self._panel(shown, head, _where(shown)) for layer in layers for shown in layer]
        chunks = [panels[i : i + _COLUMNS] for i in range(0, len(panels), _COLUMNS)]
        return [Row(f"{title_of(kind)}, head {head}" if i == 0 else "", chunk) for i, chunk in enumerate(chunks)]

    def draw(self, rows: Sequence[Row], path: Path) -> None:
        """See `draw_attention`."""
        draw_attention(self.view, rows, path, best=self.named, token=self.mark if self.marked else None)

    def _layers(self, kind: str, blocks: Sequence[int] | None) -> list[list[AttentionMap]]:
        """The maps of each layer: one, or in CabViT another for each digest."""
        token = self.token if has_token_maps(self.task, kind) else None
        maps = attention_maps(self.task, self.image, kind, token=token, blocks=blocks)
        return [list(layer) for _, layer in groupby(maps, key=lambda shown: shown.name)]

    def _row(self, layer: list[AttentionMap]) -> Row:
        first = layer[0]
        title = f"{title_of(first.kind)}, {_where(first)}"
        if len(layer) > 1 or first.kind == "cross-block":
            return Row(
                f"{title}, mean of {first.heads} heads", [self._panel(shown, None, _source(shown)) for shown in layer]
            )
        heads = "channel" if first.kind == "cross-patch" else "head"
        panels = [self._panel(first, None, "mean")] if first.heads > 1 and first.over == "image" else []
        peaks = first.maps[0].amax(dim=(1, 2))
        chosen = peaks.topk(min(first.heads, _COLUMNS - len(panels))).indices.sort().values.tolist()
        panels += [self._panel(first, head, f"{heads} {head}") for head in chosen]
        if len(chosen) < first.heads:
            title += f": the {len(chosen)} of {first.heads} {heads}s with the highest weights"
        return Row(title, panels)

    def _grad_cam(self, blocks: Sequence[int] | None) -> list[Row]:
        maps = [
            attention_maps(self.task, self.image, GRAD_CAM, blocks=blocks, target=label)
            for label in ([None] if self.best is None else self.best.labels.tolist())
        ]
        rows = []
        for layer in zip(*maps, strict=True):
            names = [name for name, _ in self.named]
            panels = [
                self._panel(shown, 0, "Grad-CAM", smooth=True)._replace(note=name)
                for shown, name in zip(layer, names, strict=True)
            ]
            rows.append(Row(f"{title_of(GRAD_CAM)}, {layer[0].name}", panels))
        return rows

    def _panel(self, shown: AttentionMap, head: int | None, title: str, *, smooth: bool = False) -> Panel:
        if not any(shown is other for other in self.shown):
            self.shown.append(shown)
        maps = shown.maps[0]
        values = maps.mean(dim=0) if head is None else maps[head]
        if smooth:
            note = ""
        elif shown.kind == "cross-block":
            note = f"sum {_percent(float(values.sum()))}"
        else:
            note = f"max {_percent(float(values.max()))}"
        return Panel(title, note, values.cpu().numpy(), smooth, shown.over == "image")


def _seen(picture: Image.Image, preprocessing: Preprocessing) -> tuple[float, float, float, float]:
    """The part of the picture that the model sees: left, top, right, bottom."""
    resize, crop, *_ = eval_transform(preprocessing).transforms
    resized = resize(picture)
    width, height = crop(resized).size
    across, down = picture.width / resized.width, picture.height / resized.height
    left, top = round((resized.width - width) / 2), round((resized.height - height) / 2)
    return left * across, top * down, (left + width) * across, (top + height) * down


def _where(shown: AttentionMap) -> str:
    staged = shown.name.startswith(("layer", "stage"))
    where = f"stage {shown.stage}, block {shown.block}" if staged else f"block {shown.block}"
    return where if shown.source is None else f"{where}, {_source(shown)}"


def _source(shown: AttentionMap) -> str:
    return "tokens" if shown.source is None else f"digest of {shown.source}"


def _percent(share: float) -> str:
    return f"{share:.{0 if share >= 0.1 else 1}%}"

"""Sliding-window inference: logits of an image of any size from windows of one size."""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from transept.errors import UsageError
from transept.ops.interpolation import Size, Span, resize_part, source_span


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side: every `stride` pixels, the last one shifted back to end with the image."""
    count = math.ceil(max(side - window, 0) / stride) + 1
    return [min(i * stride, max(side - window, 0)) for i in range(count)]


def sliding_logits(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    crop: tuple[int, int],
    stride: tuple[int, int],
    *,
    batch_size: int = 4,
    device: torch.device | str | None = None,
) -> Tensor:
    """Logits `b k H W` of `images` `b 3 H W`: those of all windows summed, and divided by how many cover a pixel.

    Besides the images and the result, only `batch_size` windows and their logits are in memory at a time, whatever
    the size of the image. A side shorter than the window is taken whole.

    Args:
        model: images `b 3 h w` to logits `b k h w`.
        crop: height and width of the windows.
        stride: from one window to the next; no more than the window, or pixels would be left out.
        batch_size: windows of one call of `model`.
        device: where the sum is kept; default: where `model` gives the logits.

    Raises:
        UsageError: a stride that leaves gaps, or is no positive number.
    """
    check_windows(crop, stride)
    size = (images.shape[-2], images.shape[-1])
    height, width = (min(side, window) for side, window in zip(size, crop, strict=True))
    rows, columns = (window_starts(*of_side) for of_side in zip(size, crop, stride, strict=True))
    all_corners = list(product(range(len(images)), rows, columns))
    total = None
    for corners in (all_corners[i : i + batch_size] for i in range(0, len(all_corners), batch_size)):
        windows = torch.stack([images[i, :, y : y + height, x : x + width] for i, y, x in corners])
        logits = model(windows)
        if total is None:
            total = logits.new_zeros(len(images), logits.shape[1], *size, device=device or logits.device)
        for n, (i, y, x) in enumerate(corners):
            total[i, :, y : y + height, x : x + width] += logits[n].to(total.device)
        del logits  # the next call of the model would find them in memory
    assert total is not None
    down, across = _covers(size[0], rows, height), _covers(size[1], columns, width)
    return total.div_((down[:, None] * across).to(total.device))


class WindowRows:
    """`sliding_logits` of some columns of one image, row by row from the top: what lies above is forgotten.

    In memory is one row of windows, and the rows that are asked for.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        image: Tensor,
        crop: Size,
        stride: Size,
        *,
        columns: Span | None = None,
        batch_size: int = 4,
        device: torch.device | str | None = None,
    ) -> None:
        """
        Args:
            model: windows `b c h w` to logits `b k h w`.
            image: `c H W`.
            crop: see `sliding_logits`.
            stride: the same.
            columns: the first, and one behind the last; default: all.
            batch_size: see `sliding_logits`.
            device: the same.

        Raises:
            UsageError: a stride that leaves gaps, or is no positive number.
        """
        check_windows(crop, stride)
        height, width = image.shape[-2:]
        self.columns = columns or (0, width)
        self._model, self._image, self._batch_size, self._device = model, image, batch_size, device
        self._window = min(height, crop[0]), min(width, crop[1])
        self._tops, lefts = window_starts(height, crop[0], stride[0]), window_starts(width, crop[1], stride[1])
        self._lefts = [x for x in lefts if x < self.columns[1] and x + self._window[1] > self.columns[0]]
        self._down = _covers(height, self._tops, self._window[0])
        self._across = _covers(width, lefts, self._window[1])[slice(*self.columns)]
        self._next = 0  # the next row of windows
        self._sum: Tensor | None = None  # k rows columns, of the image's rows from `_first` on, zeros from `_end` on
        self._first = self._end = 0

    def rows(self, start: int, stop: int) -> Tensor:
        """Logits `1 k rows columns` of these rows, none of which may lie above the `start` of an earlier call."""
        if start < self._first:
            raise ValueError(f"row {start} is forgotten; rows are left from {self._first} on")
        while self._next < len(self._tops) and self._tops[self._next] < stop:
            top, self._next = self._tops[self._next], self._next + 1
            if top + self._window[0] > start:
                self._add_windows(top, start, stop)
        assert self._sum is not None
        covers = (self._down[start:stop, None] * self._across).to(self._sum.device)
        return (self._sum[:, start - self._first : stop - self._first] / covers)[None]

    def _add_windows(self, top: int, start: int, stop: int) -> None:
        """Add a row of windows, and let the sum begin with row `start`."""
        height, width = self._window
        for i in range(0, len(self._lefts), self._batch_size):
            some = self._lefts[i : i + self._batch_size]
            windows = torch.stack([self._image[:, top : top + height, x : x + width] for x in some])
            # Not kept in a name: the next call of the model would find them in memory.
            self._add(self._model(windows), some, top, start, stop)

    def _add(self, logits: Tensor, lefts: Sequence[int], top: int, start: int, stop: int) -> None:
        (height, width), (left, right) = self._window, self.columns
        self._make_room(logits, start, top + height, 2 * (stop - start))
        assert self._sum is not None
        upper = max(top, start)
        place = self._sum[:, upper - start : top + height - start]
        for x, part in zip(lefts, logits.to(self._sum.device), strict=True):
            low, high = max(x, left), min(x + width, right)
            place[..., low - left : high - left] += part[:, upper - top :, low - x : high - x]

    def _make_room(self, logits: Tensor, start: int, end: int, more: int) -> None:
        """Let the sum hold rows `start` to `end`. Where it is made, it has `more`, to be made once."""
        old, shift, kept = self._sum, start - self._first, max(self._end - start, 0)
        if old is None or end - start > old.shape[1]:
            rows = min(end - start + more, self._image.shape[-2] - start)
            columns = self.columns[1] - self.columns[0]
            self._sum = logits.new_zeros(logits.shape[1], rows, columns, device=self._device or logits.device)
            if old is not None:
                self._sum[:, :kept] = old[:, shift : shift + kept]
        elif shift:
            for i in range(0, kept, shift):  # pieces that do not overlap the place they go to
                size = min(shift, kept - i)
                old[:, i : i + size] = old[:, i + shift : i + shift + size]
            old[:, kept:] = 0
        self._first, self._end = start, max(end, self._end)


class ResizedWindows:
    """Some columns of `resize_map` of the logits that `WindowRows` gives, row by row from the top."""

    def __init__(
        self, model: Callable[[Tensor], Tensor], image: Tensor, size: Size, columns: Span, **options: Any
    ) -> None:
        """
        Args:
            model: see `WindowRows`.
            image: `c h w`.
            size: height and width that logits are resized to.
            columns: of these: the first, and one behind the last.
            options: of `WindowRows`.
        """
        self._whole = (image.shape[-2], image.shape[-1])
        self._size, self._columns = size, columns
        self._source = source_span(self._whole[1], size[1], columns)
        self._windows = WindowRows(model, image, columns=self._source, **options)

    def rows(self, start: int, stop: int) -> Tensor:
        """`1 k rows columns`; see `WindowRows.rows`."""
        first, last = source_span(self._whole[0], self._size[0], (start, stop))
        part = self._windows.rows(first, last)
        return resize_part(part, (first, self._source[0]), self._whole, self._size, (start, stop), self._columns)


def check_windows(crop: Sequence[int], stride: Sequence[int]) -> None:
    """Whether windows of a size leave no gaps.

    Raises:
        UsageError: a stride that does, or is no positive number.
    """
    for name, values in (("crop", crop), ("stride", stride)):
        if len(values) != 2 or min(values) < 1:
            raise UsageError(f"{name}={values} must be a positive height and width")
    if stride[0] > crop[0] or stride[1] > crop[1]:
        raise UsageError(f"stride={stride} is larger than crop={crop} and would leave pixels out; make it smaller")


def _covers(side: int, starts: Sequence[int], window: int) -> Tensor:
    """How many windows that begin there cover each pixel of a side.

    A pixel is covered by every pair of a row of windows and a column of windows that reach it.
    """
    pixels = torch.arange(side)
    return torch.stack([(pixels >= start) & (pixels < start + window) for start in starts]).sum(dim=0)

"""A picture with what is on it: the form in which detectors are taught and judged."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

from transept.data.reading import PLAIN, Reading
from transept.style import Color

Target = dict[str, Any]
"""The objects on a picture, n of them:

- `boxes`: `n 4`, x1 y1 x2 y2 in continuous pixels, inside the picture; floats
- `labels`: `n`, classes 0..; 64-bit
- `masks`: `n H W`, 8 bit, where they were asked for
- `iscrowd`: `n`, true for a region of many objects, which is neither learnt nor counted as a miss
- `area`: `n`, as annotated, in pixels
- `image_id`: the file's own
- `original_size`: height and width
"""


class DetectionSet(Sequence[tuple[tv_tensors.Image, Target]]):
    """Pictures (8 bits: RGB, `3 H W`, or other bands `c H W`) with what is on them, a `Target`."""

    reading: Reading = PLAIN
    """How files become pictures."""
    classes: list[str]
    palette: list[Color]
    """A colour for each class, to draw it with."""
    category_ids: list[int]
    """The file's id of each class, for results."""
    image_ids: list[int] | list[int | str]
    paths: list[Path]
    sizes: list[tuple[int, int]]
    """Height and width of each picture."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def classes_in(self, index: int) -> list[int]:
        """The class numbers of the objects of a picture, each once."""
        raise NotImplementedError

    def ground_truth(self) -> dict[str, Any]:
        """The whole set in COCO's form, with the file's ids, for evaluation."""
        raise NotImplementedError

    def _ground_truth(self, annotations: list[dict[str, Any]]) -> dict[str, Any]:
        images = [
            {"id": number, "file_name": path.name, "height": height, "width": width}
            for number, path, (height, width) in zip(self.image_ids, self.paths, self.sizes, strict=True)
        ]
        names = zip(self.category_ids, self.classes, strict=True)
        categories = [{"id": number, "name": name} for number, name in names]
        return {"images": images, "annotations": annotations, "categories": categories}


def make_sample(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    masks: np.ndarray | None,
    crowd: np.ndarray,
    area: np.ndarray,
    image_id: int | str,
) -> tuple[tv_tensors.Image, Target]:
    height, width = image.shape[:2]
    target: Target = {
        "boxes": tv_tensors.BoundingBoxes(  # pyright: ignore[reportCallIssue]
            torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4), format="XYXY", canvas_size=(height, width)
        ),
        "labels": torch.as_tensor(labels, dtype=torch.int64),
        "iscrowd": torch.as_tensor(crowd, dtype=torch.bool),
        "area": torch.as_tensor(area, dtype=torch.float32),
        "image_id": image_id,
        "original_size": torch.tensor([height, width]),
    }
    if masks is not None:
        target["masks"] = tv_tensors.Mask(torch.as_tensor(masks.astype(np.uint8)))
    return tv_tensors.Image(torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous()), target

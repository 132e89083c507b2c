"""`digits-scenes` as a detection set: ten digits, with the boxes and masks of their visible parts."""

from pathlib import Path
from typing import Any

import numpy as np
from torchvision import tv_tensors

from transept.data.detection.masks import mask_api
from transept.data.detection.target import DetectionSet, Target, make_sample
from transept.data.scenes import DIGITS, DigitScenes, scene_size
from transept.style import drawing_palette

SCENES = "digits-scenes"


class SceneDetection(DetectionSet):
    """`digits-scenes`: ten digits, with the boxes and masks of their visible parts."""

    def __init__(self, scenes: DigitScenes, *, masks: bool = True) -> None:
        self.scenes = scenes
        self.masks = masks
        self.classes = list(DIGITS)
        self.palette = drawing_palette(len(DIGITS))
        self.category_ids = list(range(1, len(DIGITS) + 1))
        self.image_ids = list(range(1, len(scenes) + 1))
        self.paths = [Path(f"{SCENES}-{scenes.split}-{scenes.seed}-{i:05d}.png") for i in range(len(scenes))]
        self.sizes = [scene_size(scenes.split, scenes.seed, i, scenes.options) for i in range(len(scenes))]

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, Target]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scene = self.scenes[index]
        return make_sample(
            scene.image,
            scene.boxes,
            scene.labels,
            scene.masks if self.masks else None,
            np.zeros(len(scene.labels), bool),
            scene.masks.sum((1, 2)),
            self.image_ids[index],
        )

    def classes_in(self, index: int) -> list[int]:
        return np.unique(self.scenes[index].labels).tolist()

    def ground_truth(self) -> dict[str, Any]:
        encode = mask_api().encode if self.masks else None
        annotations: list[dict[str, Any]] = []
        for image_id, scene in zip(self.image_ids, self.scenes, strict=True):
            for label, (x1, y1, x2, y2), mask in zip(scene.labels, scene.boxes.tolist(), scene.masks, strict=True):
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": self.category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                }
                if encode:
                    rle = encode(np.asfortranarray(mask.astype(np.uint8)))
                    annotation["segmentation"] = {"size": list(mask.shape), "counts": rle["counts"].decode()}
                annotations.append(annotation)
        return self._ground_truth(annotations)

"""Training a detector."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transept.data.detection.sets import load_detection_splits
from transept.data.detection.target import Target as Annotated
from transept.data.detection.transforms import (
    collate_detections,
    detection_eval_transform,
    detection_train_transform,
)
from transept.data.loading import AspectRatioBatchSampler, JointlyTransformedSet, repeat_factors
from transept.errors import TranseptError
from transept.heads.instances import Target
from transept.metrics.detection import DetectionMeter
from transept.metrics.loss import LossMeter
from transept.tasks.coco_results import to_coco_results
from transept.tasks.detect import Detector, create_detector
from transept.tasks.detect_methods import TwoStage
from transept.training.jobs.job import Job, Meter, Score
from transept.training.options.recipe import Recipe
from transept.training.processes.world import ALONE, World


class DetectJob(Job):
    """Pictures with boxes, and masks where the method learns them; a detector; and its average precision."""

    score = Score("map", "AP", "average precision of boxes")
    distributed = True
    unused_parameters = True  # a part of a batch may have no object for the heads of a second stage
    val_batch = 1  # as the published systems test: beside others a picture is padded more, and its boxes move a little

    def __init__(self, recipe: Recipe, world: World = ALONE) -> None:
        super().__init__(recipe, world)
        options = recipe.detect
        self.masks = "mask" in options.method
        self.splits = load_detection_splits(
            str(recipe.data),
            choice=recipe.choice(held_out=True, measures=False),
            val_fraction=recipe.val_fraction,
            masks=self.masks,
            keep_empty=options.keep_empty,
            skip_bad_annotations=recipe.skip_bad_annotations,
            scenes=recipe.scenes,
            reading=recipe.reading,
        )
        self.skipped = self.splits.skipped
        self.ground_truth = self.splits.val.ground_truth()
        if not any(not annotation.get("iscrowd") for annotation in self.ground_truth["annotations"]):
            raise TranseptError(f"the validation pictures of {recipe.data!r} have no objects; AP needs some")

    def build(self, *, load: bool) -> nn.Module:
        model, options = self.recipe.model, self.recipe.detect
        detector = create_detector(
            options.method,
            backbone=model.name,
            num_classes=len(self.splits.classes),
            classes=self.splits.classes,
            preprocessing=self.measured(options.preprocessing),
            width=options.width,
            in_chans=self.reading.channels,
            anchor_scale=options.anchor_scale,
            img_size=model.img_size,
            drop_path_rate=model.drop_path_rate,
            **model.options,
        )
        if options.rois is not None:
            assert isinstance(detector.stages, TwoStage)
            detector.stages = detector.stages.learning_from(options.rois)
        detector.reading = self.reading
        if load:
            self.start(detector)
        return detector

    def datasets(self, task: Detector) -> tuple[JointlyTransformedSet, JointlyTransformedSet]:
        transform = detection_train_transform(task.preprocessing, self.recipe.detect.augmentation)
        return (
            JointlyTransformedSet(self.splits.train, transform),
            JointlyTransformedSet(self.splits.val, detection_eval_transform(task.preprocessing)),
        )

    @property
    def sampling(self) -> np.ndarray | None:
        options, train = self.recipe.detect, self.splits.train
        if options.sampler == "none":
            return None
        return repeat_factors([train.classes_in(i) for i in range(len(train))], options.repeat_threshold)

    def sampler(self, *, epoch: int, batch: int) -> AspectRatioBatchSampler:
        return AspectRatioBatchSampler(
            self.splits.train.sizes,
            seed=self.recipe.seed,
            batch_size=self.part_size,
            start_epoch=epoch,
            start_batch=batch,
            weights=self.sampling,
            rank=self.world.rank,
            world_size=self.world.size,
        )

    def collate(self, task: Detector) -> Callable[[list[Any]], Any]:
        return partial(collate_targets, multiple_of=task.preprocessing.multiple_of)

    def meters(self) -> tuple[Meter, Meter]:
        return LossMeter(), DetectionMeter(self.ground_truth, masks=self.masks)

    def answers(self, task: Detector, outputs: Any, targets: Sequence[Target]) -> list[dict[str, Any]]:
        """The detections, in COCO's result format and in the pixels of the pictures as they are."""
        originals = [target.original_size or target.size for target in targets]
        instances = task.decode(outputs, [target.size for target in targets], originals)
        numbers = [target.image_id if target.image_id is not None else -1 for target in targets]
        return to_coco_results(instances, numbers, self.splits.category_ids, originals)


def collate_targets(
    samples: Sequence[tuple[Tensor, Annotated]], *, multiple_of: int = 32
) -> tuple[Tensor, list[Target]]:
    """Pictures padded to one size, `b 3 H W`, and what is to be learnt of each: crowds are left out."""
    batch = collate_detections(samples, multiple_of)
    sizes = [(int(height), int(width)) for height, width in batch.sizes]
    return batch.images, [_target(each, size) for each, size in zip(batch.targets, sizes, strict=True)]


def _target(annotated: Annotated, size: tuple[int, int]) -> Target:
    crowd = annotated.get("iscrowd")
    keep = torch.ones(len(annotated["boxes"]), dtype=torch.bool) if crowd is None else ~crowd
    masks = annotated.get("masks")
    height, width = annotated["original_size"].tolist()
    return Target(
        annotated["boxes"][keep],
        annotated["labels"][keep],
        size,
        None if masks is None else masks[keep].bool(),
        original_size=(height, width),
        image_id=annotated["image_id"],
    )

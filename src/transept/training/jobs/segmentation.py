"""Training a segmenter."""

from pathlib import Path

import numpy as np
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import to_pil_image

from transept.data.loading import EpochSampler, JointlyTransformedSet, make_joint_loader
from transept.data.segmentation.sets import load_segmentation_splits
from transept.data.segmentation.transforms import segmentation_eval_transform, segmentation_train_transform
from transept.errors import UsageError
from transept.heads.segmentation import CLASSIFIER_STD, SegmentationHead
from transept.metrics.loss import LossMeter
from transept.metrics.segmentation import SegmentationMeter
from transept.tasks.segment import Segmenter, create_segmenter
from transept.training.jobs.job import Job, Meter, Score
from transept.training.options.recipe import Recipe
from transept.training.processes.world import ALONE, World

_SAMPLES = 6


class SegmentJob(Job):
    """Pictures with masks, a segmenter, and its mean intersection over union."""

    score = Score("miou", "mIoU", "mean intersection over union")
    distributed = True

    def __init__(self, recipe: Recipe, world: World = ALONE) -> None:
        super().__init__(recipe, world)
        if recipe.segment.method == "upernet" and self.part_size == 1:
            raise UsageError(
                f"batch_size={recipe.batch_size} with accumulate={recipe.accumulate} computes one picture at a time, "
                "but the batch norm of upernet's smallest map needs two; lower accumulate or raise batch_size"
            )
        self.splits = load_segmentation_splits(
            str(recipe.data),
            reduce_zero_label=recipe.reduce_zero_label,
            val_fraction=recipe.val_fraction,
            skip_bad_images=recipe.skip_bad_images,
        )
        self.skipped = self.splits.skipped

    def build(self, *, load: bool) -> nn.Module:
        """`model.weights` are the backbone's: a classifier's, or any file that holds the backbone."""
        model, options = self.recipe.model, self.recipe.segment
        segmenter = create_segmenter(
            options.method,
            backbone=model.name,
            num_classes=len(self.splits.classes),
            backbone_weights=model.weights if load else None,
            classes=self.splits.classes,
            palette=self.splits.palette,
            preprocessing=options.preprocessing,
            width=options.width,
            img_size=model.img_size,
            drop_path_rate=model.drop_path_rate,
            **model.options,
        )
        for head in (segmenter.decode_head, segmenter.auxiliary_head):
            if isinstance(head, SegmentationHead):  # not drawn anew: other random numbers stay what they were
                head.conv_seg.weight.data.mul_(options.classifier_std / CLASSIFIER_STD)
        return segmenter

    def loaders(self, task: Segmenter, *, epoch: int, batch: int) -> tuple[DataLoader, DataLoader]:
        recipe = self.recipe
        train_transform = segmentation_train_transform(task.preprocessing, recipe.segment.augmentation)
        train = JointlyTransformedSet(self.splits.train, train_transform)
        val = JointlyTransformedSet(self.splits.val, segmentation_eval_transform(task.preprocessing))
        sampler = EpochSampler(
            len(train),
            seed=recipe.seed,
            batch_size=self.part_size,
            draws=recipe.schedule.interval * recipe.batch_size if recipe.schedule.iterations else None,
            start_epoch=epoch,
            start_batch=batch,
            rank=self.world.rank,
            world_size=self.world.size,
        )
        return (
            make_joint_loader(train, self.part_size, sampler=sampler, workers=recipe.workers),
            make_joint_loader(  # pictures keep their own sizes
                val, 1, workers=recipe.workers, rank=self.world.rank, world_size=self.world.size
            ),
        )

    def meters(self) -> tuple[Meter, Meter]:
        return LossMeter(), SegmentationMeter(len(self.splits.classes))

    def write_samples(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        val = self.splits.val
        for i in np.linspace(0, len(val) - 1, min(_SAMPLES, len(val))).round().astype(int):
            picture, _ = val[int(i)]
            to_pil_image(picture).save(folder / f"{val.paths[i].stem}.png")

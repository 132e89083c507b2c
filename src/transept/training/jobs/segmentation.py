"""Training a segmenter."""

from torch import nn

from transept.data.loading import JointlyTransformedSet
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


class SegmentJob(Job):
    """Pictures with masks, a segmenter, and its mean intersection over union."""

    score = Score("miou", "mIoU", "mean intersection over union")
    distributed = True
    val_batch = 1  # pictures keep their own sizes

    def __init__(self, recipe: Recipe, world: World = ALONE) -> None:
        super().__init__(recipe, world)
        if recipe.segment.method == "upernet" and self.part_size == 1:
            raise UsageError(
                f"batch_size={recipe.batch_size} with accumulate={recipe.accumulate} computes one picture at a time, "
                "but the batch norm of upernet's smallest map needs two; lower accumulate or raise batch_size"
            )
        self.splits = load_segmentation_splits(
            str(recipe.data),
            choice=recipe.choice(held_out=True, measures=False),
            reduce_zero_label=recipe.reduce_zero_label,
            val_fraction=recipe.val_fraction,
            skip_bad_images=recipe.skip_bad_images,
            skip_bad_annotations=recipe.skip_bad_annotations,
            scenes=recipe.scenes,
            reading=recipe.reading,
        )
        self.skipped = self.splits.skipped

    def build(self, *, load: bool) -> nn.Module:
        model, options = self.recipe.model, self.recipe.segment
        segmenter = create_segmenter(
            options.method,
            backbone=model.name,
            num_classes=len(self.splits.classes),
            classes=self.splits.classes,
            palette=self.splits.palette,
            preprocessing=self.measured(options.preprocessing),
            width=options.width,
            in_chans=self.reading.channels,
            img_size=model.img_size,
            drop_path_rate=model.drop_path_rate,
            **model.options,
        )
        for head in (segmenter.decode_head, segmenter.auxiliary_head):
            if isinstance(head, SegmentationHead):  # not drawn anew: other random numbers stay what they were
                head.conv_seg.weight.data.mul_(options.classifier_std / CLASSIFIER_STD)
        segmenter.reading = self.reading
        if load:
            self.start(segmenter)
        return segmenter

    def datasets(self, task: Segmenter) -> tuple[JointlyTransformedSet, JointlyTransformedSet]:
        transform = segmentation_train_transform(task.preprocessing, self.recipe.segment.augmentation)
        return (
            JointlyTransformedSet(self.splits.train, transform),
            JointlyTransformedSet(self.splits.val, segmentation_eval_transform(task.preprocessing)),
        )

    def meters(self) -> tuple[Meter, Meter]:
        return LossMeter(), SegmentationMeter(len(self.splits.classes))

"""Training a classifier."""

from pathlib import Path

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor, nn

from transept.data.classification.image_set import label_words
from transept.data.classification.sets import load_splits
from transept.data.classification.transforms import Preprocessing, eval_transform, train_transform
from transept.data.loading import TransformedSet
from transept.errors import TranseptError, UsageError
from transept.tasks.classify import Classifier
from transept.tasks.labelling import Labelling, MultiLabel, SingleLabel
from transept.training.jobs.distillation import Teacher, distillation_loss
from transept.training.jobs.job import Job, Meter, Score
from transept.training.options.recipe import Recipe
from transept.training.processes.world import ALONE, World
from transept.weights.load import create_model


class ClassifyJob(Job):
    """Labelled pictures, a classifier, and its accuracy."""

    score = Score("top1", "top-1", "top-1 accuracy")
    distributed = True
    num_samples = 12

    def __init__(self, recipe: Recipe, world: World = ALONE) -> None:
        super().__init__(recipe, world)
        self.splits = load_splits(
            str(recipe.data),
            choice=recipe.choice(held_out=True, measures=False),
            val_fraction=recipe.val_fraction,
            skip_bad_images=recipe.skip_bad_images,
            multi_label=recipe.classify.multi_label,
            label_separator=recipe.label_separator,
            reading=recipe.reading,
        )
        self.skipped = self.splits.skipped
        self.labelling: Labelling = SingleLabel(binary=recipe.classify.loss == "binary")
        if recipe.classify.multi_label:
            self.labelling, self.score = MultiLabel(), Score("map", "mAP", "mean average precision")
            if not self.splits.measured_classes:
                raise TranseptError(f"no validation picture of {recipe.data!r} has a label; mAP needs some")

    @property
    def found(self) -> str:
        understood = self.splits.understood
        return f"{super().found}; labels are {understood}" if understood else super().found

    def build(self, *, load: bool) -> nn.Module:
        options, classify = self.recipe.model, self.recipe.classify
        model = create_model(
            options.name,
            num_classes=len(self.splits.classes),
            in_chans=self.reading.channels,
            img_size=options.img_size,
            drop_path_rate=options.drop_path_rate,
            **options.options,
        )
        preprocessing = self.measured(Preprocessing(img_size=model.config.img_size, crop_pct=classify.crop_pct))
        classes = self.splits.classes
        mix, distill = classify.mix, classify.distill
        self.mixup = self.teacher = None
        if mix.on:
            self.mixup = Mixup(
                mix.mixup,
                mix.cutmix,
                prob=mix.probability,
                switch_prob=mix.switch,
                mode=mix.mode,
                label_smoothing=0.0 if classify.multi_label else classify.label_smoothing,
                num_classes=len(classes),
            )
        if distill.kind != "none":
            if self.reading.channels != 3:
                raise UsageError(
                    f"classify.distill: teachers take red, green and blue, and bands gives {self.reading.channels} "
                    "channels; leave one of them out"
                )
            self.teacher = Teacher(distill, len(classes), preprocessing)
        task = Classifier(
            model, classes, preprocessing, label_smoothing=classify.label_smoothing, labelling=self.labelling
        )
        task.reading = self.reading
        if classify.class_weights == "balanced":
            train = self.splits.train
            counts = torch.from_numpy(train.counts(len(classes))).float()
            task.class_weights = self.labelling.balanced(counts, len(train))
        if load:
            self.start(task)
        return task

    def step(self, task: Classifier, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes pictures and labels; student and teacher see the same pictures."""
        distill = self.recipe.classify.distill
        if self.mixup:
            if len(images) % 2:
                raise TranseptError(f"mix pairs the pictures of a batch, but {len(images)} are all there are; add one")
            images, targets = self.labelling.mixed(self.mixup, images, targets)
        logits = task(images)
        loss = task.loss(logits, targets)
        if self.teacher and distill.kind != "none":
            distilled = distillation_loss(logits, self.teacher(images), distill.kind, distill.tau)
            loss = (1 - distill.alpha) * loss + distill.alpha * distilled
        return logits, loss

    def datasets(self, task: Classifier) -> tuple[TransformedSet, TransformedSet]:
        recipe, splits = self.recipe, self.splits
        transform = train_transform(task.preprocessing, recipe.classify.augmentation)
        return (
            TransformedSet(splits.train, transform, fast_decode=recipe.fast_decode),
            TransformedSet(splits.val, eval_transform(task.preprocessing)),
        )

    @property
    def repeats(self) -> int:
        return self.recipe.classify.augmentation.repeats

    @property
    def sampling(self) -> np.ndarray | None:
        train, classes = self.splits.train, self.splits.classes
        return train.rarities(len(classes)) if self.recipe.classify.sampler == "balanced" else None

    def meters(self) -> tuple[Meter, Meter]:
        return self.labelling.training_meters()

    def settle(self, task: Classifier, meter: Meter) -> None:
        task.labelling = task.labelling.settled(meter)

    def write_samples(self, folder: Path) -> None:
        """Spread over the classes, and named after them."""
        folder.mkdir(exist_ok=True)
        val, classes = self.splits.val, self.splits.classes
        words = [label_words(val.label(i), classes) for i in range(len(val))]
        by_class = np.argsort(words, kind="stable")
        for i in by_class[np.linspace(0, len(by_class) - 1, min(self.num_samples, len(by_class))).round().astype(int)]:
            picture, _ = val[int(i)]
            name = "".join(sign if sign.isalnum() or sign in "-_ " else "_" for sign in words[i])[:100]
            self.write_sample(int(i), picture, folder / f"{name}-{val.paths[i].stem}.png")

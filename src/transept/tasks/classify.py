"""Image classification."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from transept.data.classification.transforms import Preprocessing, eval_transform
from transept.models.backbone import Backbone
from transept.models.registry import build_model
from transept.tasks.saving import describe, loading_task, save_task, tuples


class Predictions(NamedTuple):
    """The best classes of each image, best first."""

    labels: Tensor
    """`b k` class numbers."""
    scores: Tensor
    """`b k` probabilities, in 0..1."""


class Classifier(nn.Module):
    """A model with the names of its classes and the preprocessing it was trained for."""

    def __init__(
        self,
        model: Backbone,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        *,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if model.num_classes != len(classes):
            raise ValueError(f"the model has {model.num_classes} classes, and {len(classes)} names were given")
        self.model = model
        self.classes = list(classes)
        self.preprocessing = preprocessing
        self.label_smoothing = label_smoothing

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images `b 3 H W` to logits `b num_classes`."""
        return self.model(images)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of logits `b num_classes` and class numbers `b`, which are smoothed in training mode only,
        or each class's share `b num_classes`, taken as it is."""
        smoothing = self.label_smoothing if self.training and not labels.is_floating_point() else 0.0
        return cross_entropy(logits, labels, label_smoothing=smoothing)

    def decode(self, logits: Tensor, k: int = 5) -> Predictions:
        """The `k` most probable classes, or all where there are fewer."""
        scores, labels = logits.float().softmax(dim=-1).topk(min(k, len(self.classes)), dim=-1)
        return Predictions(labels, scores)

    @torch.inference_mode()
    def predict(self, pictures: Sequence[Image.Image], k: int = 5) -> Predictions:
        """RGB pictures of any size to their classes."""
        transform = eval_transform(self.preprocessing)
        device = next(self.parameters()).device
        images = torch.stack([transform(picture) for picture in pictures]).to(device)
        training = self.training
        predictions = self.eval().decode(self(images), k)
        self.train(training)
        return predictions

    def save(self, path: Path) -> None:
        """Weights, architecture, class names and preprocessing in one safetensors file, written atomically."""
        about = describe(self.model) | {
            "classes": self.classes,
            "preprocessing": dataclasses.asdict(self.preprocessing),
        }
        save_task(path, "classify", self.model, about)

    @staticmethod
    def load(path: Path) -> "Classifier":
        """What `save` wrote.

        Raises:
            TranseptError: the file is missing, damaged, or was not written by `save`.
        """
        with loading_task(path, "classify") as (state, about):
            model = build_model(
                about["architecture"],
                num_classes=len(about["classes"]),
                in_chans=about["in_chans"],
                **about["options"],
            )
            model.load_state_dict(state)
            return Classifier(model, about["classes"], Preprocessing(**tuples(about["preprocessing"]))).eval()

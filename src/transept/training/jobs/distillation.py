"""A teacher whose answers are part of a classifier's loss (Hinton et al. 2015; hard: Touvron et al. 2021, DeiT)."""

from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from transept.data.classification.transforms import Preprocessing
from transept.errors import TranseptError, UsageError
from transept.models.registry import find_model
from transept.training.options.classify import DistillOptions
from transept.weights.load import create_model, default_checkpoint, find_file, load_weights


class Teacher:
    """A trained model that sees the student's pictures and is not trained itself.

    No `nn.Module`, so that it is in no checkpoint and no optimiser.
    """

    def __init__(self, options: DistillOptions, num_classes: int, preprocessing: Preprocessing) -> None:
        """
        Args:
            options: who teaches, and where its weights lie.
            num_classes: the student's; the teacher must have as many, in the same order.
            preprocessing: the student's.

        Raises:
            UsageError: no such model.
            TranseptError: its weights cannot be had, are for other classes, or it does not take such pictures.
        """
        self.name = str(options.teacher)
        self.model = _load(self.name, options.weights, num_classes, preprocessing).requires_grad_(False).eval()
        config: Any = self.model.pretrained_cfg
        # Pictures x normalised as (x - mean) / std become the teacher's by one scale and shift for each channel.
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        own_mean = torch.tensor(options.mean or tuple(config["mean"]))
        own_std = torch.tensor(options.std or tuple(config["std"]))
        self.scale = (std / own_std).view(-1, 1, 1)
        self.shift = ((mean - own_mean) / own_std).view(-1, 1, 1)
        try:
            answer = self(torch.zeros(1, 3, *preprocessing.img_size))
        except (AssertionError, RuntimeError, ValueError) as error:
            height, width = preprocessing.img_size
            reason = " ".join(str(error).split())
            raise TranseptError(
                f"the teacher {self.name} does not take {height}x{width} pictures ({reason}); choose another"
            ) from error
        assert answer.shape == (1, num_classes)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The student's images `b 3 H W` to the teacher's logits `b num_classes`."""
        if self.scale.device != images.device:
            self.model.to(images.device)
            self.scale, self.shift = self.scale.to(images.device), self.shift.to(images.device)
        return self.model(images * self.scale + self.shift)


def distillation_loss(logits: Tensor, taught: Tensor, kind: Literal["soft", "hard"], tau: float = 1.0) -> Tensor:
    """The teacher's part of the loss, of logits `b k` of student and teacher.

    hard: cross-entropy with the teacher's best class. soft: the Kullback-Leibler divergence of the student's from the
    teacher's probabilities at temperature tau, times tau^2, summed and divided by b * k, as DeiT's script has it.
    """
    if kind == "hard":
        return cross_entropy(logits, taught.argmax(dim=1))
    student, teacher = (values.float().div(tau).log_softmax(dim=1) for values in (logits, taught))
    return kl_div(student, teacher, reduction="sum", log_target=True) * tau**2 / logits.numel()


def _load(name: str, weights: str | None, num_classes: int, preprocessing: Preprocessing) -> nn.Module:
    ours = True
    try:
        full, _ = find_model(name)
    except UsageError:
        full, ours = name, False
    if ours:
        source = weights or default_checkpoint(full).name
        model: nn.Module = create_model(full, num_classes=num_classes, img_size=preprocessing.img_size)
        report = load_weights(model, source)
        if any(key.fresh and key.model.startswith("head.") for key in report.keys):
            raise TranseptError(f"the teacher's weights {source!r} have no classifier of {num_classes} classes")
        return model
    if weights is not None:
        find_file(weights)  # before the time that a large model takes
        model = timm.create_model(name, num_classes=num_classes)
        load_weights(model, weights)
        return model
    published: Any = timm.get_pretrained_cfg(name)
    if published is None or not published.has_weights:
        raise TranseptError(
            f"timm has no weights of the teacher {name}; give a file with --classify.distill.weights FILE"
        )
    if published.num_classes != num_classes:
        raise TranseptError(
            f"the teacher {name} knows {published.num_classes} classes and the data has {num_classes}; give weights "
            "for these with --classify.distill.weights FILE"
        )
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever the hub's client raises
        reason = " ".join(str(error).split())[:200]
        raise TranseptError(
            f"the weights of the teacher {name} could not be downloaded ({type(error).__name__}: {reason}); give a "
            "file with --classify.distill.weights FILE"
        ) from error

"""Options that only `task: pretrain` reads."""

from dataclasses import dataclass, field

from transept.checks import check_not_negative, check_positive, check_share
from transept.data.classification.multicrop import MultiCrop
from transept.tasks.pretrain import DINO


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(DINO):
    """Options that only `task: pretrain` reads: DINO's student and teacher, and how they change during the run."""

    views: MultiCrop = field(default_factory=MultiCrop)
    momentum: float = 0.996
    """Share of itself that the teacher keeps in each step; it rises to 1 along a cosine."""
    teacher_temp_start: float = 0.04
    """The teacher's temperature before its warm-up."""
    teacher_temp_warmup_epochs: int = 30
    """The length of its warm-up, which is linear in steps."""
    weight_decay_end: float | None = None
    """Weight decay follows a cosine from `optimizer.weight_decay` to this; default: constant."""
    knn_k: int = 20
    """Neighbours that vote in validation."""
    knn_temperature: float = 0.07
    """Their votes are exp(similarity / temperature)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(momentum=self.momentum)
        check_positive(teacher_temp_start=self.teacher_temp_start)
        check_positive(knn_k=self.knn_k, knn_temperature=self.knn_temperature)
        check_not_negative(
            teacher_temp_warmup_epochs=self.teacher_temp_warmup_epochs, weight_decay_end=self.weight_decay_end
        )

"""The fate of every name when a checkpoint was loaded."""

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Any

from transept.words import listed, visible


class Reason(Enum):
    """Why a tensor was not taken, or why the model may do without one."""

    BESIDE_BACKBONE = "a part of a detector, a segmenter or a method of pretraining, beside the backbone"
    BACKBONE_ALONE = "the file holds a backbone alone"
    NO_CLASSIFIER = "one of file and model has no classifier"
    OTHER_CLASSES = "for other classes"
    OTHER_HEADS = "for other heads of attention"
    PYRAMID_LEVEL = "a level of the pyramid that file or model lacks"
    COMPUTED = "computed, not learned"
    COUNTER = "counts steps of training"
    PREPROCESSING = "the pictures' mean and deviation, which the model's pretrained_cfg has"


FRESH = {
    Reason.BACKBONE_ALONE,
    Reason.NO_CLASSIFIER,
    Reason.OTHER_CLASSES,
    Reason.OTHER_HEADS,
    Reason.PYRAMID_LEVEL,
}
"""Where the model lacks a value for one of these, it starts with its initial value and has to be trained."""


@dataclass(frozen=True, slots=True)
class KeyReport:
    """The fate of one tensor."""

    file: tuple[str, ...]
    """Its name in the file, or the names of its parts; empty for what the file lacks."""
    model: str
    """Its name in the model; "" for what the model does not take."""
    actions: tuple[str, ...]
    """`taken` as it was; `taken of N of M classes`, while the others keep their values; or what was done, in order:
    renamed, joined, transposed, reshaped, resized A x B to C x D; or `dropped`, `missing`, `unexpected`."""
    why: str = ""
    """For dropped and missing: the reason in words, and why it does no harm. "" where there is none."""
    reason: Reason | None = None
    """The same, to decide by; None where there is none."""

    @property
    def fresh(self) -> bool:
        """The model keeps its initial value, for a known reason, and has to be trained."""
        return "missing" in self.actions and self.reason in FRESH


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """The outcome of `load_weights`, name by name."""

    source: str
    model: str
    format: str
    """The file's: safetensors, PyTorch, PaddlePaddle, MindSpore, Keras."""
    wrapper: str = ""
    """The entry of the file that was taken, e.g. "model"; "" for the whole."""
    wrappers: tuple[str, ...] = ()
    """The entries that could be taken."""
    prefix: str = ""
    """The beginning taken off every name, e.g. "module."."""
    dialect: str = "official"
    """Whose names the file has: official, timm, PASSL, MMPretrain, ..."""
    departs: str = ""
    """How the code base of these names computes otherwise than ours; "" where it does not."""
    keys: tuple[KeyReport, ...] = ()
    skipped: tuple[str, ...] = ()
    """The file's content beside tensors, which was not read."""

    def _names(self, action: str) -> list[str]:
        return [key.model or key.file[0] for key in self.keys if any(done.startswith(action) for done in key.actions)]

    @property
    def taken(self) -> list[str]:
        """The model's names whose values come from the file, in whatever way."""
        return [key.model for key in self.keys if key.file and key.model]

    @property
    def renamed(self) -> list[str]:
        """The model's names whose values have another name in the file."""
        return [key.model for key in self.keys if key.model and key.file and key.file != (key.model,)]

    @property
    def resized(self) -> list[str]:
        """The model's names whose values were interpolated to another size."""
        return self._names("resized")

    @property
    def transposed(self) -> list[str]:
        """The model's names whose matrices the file stores the other way round."""
        return self._names("transposed")

    @property
    def missing(self) -> list[str]:
        """The model's names without a value in the file; they keep the values they had."""
        return self._names("missing")

    @property
    def dropped(self) -> list[str]:
        """The file's names that the model has no place for, each for a known reason."""
        return self._names("dropped")

    @property
    def unexpected(self) -> list[str]:
        """The file's names that the model has no place for, for no reason known."""
        return self._names("unexpected")

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        names = ("source", "model", "format", "wrapper", "prefix", "dialect", "departs")
        facts = {name: getattr(self, name) for name in names}
        keys = [
            {"file": list(key.file), "model": key.model, "actions": list(key.actions), "why": key.why}
            for key in self.keys
        ]
        return facts | {"wrappers": list(self.wrappers), "skipped": list(self.skipped), "keys": keys}

    @property
    def summary(self) -> str:
        """A line: how much was taken, what starts fresh, what was left."""
        parts = [f"{len(self.taken)} tensors taken from {self.source!r}"]
        partly = Counter(done for key in self.keys for done in key.actions if done.startswith("taken of"))
        parts += [f"{count} of them {done.removeprefix('taken ')}" for done, count in partly.items()]
        for done, what in (("missing", "of the model start fresh"), ("dropped", "of the file are left")):
            reasons = Counter(key.why.partition(":")[0] for key in self.keys if done in key.actions and _matters(key))
            parts += [f"{count} {what} ({why})" for why, count in reasons.items()]
        return ", ".join(parts)

    def __str__(self) -> str:
        """A few lines: where the weights came from, and everything that was not simply taken, by reason."""
        where = self.format
        where += f", entry {self.wrapper!r}" if self.wrapper else ""
        where += f" (of {visible(', '.join(self.wrappers))})" if len(self.wrappers) > 1 else ""
        where += f", prefix {self.prefix!r}" if self.prefix else ""
        lines = [f"{self.source} -> {self.model}: {where}, {self.dialect} names", f"{len(self.taken)} taken"]
        lines += [f"{self.dialect} differs: {self.departs}"] if self.departs else []
        changed = {}
        for key in self.keys:
            if key.model and key.file:
                for action in key.actions:
                    changed.setdefault(action, []).append(key.model)
        lines += [f"{len(names)} {action}: {listed(names)}" for action, names in changed.items() if action != "taken"]
        for action in ("dropped", "missing", "unexpected"):
            reasons: dict[str, list[str]] = {}
            for key in self.keys:
                if action in key.actions:
                    reasons.setdefault(key.why or "for no known reason", []).append(key.model or key.file[0])
            lines += [f"{len(names)} {action} ({why}): {listed(names)}" for why, names in reasons.items()]
        lines += [f"not read: {visible(', '.join(self.skipped))}"] if self.skipped else []
        return "\n  ".join(lines)


def _matters(key: KeyReport) -> bool:
    """What was left for other classes is said of those that start fresh in its place."""
    return key.fresh if "missing" in key.actions else key.reason is Reason.BESIDE_BACKBONE

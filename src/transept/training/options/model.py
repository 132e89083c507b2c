"""The model that is trained, and its starting weights."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from transept.checks import check_not_negative, check_positive, check_within
from transept.errors import UsageError, unknown
from transept.models.registry import check_numbers, find_model


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model, and what it starts from."""

    name: str
    """One of `transept models`."""
    img_size: int | None = None
    """Side of the square input in pixels; default: the model's own."""
    weights: str | None = None
    """Weights to start from: a path, an URL or NAME.TAG; default: none, train from scratch. Of a detector or segmenter
    of the same method neck and heads are taken, too."""
    drop_path_rate: float = 0.0
    """Stochastic depth."""
    freeze: int | list[str] = 0
    """Parts that keep their starting weights: the stem and that many first stages (blocks, where a family has no
    stages), or modules by name, e.g. [patch_embed, layers.0]."""
    norm_eval: bool = False
    """Batch norms keep their statistics, in training too, and only scale and shift: for parts of a batch that are too
    small, or too unlike each other, to be normalised by."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of the family's configuration to change, e.g. depth."""

    def __post_init__(self) -> None:
        check_positive(8192, img_size=self.img_size)
        check_within("[0, 1)", drop_path_rate=self.drop_path_rate)
        if isinstance(self.freeze, int):
            check_not_negative(freeze=self.freeze)
        self._check_options()

    @property
    def config(self) -> Any:
        """The configuration of the named model that `options` change."""
        try:
            name, family = find_model(self.name.partition(".")[0])
        except UsageError as error:
            raise UsageError(f"name={self.name!r}: {error}") from error
        return family.variants[name]

    def _check_options(self) -> None:
        config = self.config
        known = [each.name for each in dataclasses.fields(config) if each.name != "img_size"]
        for option in self.options:
            if option not in known:
                raise UsageError(f"options.{option}: {unknown(f'option of {self.name}', option, known)}")
        try:
            check_numbers(self.options)
            dataclasses.replace(config, **self.options)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise UsageError(f"options.{error}") from error

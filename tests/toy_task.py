"""A task that the package lacks, to see that a task is one file and one line: how bright is a picture, from 0 to 1?

Its data are folders whose names are the brightness, `0.2/*.png`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from transept.data.classification.sets import load_splits
from transept.data.classification.transforms import Preprocessing, eval_transform
from transept.errors import UsageError
from transept.export.logits import export_logits
from transept.models.backbone import Backbone
from transept.tasks.saving import rebuild, tuples
from transept.tasks.task import Column, Evaluation, Item, Option, Results, Table, Task, as_picture


@dataclass(frozen=True, kw_only=True)
class BrightnessInference:
    gain: float = 1.0

    def __post_init__(self) -> None:
        if not self.gain > 0:
            raise UsageError(f"gain={self.gain:g} must be greater than 0")


class Photometer(Task):
    name, kind, creator = "brightness", "photometer", "create_model(name, num_classes=1, "
    options: ClassVar[Mapping[str, Option]] = {"gain": Option(help="factor of the answers", type=float)}

    def __init__(self, backbone: Backbone, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.backbone, self.preprocessing, self.classes = backbone, preprocessing, ["brightness"]

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images).sigmoid()

    def inference(self, *, gain: float | None = None) -> BrightnessInference:
        return BrightnessInference(gain=1.0 if gain is None else gain)

    @torch.inference_mode()
    def predict(self, pictures: Sequence[Any], inference: BrightnessInference | None = None) -> list[float]:
        images = torch.stack([eval_transform(self.preprocessing)(as_picture(each)) for each in pictures])
        return [value * (inference or BrightnessInference()).gain for value in self(images)[:, 0].tolist()]

    def items(self, prediction: float) -> list[Item]:
        return [Item("brightness", prediction)]

    def draw(self, picture: Any, prediction: float, path: Path) -> None:
        picture.save(path)

    def results(self, out: Path | None, *, inputs: Any = (), **options: Any) -> Results:
        return Readings(self, out or Path("brightness.txt"))

    def load_data(self, options: Any, halves: Any = "both") -> Any:
        return load_splits(str(options.data), val_fraction=options.val_fraction)

    def evaluate(self, data: Any, inference: Any = None, **options: Any) -> Evaluation:
        splits = self.load_data(data)
        truth = [float(splits.classes[splits.val[i][1]]) for i in range(len(splits.val))]
        answers = self.predict([splits.val[i][0] for i in range(len(splits.val))], inference)
        error = sum(abs(a - b) for a, b in zip(answers, truth, strict=True)) / len(truth)
        return Evaluation(metrics={"error": error}, summary=f"error {error:.3f}", images=len(truth), seconds=0.0)

    def export(self, folder: Any, **options: Any) -> Any:
        return export_logits(self, folder, **options)

    def graph_size(self, img_size: Any) -> Any:
        return img_size or self.preprocessing.img_size

    def prepare(self, picture: Any, img_size: Any) -> Tensor:
        return eval_transform(self.preprocessing)(picture)

    def description(self) -> dict[str, Any]:
        return {"preprocessing": asdict(self.preprocessing)}

    @classmethod
    def build(cls, about: Mapping[str, Any]) -> Self:
        return cls(rebuild(about, num_classes=1), Preprocessing(**tuples(about["preprocessing"])))


class Readings(Results):
    def add(self, path: Path, picture: Any, prediction: float) -> None:
        self.rows.append({"image": str(path), "brightness": prediction})

    def finish(self) -> str:
        self.out.write_text("\n".join(str(row["brightness"]) for row in self.rows))
        return str(self.out)

    def table(self, top: int) -> Table:
        rows = [[row["image"], f"{row['brightness']:.2f}"] for row in self.rows]
        return Table([Column("picture"), Column("brightness", True)], rows)

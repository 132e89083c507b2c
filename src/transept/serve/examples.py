"""Pictures to try a model with, all of them scikit-learn's: digits where the model knows digits, else photographs."""

from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_image

from transept.data.classification.sets import load_splits
from transept.data.scenes import DIGITS, make_scene
from transept.tasks.task import Task

_DIGITS, _SCENES = 8, 4


def write_examples(task: Task, folder: Path) -> list[Path]:
    """Example pictures as files of `folder`: held-out digits or scenes of them, or the two photographs."""
    if not set(DIGITS) <= set(task.classes):
        pictures = {name: Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")}
    elif not task.is_dense:
        held_out = load_splits("digits").val
        pictures = {held_out.paths.name(i): held_out[i][0] for i in range(_DIGITS)}
    else:
        pictures = {f"scene-{i}.png": Image.fromarray(make_scene("val", 0, i).image) for i in range(_SCENES)}
    for name, picture in pictures.items():
        picture.save(folder / name, quality=95)
    return [folder / name for name in pictures]

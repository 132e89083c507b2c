"""Pictures to try a model with, all of them scikit-learn's: digits where the model knows digits, else photographs."""

from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_image

from transept.data.classification.sets import load_splits
from transept.data.images import as_bytes, as_shown, sample_picture
from transept.data.scenes import DIGITS, make_scene
from transept.tasks.task import Task

_DIGITS, _SCENES = 8, 4


def write_examples(task: Task, folder: Path) -> list[Path]:
    """Example pictures as files of `folder`: held-out digits or scenes of them, or the two photographs.

    Of bands that are no colours, what the photograph has of red, green and blue, a page for each band.
    """
    if bands := task.reading.bands:
        pages = [Image.fromarray(band.numpy()) for band in as_bytes(sample_picture(max(bands) + 1), max(bands) + 1)]
        pages[0].save(folder / "china.tif", save_all=True, append_images=pages[1:])
        return [folder / "china.tif"]
    if not set(DIGITS) <= set(task.classes):
        pictures = {name: Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")}
    elif not task.is_dense:
        held_out = load_splits("digits").val
        pictures = {held_out.paths.name(i): as_shown(held_out[i][0]) for i in range(_DIGITS)}
    else:
        pictures = {f"scene-{i}.png": Image.fromarray(make_scene("val", 0, i).image) for i in range(_SCENES)}
    for name, picture in pictures.items():
        picture.save(folder / name, quality=95)
    return [folder / name for name in pictures]

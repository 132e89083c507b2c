"""digits-scenes: exact, the same everywhere, and nothing of the training half in the validation half."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from transept.data import scenes
from transept.data.scenes import DigitScenes, SceneOptions, boxes_of, make_scene, scene_size

COUNT = 40


@pytest.fixture(scope="module", params=["train", "val"])
def made(request: pytest.FixtureRequest) -> list[scenes.Scene]:
    return list(DigitScenes(request.param, COUNT, seed=3))


def test_boxes_are_the_masks_and_masks_are_the_semantic_mask(made):
    for scene in made:
        assert scene.image.shape == (*scene.semantic.shape, 3)
        assert scene.masks.shape == (len(scene.labels), *scene.semantic.shape)
        assert scene.masks.sum(0).max() == 1  # a pixel belongs to the topmost digit
        for label, box, mask in zip(scene.labels, scene.boxes, scene.masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert (scene.semantic[mask] == label + 1).all()
        assert ((scene.semantic > 0) == scene.masks.any(0)).all()


def test_later_digits_lie_on_earlier_ones():
    """Scenes of one more digit each are the same but for that digit, which takes its pixels from those below."""
    hidden = 0
    for index in range(8):
        fewer = make_scene("train", 0, index, SceneOptions(digits=(1, 1)))
        for count in range(2, 9):
            scene = make_scene("train", 0, index, SceneOptions(digits=(count, count)))
            if len(scene.labels) > len(fewer.labels):
                top = scene.masks[-1]
                assert (scene.masks[:-1] == (fewer.masks & ~top)).all()
                hidden += int((fewer.masks & top).sum())
            else:  # there was no room
                assert (scene.masks == fewer.masks).all()
            fewer = scene
    assert hidden > 1000


def test_ink_is_where_the_masks_are(made):
    """The commonest colour of each digit is nowhere in the mask of another."""
    for scene in made:
        inks = []
        for mask in scene.masks:
            colors, counts = np.unique(scene.image[mask], axis=0, return_counts=True)
            assert counts.max() > 0.3 * mask.sum()
            inks.append(colors[counts.argmax()])
        for i, mask in enumerate(scene.masks):
            for j, ink in enumerate(inks):
                assert i == j or not (scene.image[mask] == ink).all(1).any()


def test_the_photographs_and_scans_of_the_halves_are_disjoint():
    train, val = scenes._scans("train")[0], scenes._scans("val")[0]
    assert (len(train), len(val)) == (1437, 360)
    known = {scan.tobytes() for scan in train}
    assert not any(scan.tobytes() in known for scan in val)
    for name in ("china.jpg", "flower.jpg"):
        covered = np.zeros((427, 640), int)
        for half in ("train", "val"):
            y1, y2, x1, x2 = scenes._REGIONS[half][name]
            assert 0 <= y1 < y2 <= 427
            assert 0 <= x1 < x2 <= 640
            covered[y1:y2, x1:x2] += 1
        assert covered.max() == 1
    for half in ("train", "val"):  # and the crops come from those regions
        for photo, region in zip(scenes._photos(half), scenes._REGIONS[half].values(), strict=True):
            assert photo.shape == (region[1] - region[0], region[3] - region[2], 3)


def test_all_digits_occur_about_equally():
    labels = np.concatenate([scene.labels for scene in DigitScenes("train", 150)])
    shares = np.bincount(labels, minlength=10) / len(labels)
    assert shares.min() > 0.05
    assert shares.max() < 0.17


def fingerprint() -> str:
    digest = hashlib.sha256()
    for split in ("train", "val"):
        for index in (0, 7, 1999):
            scene = make_scene(split, 5, index)
            for part in scene:
                digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def test_the_same_in_every_process_whatever_came_before():
    np.random.seed(1)
    make_scene("train", 0, 3)
    code = "from tests.data.test_scenes import fingerprint; print(fingerprint())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == fingerprint()


def test_geometry_is_as_recorded():
    """Labels, boxes and mask areas, which have to be the same on every platform and with every version of numpy."""
    scene = make_scene("train", 0, 0)
    assert scene.labels.tolist() == [2, 2, 0, 2, 1, 6]
    assert scene.semantic.shape == (152, 136)
    areas = scene.masks.sum((1, 2)).tolist()
    assert [[*box, area] for box, area in zip(scene.boxes.tolist(), areas, strict=True)] == [
        [63, 78, 102, 128, 1005],
        [36, 0, 77, 49, 973],
        [4, 11, 41, 65, 902],
        [50, 47, 67, 86, 361],
        [26, 67, 53, 119, 649],
        [31, 96, 79, 152, 1178],
    ]


def test_split_seed_and_index_all_matter():
    plain = make_scene("train", 0, 0).image
    for other in (make_scene("val", 0, 0), make_scene("train", 1, 0), make_scene("train", 0, 1)):
        assert other.image.shape != plain.shape or (other.image != plain).any()


def test_the_size_is_known_without_the_scene():
    options = SceneOptions()
    for index, scene in enumerate(DigitScenes("val", 5, seed=2)):
        assert scene_size("val", 2, index, options) == scene.semantic.shape


@pytest.mark.parametrize(
    "options",
    [
        SceneOptions(sides=(64, 64), digits=(1, 1), heights=(64, 64), min_visible=1.0),
        SceneOptions(sides=(320, 512), digits=(10, 14), heights=(8, 200)),
        SceneOptions(sides=(200, 200), digits=(30, 30), heights=(60, 60), min_visible=0.9),
    ],
)
def test_options(options):
    for scene in DigitScenes("val", 6, options=options):
        assert all(options.sides[0] <= side <= options.sides[1] for side in scene.semantic.shape)
        assert 1 <= len(scene.labels) <= options.digits[1]
        heights = scene.boxes[:, 3] - scene.boxes[:, 1]
        assert heights.max() <= options.heights[1]
        if options.min_visible == 1:
            assert (heights == options.heights[0]).all()


def test_digits_stay_visible():
    """Of a digit of 40 pixels at least the asked share of its ink is seen."""
    few = SceneOptions(digits=(12, 12), heights=(40, 40), min_visible=0.3)
    most = SceneOptions(digits=(12, 12), heights=(40, 40), min_visible=0.95)
    seen = [np.concatenate([s.masks.sum((1, 2)) for s in DigitScenes("train", 20, options=o)]) for o in (few, most)]
    assert seen[0].min() < seen[1].min()
    assert len(seen[0]) > len(seen[1])


def test_impossible_options_are_refused():
    for wrong, message in [
        (dict(sides=(160, 96)), r"sides=\(160, 96\); give \(low, high\)"),
        (dict(sides=(100, 160)), r"sides=\(100, 160\); both must be multiples of 8"),
        (dict(heights=(20, 97)), r"heights=\(20, 97\) do not fit into pictures of 96"),
        (dict(digits=(0, 2)), r"digits=\(0, 2\); give .* 1 <= low"),
        (dict(min_visible=1.5), "min_visible=1.5 is not in"),
    ]:
        with pytest.raises(ValueError, match=message):
            SceneOptions(**wrong)


def test_boxes_of_masks():
    masks = np.zeros((2, 6, 9), bool)
    masks[0, 2, 3] = masks[1, 0, 8] = masks[1, 5, 1] = True
    assert boxes_of(masks).tolist() == [[3, 2, 4, 3], [1, 0, 9, 6]]

"""Batches depend on the seed and the epoch alone; transforms do what they say."""

import multiprocessing
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.distributed_sampler import RepeatAugSampler

from transept.data.classification.image_set import ImageSet, Paths
from transept.data.classification.sets import load_splits
from transept.data.classification.transforms import Augmentation, Preprocessing, eval_transform, train_transform
from transept.data.loading import (
    AspectRatioBatchSampler,
    Draw,
    EpochSampler,
    Samples,
    TransformedSet,
    batch_loader,
    evaluation_batches,
    make_loader,
    repeat_factors,
)
from transept.errors import TranseptError

PREPROCESSING = Preprocessing(img_size=(16, 16))
ALL = Augmentation(crop_scale=(0.5, 1), rotation=10, translation=0.1, color_jitter=0.4, erasing=0.5)


@pytest.fixture(scope="module")
def digits() -> TransformedSet:
    return TransformedSet(load_splits("digits").train, train_transform(PREPROCESSING, ALL))


def batches(
    digits: TransformedSet, epoch: int, *, start: int = 0, workers: int = 0, seed: int = 3
) -> list[torch.Tensor]:
    torch.manual_seed(torch.seed() % 1000)  # whatever the global state is
    sampler = EpochSampler(64, seed=seed, batch_size=16, start_epoch=epoch, start_batch=start)
    return [images for images, _ in make_loader(digits, 16, sampler=sampler, workers=workers)]


def test_same_batches_whatever_the_workers_and_the_global_state(digits):
    plain = batches(digits, 2)
    assert len(plain) == 4
    assert all(torch.equal(a, b) for a, b in zip(plain, batches(digits, 2, workers=2), strict=True))
    assert not torch.equal(plain[0], batches(digits, 3)[0])
    assert not torch.equal(plain[0], batches(digits, 2, seed=4)[0])


def test_starting_inside_an_epoch_gives_its_rest(digits):
    rest = batches(digits, 2, start=3)
    assert len(rest) == 1
    assert torch.equal(rest[0], batches(digits, 2)[3])


def test_only_the_first_epoch_is_shortened():
    sampler = EpochSampler(10, seed=0, batch_size=2, start_epoch=1, start_batch=3)
    assert len(list(sampler)) == 4
    sampler.set_epoch(2)
    assert sorted(draw.sample for draw in sampler) == list(range(10))


def shares(world_size: int, **options: Any) -> list[list[Draw]]:
    return [list(EpochSampler(**options, rank=rank, world_size=world_size)) for rank in range(world_size)]


@pytest.mark.parametrize(("repeats", "weights"), [(1, None), (3, None), (1, np.arange(103.0))])
def test_ranks_compute_the_batches_of_one_process(repeats: int, weights: np.ndarray | None):
    options = dict(length=103, seed=5, start_epoch=2, repeats=repeats, weights=weights)
    whole = list(EpochSampler(**options, batch_size=12, start_batch=3))
    parts = shares(4, **options, batch_size=3, start_batch=3)
    assert [len(part) for part in parts] == [16] * 4  # 103 // 4 less the 9 seen; 3 draws of all are left over
    for number in range(5):
        batch = [draw for part in parts for draw in part[3 * number : 3 * number + 3]]
        assert sorted(batch) == sorted(whole[12 * number : 12 * number + 12])
    sampler = EpochSampler(**options, batch_size=3, rank=1, world_size=4)
    assert len(sampler) == 25


def test_rare_classes_are_drawn_as_often_as_frequent_ones():
    images = ImageSet(Paths(Path(), [str(i) for i in range(100)]), [0] * 90 + [1] * 8 + [2] * 2)
    options = dict(length=100, seed=0, batch_size=10, weights=images.rarities(3))
    draws = [draw for epoch in range(30) for draw in EpochSampler(**options, start_epoch=epoch)]
    counts = Counter(images.labels[draw.sample] for draw in draws)
    assert all(abs(counts[label] / len(draws) - 1 / 3) < 0.03 for label in range(3))
    assert len(set(draws)) == len(draws) == 3000  # each time another augmentation
    rest = list(EpochSampler(**options, start_epoch=29, start_batch=3))
    assert rest == draws[-70:]


def test_rare_classes_of_objects():
    """LVIS's factors by hand: of 100 pictures all show class 0, four class 1, one class 2, and one more nothing."""
    classes = [[0], [0, 1], [0, 1], [0, 1], [0, 1], [0, 2], *[[0]] * 93, []]
    factors = repeat_factors(classes, 0.16)
    assert factors[:6].tolist() == [1, 2, 2, 2, 2, 4]
    assert factors[6:].tolist() == [1] * 94
    sampler = AspectRatioBatchSampler([(10, 20), (20, 10)] * 50, seed=0, batch_size=8, weights=factors)
    counts: Counter[int] = Counter()
    for epoch in range(60):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == 12
        counts.update(draw.sample for batch in batches for draw in batch)
    shares = np.array([counts[i] for i in range(100)]) / sum(counts.values())
    assert shares[5] == pytest.approx(4 / factors.sum(), rel=0.25)
    assert shares[1:5].sum() == pytest.approx(8 / factors.sum(), rel=0.2)


def test_repeated_augmentation_shows_a_third_of_the_samples_three_times():
    draws = list(EpochSampler(90, seed=0, batch_size=9, repeats=3))
    assert len(draws) == len(set(draws)) == 90  # each time another augmentation
    assert set(Counter(draw.sample for draw in draws).values()) == {3}
    ranks = shares(3, length=90, seed=0, batch_size=3, repeats=3)
    assert [draw.sample for draw in ranks[0]] == [draw.sample for draw in ranks[1]] == [d.sample for d in ranks[2]]
    assert {draw.sample for draw in EpochSampler(90, seed=0, batch_size=9, repeats=3, start_epoch=1)} != {
        draw.sample for draw in draws
    }
    timms = RepeatAugSampler(range(300), num_replicas=2, rank=0, num_repeats=3)
    ours = EpochSampler(300, seed=0, batch_size=4, repeats=3, rank=0, world_size=2)
    assert len(timms) == 300 // 256 * 256 // 2  # timm rounds down to 256
    for sampler in (timms, ours):
        samples = [draw.sample if isinstance(draw, Draw) else int(draw) for draw in sampler]
        assert set(Counter(samples[:126]).values()) == {1, 2}
        assert len(set(samples[:126])) == 84  # every second of three times each of 84


def test_evaluation_counts_every_sample_once_on_any_number_of_ranks():
    for length, size, world in ((10, 4, 1), (65, 32, 2), (103, 8, 4), (7, 2, 3), (3, 2, 5), (64, 8, 2)):
        ranks = [evaluation_batches(length, size, rank=rank, world_size=world) for rank in range(world)]
        assert sorted(i for batches in ranks for batch in batches for i in batch) == list(range(length))
        assert all(0 < len(batch) <= size for batches in ranks for batch in batches)
        if length >= world:
            assert len({len(batches) for batches in ranks}) == 1, "a rank would wait for ever"
    assert evaluation_batches(10, 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_evaluation_loaders_of_ranks_make_up_the_set(digits):
    plain = [label for _, labels in make_loader(digits, 256) for label in labels.tolist()]
    ranks = [
        [label for _, labels in make_loader(digits, 256, rank=rank, world_size=2) for label in labels.tolist()]
        for rank in range(2)
    ]
    assert [len(labels) for labels in ranks] == [719, 718]
    assert ranks[0] == plain[::2]
    assert ranks[1] == plain[1::2]


def test_ranks_share_batches_of_one_shape():
    sizes = [(2, 3) if i % 3 else (3, 2) for i in range(50)]
    options = dict(sizes=sizes, seed=1, batch_size=4, start_epoch=1)
    whole = list(AspectRatioBatchSampler(**options))
    ranks = [AspectRatioBatchSampler(**options, rank=rank, world_size=5) for rank in range(5)]
    assert [len(rank) for rank in ranks] == [len(list(rank)) for rank in ranks] == [len(whole) // 5] * 5
    assert [list(rank)[1] for rank in ranks] == whole[5:10]
    resumed = AspectRatioBatchSampler(**options, start_batch=1, rank=2, world_size=5)
    assert list(resumed) == list(ranks[2])[1:]


def test_the_global_generator_is_left_alone(digits):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    batches_of_no_interest = EpochSampler(2, seed=0, batch_size=1)
    digits[next(iter(batches_of_no_interest))]
    assert torch.equal(torch.rand(1), expected)


def test_evaluation_crops_the_centre_and_normalises():
    picture = Image.new("RGB", (200, 100), (255, 0, 0))
    picture.paste((0, 0, 255), (75, 0, 125, 100))
    out = eval_transform(Preprocessing(img_size=(32, 32), crop_pct=0.5, mean=(0, 0, 0), std=(1, 1, 1)))(picture)
    assert out.shape == (3, 32, 32)
    assert torch.allclose(out[2, :, 1:-1], torch.ones(1))  # resized to 64 x 128, of which the blue middle is kept
    wide = eval_transform(Preprocessing(img_size=(16, 48)))(picture)
    assert wide.shape == (3, 16, 48)
    mean = eval_transform(Preprocessing(img_size=(8, 8)))(Image.new("RGB", (8, 8), (124, 116, 104)))
    assert mean.abs().max() < 0.02


@pytest.mark.parametrize(
    "option", ["flip", "rotation", "translation", "color_jitter", "erasing", "crop_scale", "crop_ratio"]
)
def test_every_augmentation_changes_the_picture(option: str):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8))
    still = dict(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
    change = dict(
        flip=1.0,
        rotation=30.0,
        translation=0.4,
        color_jitter=0.5,
        erasing=1.0,
        crop_scale=(0.1, 0.2),
        crop_ratio=(3, 3),
    )
    plain = train_transform(PREPROCESSING, Augmentation(**still))(picture)
    assert torch.allclose(plain, eval_transform(PREPROCESSING)(picture), atol=1e-6)
    varied = train_transform(PREPROCESSING, Augmentation(**(still | {option: change[option]})))(picture)
    assert not torch.allclose(plain, varied, atol=0.05)


def test_impossible_augmentations_are_refused():
    with pytest.raises(ValueError, match=r"^crop_scale=\[0.9, 0.2\]"):
        Augmentation(crop_scale=(0.9, 0.2))
    with pytest.raises(ValueError, match=r"^flip=2 is not in \[0, 1\]"):
        Augmentation(flip=2)


class Failing(Samples):
    def __init__(self, how: str) -> None:
        self.how = how

    def __getitem__(self, key: int) -> int:
        if key == 4 and self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if key == 4:
            raise TranseptError("no such picture")
        return key


@pytest.mark.parametrize(("how", "message"), [("error", "no such picture"), ("killed", "was killed")])
def test_processes_end_with_an_error(how: str, message: str):
    """Also where its traceback leads back to the loader: of such a circle Python's collector waits for them."""
    others = set(multiprocessing.active_children())
    kept: list[TranseptError] = []

    def look_at_all() -> None:
        loader = batch_loader(Failing(how), workers=2, collate=list, batch_sampler=[[0, 1], [2, 3], [4, 5], [6, 7]])
        try:
            list(loader)
        except TranseptError as error:
            kept.append(error)

    look_at_all()
    assert message in str(kept[0])
    assert set(multiprocessing.active_children()) <= others

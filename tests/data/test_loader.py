from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest
import torch

from hrsam_lit.data.augment import Augmentation
from hrsam_lit.data.dataset import EvaluationSet, SampleBuilder
from hrsam_lit.data.loader import BatchLoader, ObjectLoader, TrainLoader
from hrsam_lit.errors import UserError


@pytest.fixture(scope="module")
def builder(images) -> SampleBuilder:
    return SampleBuilder(images, image_size=16, objects=1, augmentation=Augmentation("finetune"), seed=7)


def seen(batches) -> list[tuple]:
    """What a model would see: keys, pixels and masks, in comparable form."""
    return [(batch.keys, batch.images.numpy().tobytes(), batch.masks.numpy().tobytes()) for batch in batches]


def epochs(loader: TrainLoader, count: int = 2) -> list[list[tuple]]:
    return [seen(loader) for _ in range(count)]


def test_every_sample_once_an_epoch_and_the_first_again_to_fill_up(builder):
    loader = TrainLoader(builder, batch_size=4)
    assert len(loader) == 3
    first, second = epochs(loader)
    for epoch in (first, second):
        keys = [key for batch in epoch for key in batch[0]]
        assert len(keys) == 12
        assert len(set(keys)) == 11
        assert keys[11] == keys[0]
    assert [batch[0] for batch in first] != [batch[0] for batch in second]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(builder, workers):
    assert epochs(TrainLoader(builder, batch_size=2, workers=workers)) == epochs(TrainLoader(builder, batch_size=2))


def test_ranks_share_the_same_global_batches(builder):
    alone = list(TrainLoader(builder, batch_size=4))
    ranks = [list(TrainLoader(builder, batch_size=2, rank=rank, world_size=2)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == len(alone)
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert whole.keys == first.keys + second.keys
        assert torch.equal(whole.images, torch.cat((first.images, second.images)))
        assert torch.equal(whole.masks, torch.cat((first.masks, second.masks)))


def test_augmentation_differs_over_epochs_and_samples(builder):
    plain = SampleBuilder(builder.images, image_size=16)
    flipping = SampleBuilder(builder.images, image_size=16, augmentation=Augmentation([{"name": "HorizontalFlip"}]))
    loader = TrainLoader(flipping, batch_size=1)
    flips: dict[str, list[bool]] = {}
    for _ in range(6):
        for batch in loader:
            original = plain(int(batch.keys[0][1:])).image
            flips.setdefault(batch.keys[0], []).append(not torch.equal(batch.images[0], original))
    assert 20 <= sum(map(sum, flips.values())) <= 46  # of 66, each with probability 1/2
    assert len({tuple(changes) for changes in flips.values()}) > 8
    assert len(set(zip(*flips.values(), strict=True))) == 6


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4, 6, 8])
def test_resuming_goes_on_with_the_very_next_batch(builder, workers, stop):
    whole = [batch for epoch in epochs(TrainLoader(builder, batch_size=2), 2) for batch in epoch]
    loader = TrainLoader(builder, batch_size=2, workers=workers)
    consumed = []
    while len(consumed) < stop:
        for batch in loader:
            consumed += seen([batch])
            if len(consumed) == stop:
                break
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    assert state == {"epoch": (stop - 1) // 6, "batch": (stop - 1) % 6 + 1}
    fresh = TrainLoader(builder, batch_size=2, workers=workers)
    fresh.load_state_dict(state)
    rest = []
    while len(rest) < len(whole) - stop:
        rest += seen(fresh)
    assert consumed + rest == whole


def test_an_epoch_left_early_goes_on(builder):
    loader = TrainLoader(builder, batch_size=2)
    first = next(iter(loader)).keys
    rest = [key for batch in loader for key in batch.keys]
    assert len(rest) == 10
    assert len({*first, *rest}) == 11


def test_overfitting_sees_the_same_batches_again(builder):
    loader = TrainLoader(builder, batch_size=2, overfit=True)
    first = seen([next(iter(loader))])
    assert seen([next(iter(loader))]) == first == epochs(TrainLoader(builder, batch_size=2), 1)[0][:1]


def test_a_state_of_another_length_is_refused(builder):
    loader = TrainLoader(builder, batch_size=4)
    with pytest.raises(UserError, match="stands at batch 6 of an epoch that now has 3"):
        loader.load_state_dict({"epoch": 0, "batch": 6})


def test_loading_leaves_the_random_streams_alone(builder):
    torch.manual_seed(3)
    np.random.seed(3)
    wanted = torch.rand(1), np.random.rand()
    for workers in (0, 1):
        torch.manual_seed(3)
        np.random.seed(3)
        list(TrainLoader(builder, batch_size=4, workers=workers))
        assert (torch.rand(1), np.random.rand()) == wanted


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_reaches_the_user_as_one_line(tmp_path, make_set, workers):
    images = make_set(tmp_path)
    path = images.folder / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[int(images._samples[5]["offset"]) + 700] ^= 1
    path.write_bytes(data)
    loader = TrainLoader(SampleBuilder(images, image_size=16), workers=workers)
    with pytest.raises(UserError, match=r"shard-000001\.tar: sample 'k005' is cut off or damaged") as raised:
        list(loader)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"workers": -1}])
def test_impossible_sizes_are_refused(builder, sizes):
    with pytest.raises(UserError, match=f"{next(iter(sizes))}={next(iter(sizes.values()))}"):
        TrainLoader(builder, **sizes)


@pytest.mark.parametrize(("world_size", "limit"), [(1, None), (2, None), (3, 7), (2, 100)])
def test_validation_sees_every_sample_once(images, world_size, limit):
    builder = SampleBuilder(images, image_size=16)
    met, lengths = [], set()
    for rank in range(world_size):
        batches = list(BatchLoader(builder, batch_size=2, rank=rank, world_size=world_size, limit=limit))
        lengths.add(len(batches))
        met += [key for batch in batches for key, weight in zip(batch.keys, batch.weight, strict=True) if weight]
    assert len(lengths) == 1
    assert sorted(met) == [f"k{number:03d}" for number in range(min(limit or 11, 11))]


def test_validation_keeps_its_order(images):
    loader = BatchLoader(SampleBuilder(images, image_size=16), batch_size=2, workers=2)
    assert [key for batch in loader for key in batch.keys] == [f"k{number:03d}" for number in range(11)]
    assert [len(batch) for batch in loader] == [2, 2, 2, 2, 2, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_share_whole_images_of_an_evaluation_set(images, workers):
    items = EvaluationSet(images)
    ranks = [ObjectLoader(items, rank=rank, world_size=3, workers=workers) for rank in range(3)]
    assert [len(loader) for loader in ranks] == [8, 8, 6]
    met = [[(item.key, item.object_id) for item in loader] for loader in ranks]
    assert sorted(met[0] + met[1] + met[2]) == [(f"k{number:03d}", one) for number in range(11) for one in (1, 2)]
    assert met[1][:4] == [("k001", 1), ("k001", 2), ("k004", 1), ("k004", 2)]


def test_more_devices_than_images_are_refused(images):
    with pytest.raises(UserError, match="1 images to evaluate on 2 devices"):
        ObjectLoader(EvaluationSet(images, limit=2), world_size=2)


def test_builders_reach_workers_that_do_not_fork(builder):
    copy = pickle.loads(pickle.dumps(builder))
    for epoch in range(3):
        assert torch.equal(copy(1, epoch).image, builder(1, epoch).image)


@pytest.mark.timeout(120)
def test_workers_start_while_opencvs_threads_are_up(builder):
    """A forked worker would inherit the pool's locks and hang at its first call into OpenCV."""
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(4)
        cv2.GaussianBlur(np.zeros((2000, 2000), np.uint8), (31, 31), 5)
        assert len(list(TrainLoader(builder, batch_size=4, workers=1))) == 3
    finally:
        cv2.setNumThreads(before)

from __future__ import annotations

import numpy as np
import pytest
import torch

from hrsam_lit.data.augment import Augmentation
from hrsam_lit.data.dataset import EvaluationSet, SampleBuilder, collate
from hrsam_lit.data.embeddings import EmbeddingMeta, EmbeddingSet, EmbeddingWriter
from hrsam_lit.data.record import Instance, Record
from hrsam_lit.data.shards import ShardSet, ShardWriter, write_index
from hrsam_lit.errors import UserError
from hrsam_lit.geometry import Frame

META = EmbeddingMeta("toy", "ab" * 32, "pad", 64, 16, 3)


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory, images) -> EmbeddingSet:
    folder = tmp_path_factory.mktemp("embeddings")
    with EmbeddingWriter(folder, images, META) as writer:
        for part in writer.ranges():
            for index in part:
                record = images.read(index)
                writer.add(index, np.full((3, 4, 4), index + 1.0), (record.height, record.width))
    return EmbeddingSet.open(folder)


def test_sample_lies_on_its_canvas(images, record):
    sample = SampleBuilder(images, image_size=32, objects=3)(3)
    truth = record(3)
    assert sample.key == "k003"
    assert sample.frame == Frame.pad((24, 32), 32)
    torch.testing.assert_close(sample.image[:, :24], torch.from_numpy(truth.pixels()).permute(2, 0, 1))
    assert not sample.image[:, 24:].any()
    assert sample.present.tolist() == [True, True, False]
    found = {sample.masks[slot, :24].numpy().tobytes() for slot in range(2)}
    assert found == {one.mask().tobytes() for one in truth.instances}
    assert not sample.masks[2].any()
    np.testing.assert_array_equal(sample.ignore[:24], truth.ignore_mask())


def test_objects_are_drawn_by_epoch_and_index(images):
    builder = SampleBuilder(images, image_size=32, objects=1)
    drawn = [builder(1, epoch).masks for epoch in range(12)]
    assert len({mask.numpy().tobytes() for mask in drawn}) == 2
    again = SampleBuilder(images, image_size=32, objects=1)
    assert all(torch.equal(again(1, epoch).masks, drawn[epoch]) for epoch in reversed(range(12)))


def test_area_bounds_leave_objects_out(tmp_path, record):
    small, large = np.zeros((24, 32), bool), np.ones((24, 32), bool)
    small[:2, :3] = True
    base = record(1)
    with ShardWriter(tmp_path) as writer:
        writer.add(
            Record(
                "a",
                base.image,
                "png",
                24,
                32,
                (Instance.from_mask(1, small), Instance.from_mask(2, large), *base.instances),
            )
        )
    write_index(tmp_path)
    images = ShardSet.open(tmp_path)
    assert SampleBuilder(images, image_size=32, objects=4)(0).present.sum() == 4
    assert SampleBuilder(images, image_size=32, objects=4, min_area=7)(0).present.sum() == 3
    sample = SampleBuilder(images, image_size=32, objects=4, min_area=7, max_area=0.9)(0)
    assert sample.present.tolist() == [True, True, False, False]


def test_an_object_that_vanishes_on_the_canvas_is_not_present(tmp_path, record):
    dot = np.zeros((24, 32), bool)
    dot[0, 0] = True
    base = record(1)
    with ShardWriter(tmp_path) as writer:
        writer.add(Record("a", base.image, "png", 24, 32, (Instance.from_mask(1, dot),)))
    write_index(tmp_path)
    sample = SampleBuilder(ShardSet.open(tmp_path), image_size=16, objects=1)(0)
    assert sample.present.tolist() == [False]
    assert not sample.masks.any()


def test_augmentation_changes_image_and_masks_alone(images):
    builder = SampleBuilder(images, image_size=32, objects=1, augmentation=Augmentation("finetune"), seed=4)
    pixels = {builder(1, epoch).image.numpy().tobytes() for epoch in range(10)}
    assert len(pixels) > 5
    other = SampleBuilder(images, image_size=32, objects=1, augmentation=Augmentation("finetune"), seed=5)
    assert any(not torch.equal(builder(1, epoch).image, other(1, epoch).image) for epoch in range(3))


def test_embeddings_come_padded_with_their_frames(images, embeddings):
    batch = collate([SampleBuilder(images, image_size=32, embeddings=embeddings)(index) for index in (4, 7)])
    assert batch.keys == ["k004", "k007"]
    assert batch.masks is batch.present is batch.ignore is None
    assert batch.embeddings.dtype == torch.float16
    wanted = torch.zeros(2, 3, 4, 4, dtype=torch.float16)
    wanted[0, :, :4, :2] = 5
    wanted[1, :, :3, :4] = 8
    assert torch.equal(batch.embeddings, wanted)
    assert batch.embedding_frames == [Frame.pad((40, 20), 64), Frame.pad((24, 32), 64)]


def test_embeddings_are_found_by_key(images, embeddings, tmp_path, record):
    with ShardWriter(tmp_path) as writer:
        for number in (9, 2):
            writer.add(record(number))
    write_index(tmp_path)
    some = ShardSet.open(tmp_path)
    sample = SampleBuilder(some, image_size=32, embeddings=embeddings)(0)
    assert sample.key == "k009"
    assert sample.embedding.max() == 10
    with ShardWriter(tmp_path) as writer:
        writer.add(record(50))
    write_index(tmp_path)
    with pytest.raises(UserError, match="no sample 'k050'"):
        SampleBuilder(ShardSet.open(tmp_path), image_size=32, embeddings=embeddings)


def test_cached_embeddings_refuse_another_view(images, embeddings):
    SampleBuilder(images, image_size=32, embeddings=embeddings, augmentation=Augmentation("distill"))
    with pytest.raises(UserError, match="a cached embedding belongs to one view"):
        SampleBuilder(images, image_size=32, embeddings=embeddings, augmentation=Augmentation("finetune"))


def test_masks_of_a_set_without_any_are_refused(tmp_path, make_set):
    images = make_set(tmp_path, samples=3, objects=0)
    with pytest.raises(UserError, match="no image has a mask; set objects=0"):
        SampleBuilder(images, image_size=32, objects=1)
    with pytest.raises(UserError, match="nothing can be evaluated"):
        EvaluationSet(images)


def test_batch_has_the_stated_shapes(images):
    builder = SampleBuilder(images, image_size=48, objects=2)
    batch = collate([builder(index) for index in range(4)])
    assert batch.images.shape == (4, 3, 48, 48)
    assert batch.images.dtype == torch.uint8
    assert batch.sizes.tolist() == [[48, 24], [36, 48]] * 2
    assert batch.sizes.dtype == torch.int64
    assert batch.weight.tolist() == [1.0] * 4
    assert batch.masks.shape == (4, 2, 48, 48)
    assert batch.masks.dtype == batch.present.dtype == batch.ignore.dtype == torch.bool
    assert batch.present.shape == (4, 2)
    assert batch.ignore.shape == (4, 48, 48)
    assert batch.ignore.flatten(1).any(1).tolist() == [True, False, False, True]


def test_every_object_is_evaluated_once(images, record):
    items = EvaluationSet(images)
    assert len(items) == 22
    met = [(item.key, item.object_id) for item in (items[index] for index in range(len(items)))]
    assert met == [(f"k{number:03d}", one) for number in range(11) for one in (1, 2)]
    assert items.groups() == [range(2 * number, 2 * number + 2) for number in range(11)]
    item, truth = items[7], record(3)
    np.testing.assert_array_equal(item.image, truth.pixels())
    assert item.truth.dtype == np.int8
    np.testing.assert_array_equal(item.truth == -1, truth.ignore_mask())
    np.testing.assert_array_equal(item.truth == 1, truth.instances[1].mask() & ~truth.ignore_mask())
    assert items[6].image is not items[8].image
    assert items[8].image is items[9].image  # decoded once
    with pytest.raises(IndexError):
        items[22]


def test_evaluation_may_be_limited(images):
    items = EvaluationSet(images, limit=5)
    assert len(items) == 5
    assert items.groups() == [range(0, 2), range(2, 4), range(4, 5)]
    assert len(EvaluationSet(images, limit=100)) == 22
    with pytest.raises(UserError, match="limit of 0"):
        EvaluationSet(images, limit=0)


def test_images_without_objects_are_passed_over(tmp_path, record):
    with ShardWriter(tmp_path) as writer:
        for number, objects in enumerate((0, 2, 0, 1, 0)):
            writer.add(record(number, objects))
    write_index(tmp_path)
    items = EvaluationSet(ShardSet.open(tmp_path))
    assert [(items[i].key, items[i].object_id) for i in range(len(items))] == [
        ("k001", 1),
        ("k001", 2),
        ("k003", 1),
    ]
    assert items.groups() == [range(0, 2), range(2, 3)]

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from hrsam_lit.data.batch import Batch
from hrsam_lit.data.datamodule import ShardDataModule
from hrsam_lit.data.dataset import EvaluationItem
from hrsam_lit.data.embeddings import EmbeddingMeta, EmbeddingWriter
from hrsam_lit.errors import UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]


class Watcher(LightningModule):
    """Notes what it is given; its one weight depends on every pixel so far."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen: list[tuple] = []
        self.validated: list = []

    def training_step(self, batch: Batch, batch_idx: int):
        self.seen.append((tuple(batch.keys), batch.images.numpy().tobytes(), batch.masks.numpy().tobytes()))
        return (self.weight * batch.images.float().mean() / 255 - 0.3).square().sum()

    def validation_step(self, batch, batch_idx: int):
        self.validated.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class StopAt(Callback):
    """Saves in the middle of an epoch and leaves."""

    def __init__(self, step: int, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def fit(data: ShardDataModule, steps: int = 14, checkpoint=None, **options) -> Watcher:
    model = Watcher()
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, data, ckpt_path=checkpoint)
    return model


def data(images, **options) -> ShardDataModule:
    values = {"image_size": 16, "batch_size": 2, "augment": "finetune", "workers": 0, **options}
    return ShardDataModule(str(images.folder), **values)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [3, 6, 8])
def test_a_resumed_fit_sees_the_same_pixels(tmp_path, images, stop, workers):
    whole = fit(data(images))
    assert len(whole.seen) == 14
    assert len({step[1] for step in whole.seen}) == 14
    path = tmp_path / "middle.ckpt"
    first = fit(data(images, workers=workers), callbacks=[StopAt(stop, path)])
    assert len(first.seen) == stop
    rest = fit(data(images, workers=workers), checkpoint=path)
    assert [step[0] for step in first.seen + rest.seen] == [step[0] for step in whole.seen]
    assert first.seen + rest.seen == whole.seen
    assert torch.equal(rest.weight, whole.weight)


def test_overfitting_repeats_its_batches(images):
    seen = fit(data(images), steps=6, overfit_batches=2).seen
    assert seen[:2] == seen[2:4] == seen[4:]
    assert seen[0] != seen[1]


def test_every_epoch_is_another_order_of_all_samples(images):
    seen = fit(data(images), steps=12).seen
    first, second = ([key for step in part for key in step[0]] for part in (seen[:6], seen[6:]))
    assert len(set(first)) == len(set(second)) == 11
    assert first != second


@pytest.mark.parametrize("workers", [0, 1])
def test_validation_by_objects(images, workers):
    module = fit(data(images, val=str(images.folder), val_limit=5, workers=workers), steps=6, num_sanity_val_steps=0)
    assert [(item.key, item.object_id) for item in module.validated] == [
        ("k000", 1),
        ("k000", 2),
        ("k001", 1),
        ("k001", 2),
        ("k002", 1),
    ]
    assert all(isinstance(item, EvaluationItem) for item in module.validated)
    assert isinstance(module.validated[0].truth, np.ndarray)


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory, images) -> str:
    folder = tmp_path_factory.mktemp("embeddings")
    with EmbeddingWriter(folder, images, EmbeddingMeta("toy", "ab" * 32, "pad", 64, 16, 3)) as writer:
        for part in writer.ranges():
            for index in part:
                record = images.read(index)
                writer.add(index, np.full((3, 4, 4), index + 1.0), (record.height, record.width))
    return str(folder)


def test_validation_by_batches(images, embeddings):
    module = data(
        images,
        augment="distill",
        embeddings=embeddings,
        val=str(images.folder),
        val_kind="embeddings",
        val_embeddings=embeddings,
        val_limit=3,
    )
    batches = list(module.val_dataloader())
    assert [batch.keys for batch in batches] == [["k000", "k001"], ["k002"]]
    assert batches[0].embeddings.amax((1, 2, 3)).tolist() == [1, 2]
    assert batches[0].masks is None
    online = data(images, val=str(images.folder), val_kind="embeddings")
    assert next(iter(online.val_dataloader())).embeddings is None


def test_training_batches_carry_embeddings_and_their_statistics(images, embeddings):
    module = data(images, augment="distill", embeddings=embeddings, objects=0)
    batch = next(iter(module.train_dataloader()))
    assert batch.masks is None
    assert batch.embeddings.amax((1, 2, 3)).tolist() == [int(key[1:]) + 1 for key in batch.keys]
    mean, std = module.embedding_statistics()
    assert mean.shape == std.shape == (3,)
    assert 1 < mean[0] < 11
    assert module.embedding_statistics()[0] is mean
    with pytest.raises(UserError, match=r"data\.embeddings is not set"):
        data(images).embedding_statistics()


def test_cached_embeddings_with_flips_are_refused_before_training(images, embeddings):
    with pytest.raises(UserError, match="a cached embedding belongs to one view"):
        fit(data(images, embeddings=embeddings))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 8}, r"data\.image_size=8: at least 16"),
        ({"batch_size": 0}, r"data\.batch_size=0"),
        ({"objects": -1}, r"data\.objects=-1"),
        ({"seed": -1}, r"data\.seed=-1"),
        ({"val_limit": 0}, r"data\.val_limit=0"),
        ({"val_embeddings": "x"}, r"data\.val_embeddings is only used"),
    ],
)
def test_impossible_settings_name_their_key(images, options, message):
    with pytest.raises(UserError, match=message):
        data(images, **options)


def test_missing_sets_are_named(tmp_path, images):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        fit(ShardDataModule(str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match=r"data\.test is not set"):
        data(images).test_dataloader()
    assert len(data(images, test=str(images.folder)).test_dataloader()) == 22


@pytest.mark.dist
def test_two_devices_see_what_one_would(tmp_path, images):
    whole = fit(data(images, batch_size=4), steps=6).seen
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, pickle, warnings\n"
        "warnings.simplefilter('ignore')\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_datamodule import Watcher, ShardDataModule, Trainer\n"
        f"data = ShardDataModule({str(images.folder)!r}, image_size=16, batch_size=2,\n"
        "                       augment='finetune', workers=0)\n"
        "model = Watcher()\n"
        "trainer = Trainer(max_steps=6, accelerator='cpu', devices=2, strategy='ddp', logger=False,\n"
        "                  enable_checkpointing=False, enable_progress_bar=False,\n"
        "                  enable_model_summary=False)\n"
        "trainer.fit(model, data)\n"
        f"open({str(tmp_path)!r} + f'/{{trainer.global_rank}}', 'wb').write(pickle.dumps(model.seen))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script)], check=True, timeout=200, env=environment, capture_output=True)
    first, second = (pickle.loads((tmp_path / rank).read_bytes()) for rank in "01")
    assert len(first) == len(second) == 6
    for alone, one, two in zip(whole, first, second, strict=True):
        assert alone == tuple(a + b for a, b in zip(one, two, strict=True))

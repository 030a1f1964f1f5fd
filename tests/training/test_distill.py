"""Distillation: the loss is the formula, the teacher stays outside, and a run resumes exactly."""

import pytest
import torch
from lightning import Trainer

from hrsam_lit.data.datamodule import ShardDataModule
from hrsam_lit.data.embeddings import EmbeddingSet
from hrsam_lit.errors import UserError
from hrsam_lit.losses.features import on_student_grid
from hrsam_lit.training.distill import DistillModule
from hrsam_lit.training.optim import OptimizerConfig

FAST = OptimizerConfig(lr=1e-3, warmup_steps=0)


def trainer(folder, steps, **options):
    return Trainer(
        default_root_dir=folder,
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        num_sanity_val_steps=0,
        **options,
    )


def data(world, **options):
    options = {"image_size": world.side, "objects": 0, "augment": "none", "workers": 0, **options}
    return ShardDataModule(str(world.images), **options)


def cached(world, **options):
    return data(world, embeddings=str(world.embeddings), **options)


def test_loss_is_the_mean_squared_error_over_cells_that_hold_image(world, encoder, tmp_path):
    module = DistillModule(encoder, optimizer=FAST)
    datamodule = cached(world, batch_size=3)
    fit = trainer(tmp_path, 1)
    batch = next(iter(datamodule.train_dataloader()))
    with torch.no_grad():
        student = encoder(batch.images, batch.sizes)
    expected = []
    for index, frame in enumerate(batch.frames):
        rows, columns = frame.valid_cells(16)
        error = student[index, :, :rows, :columns] - batch.embeddings[index, :, :rows, :columns].float()
        expected.append(error.square().mean())
    fit.fit(module, datamodule=datamodule)
    assert float(fit.callback_metrics["train/loss/embedding"]) == pytest.approx(
        float(torch.stack(expected).mean()), rel=1e-5
    )


def test_the_student_can_start_at_the_teachers_statistics(world, encoder, tmp_path):
    module = DistillModule(encoder, optimizer=OptimizerConfig(lr=1e-12), start_at_teacher=True)
    trainer(tmp_path, 1).fit(module, datamodule=cached(world))
    stored = EmbeddingSet.open(world.embeddings)
    torch.testing.assert_close(encoder.out_norm.bias.detach(), torch.from_numpy(stored.mean), rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder.out_norm.weight.detach(), torch.from_numpy(stored.std), rtol=0, atol=1e-5)


def test_an_online_teacher_is_in_no_checkpoint_and_no_optimiser(world, encoder, tmp_path):
    module = DistillModule(
        encoder, optimizer=FAST, teacher=str(world.teacher), start_at_teacher=True, channel_weighted=True
    )
    fit = trainer(tmp_path, 2)
    fit.fit(module, datamodule=data(world))
    fit.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert set(state) == {f"encoder.{name}" for name in encoder.state_dict()}
    trained = sum(len(group["params"]) for group in fit.optimizers[0].param_groups)
    assert trained == len(list(encoder.parameters()))
    assert not any(parameter.requires_grad for parameter in module.teacher.model.parameters())


@pytest.mark.parametrize("area", ["valid", "all"])
def test_area_says_whether_padding_counts(world, encoder, tmp_path, area):
    module = DistillModule(encoder, optimizer=FAST, teacher=str(world.teacher), area=area)
    datamodule = data(world)
    trainer(tmp_path, 1).fit(module, datamodule=datamodule)
    batch = next(iter(datamodule.train_dataloader()))
    target, valid = module._target(batch)
    neck = module.teacher.embed(batch.images, batch.sizes)
    assert bool(valid.all()) == (area == "all")
    rows = batch.frames[0].valid_cells(16)[0] if area == "valid" else 4
    torch.testing.assert_close(
        target[:, :, :rows][valid.expand_as(target)[:, :, :rows]], neck[:, :, :rows][valid.expand_as(neck)[:, :, :rows]]
    )


def test_validation_is_the_unexplained_variance(world, encoder, tmp_path):
    module = DistillModule(encoder, optimizer=FAST)
    datamodule = cached(world, val=str(world.images), val_embeddings=str(world.embeddings), val_kind="embeddings")
    (found,) = trainer(tmp_path, 1).validate(module, datamodule=datamodule, verbose=False)
    loader = datamodule.val_dataloader()
    errors, targets = [], []
    for batch in loader:
        with torch.no_grad():
            student = encoder.eval()(batch.images, batch.sizes)
        target, valid = on_student_grid(batch.embeddings.float(), batch.embedding_frames, batch.frames, (4, 4))
        cells = valid[:, 0]
        errors.append((student - target).permute(0, 2, 3, 1)[cells])
        targets.append(target.permute(0, 2, 3, 1)[cells])
    error, target = torch.cat(errors), torch.cat(targets)
    expected = error.square().sum() / (target - target.mean(0)).square().sum()
    assert found["val/fvu"] == pytest.approx(float(expected), rel=1e-4)


def test_the_student_is_tested_by_clicks(world, encoder, tmp_path):
    module = DistillModule(encoder, decoder=str(world.decoder), clicks=2)
    (found,) = trainer(tmp_path, 1).test(module, datamodule=data(world, test=str(world.images)), verbose=False)
    assert {"test/noc90", "test/iou@1", "test/boundary_iou"} <= set(found)


def test_distillation_learns(world, encoder, tmp_path):
    datamodule = cached(world, val=str(world.images), val_embeddings=str(world.embeddings), val_kind="embeddings")
    module = DistillModule(encoder, optimizer=OptimizerConfig(lr=3e-3, warmup_steps=5), start_at_teacher=True)
    fit = trainer(tmp_path, 60, limit_val_batches=0)
    fit.fit(module, datamodule=datamodule)
    (found,) = trainer(tmp_path, 1).validate(module, datamodule=datamodule, verbose=False)
    assert found["val/fvu"] < 0.9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"area": "all"}, "model.area 'all' needs an online teacher"),
        ({"init_from": "/nowhere/x.ckpt"}, "/nowhere/x.ckpt"),
    ],
)
def test_contradictions_are_named_at_construction(encoder, options, words):
    with pytest.raises(UserError, match=words):
        DistillModule(encoder, **options)


def test_no_teacher_at_all_is_named(world, encoder, tmp_path):
    with pytest.raises(UserError, match=r"data\.embeddings .*model\.teacher"):
        trainer(tmp_path, 1).fit(DistillModule(encoder, optimizer=FAST), datamodule=data(world))


def test_another_canvas_than_the_online_teachers_is_named(world, encoder, tmp_path):
    module = DistillModule(encoder, optimizer=FAST, teacher=str(world.teacher))
    with pytest.raises(UserError, match=r"64 pixels, data\.image_size is 32"):
        trainer(tmp_path, 1).fit(module, datamodule=data(world, image_size=32))

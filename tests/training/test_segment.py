"""Mask training: clicks on the model's own errors, what is frozen stays frozen, and it learns."""

import pytest
import torch
from lightning import Trainer

from hrsam_lit.data.datamodule import ShardDataModule
from hrsam_lit.errors import UserError
from hrsam_lit.losses import normalized_focal_loss
from hrsam_lit.models.checkpoints import load_model, save_model
from hrsam_lit.models.hrsam import HRSAM
from hrsam_lit.training.optim import OptimizerConfig
from hrsam_lit.training.segment import LossWeights, SegmentModule

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
    options = {"image_size": world.side, "objects": 2, "augment": "none", "workers": 0, **options}
    return ShardDataModule(str(world.images), **options)


def module(world, encoder, **options):
    return SegmentModule(encoder, str(world.decoder), **{"optimizer": FAST, "gamma": 0.3, **options})


@pytest.mark.parametrize(("encoder_learns", "decoder_learns"), [(True, True), (True, False), (False, True)])
def test_what_is_frozen_stays_and_what_is_trained_moves(world, encoder, tmp_path, encoder_learns, decoder_learns):
    segment = module(world, encoder, train_encoder=encoder_learns, train_decoder=decoder_learns)
    before = {name: value.clone() for name, value in segment.model.state_dict().items()}
    trainer(tmp_path, 2).fit(segment, datamodule=data(world))
    moved = {name for name, value in segment.model.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("encoder.") for name in moved) == encoder_learns
    assert any(name.startswith("decoder.") for name in moved) == decoder_learns
    assert "decoder.prompt_encoder.shared_embedding.positional_embedding" not in moved


def test_clicks_lie_on_errors_and_the_loss_is_that_of_the_last_answer(world, encoder, tmp_path, monkeypatch):
    segment = module(world, encoder, gamma=1.0, most_rounds=3)
    asked = []
    decode = segment.model.decode

    def spy(embeddings, canvas, prompts):
        masks = decode(embeddings, canvas, prompts)
        asked.append(
            (prompts.points.clone(), prompts.labels.clone(), prompts.logits is not None, masks.logits, embeddings)
        )
        return masks

    monkeypatch.setattr(segment.model, "decode", spy)
    datamodule = data(world, batch_size=2)
    batch = next(iter(datamodule.train_dataloader()))
    fit = trainer(tmp_path, 1)
    fit.fit(segment, datamodule=datamodule)
    assert [points.shape[2] for points, *_ in asked] == list(range(1, len(asked) + 1))
    assert [fed for _, _, fed, _, _ in asked] == [False] + [True] * (len(asked) - 1)
    *rounds, (_, _, _, supervised, embeddings) = asked
    assert embeddings.requires_grad and not any(one[4].requires_grad for one in rounds)
    points, labels = asked[0][:2]
    for image in range(2):
        for object_ in range(2):
            x, y = points[image, object_, 0].long()
            assert labels[image, object_, 0] == 1 and batch.masks[image, object_, y, x]
    whole = torch.nn.functional.interpolate(supervised.flatten(0, 1), (64, 64), mode="bilinear")[:, 0]
    expected = normalized_focal_loss(whole, batch.masks.flatten(0, 1), None).mean()
    assert float(fit.callback_metrics["train/loss/normalized_focal"]) == pytest.approx(
        float(expected.detach()), rel=1e-5
    )


def test_it_learns_two_boxes(world, encoder, tmp_path):
    segment = module(
        world, encoder, loss=LossWeights(bce=1.0, dice=1.0), optimizer=OptimizerConfig(lr=2e-3, warmup_steps=5)
    )
    seen = []
    segment.log = lambda name, value, **_: seen.append(float(value)) if name == "train/iou" else None
    trainer(tmp_path, 60).fit(segment, datamodule=data(world))
    assert sum(seen[-15:]) / 15 > sum(seen[:15]) / 15 + 0.15


def test_padding_and_ignored_pixels_can_be_left_out(world, encoder):
    batch = next(iter(data(world).train_dataloader()))
    assert module(world, encoder)._valid(batch).all()
    valid = module(world, encoder, padding_counts=False)._valid(batch)
    height, width = batch.sizes[0].tolist()
    assert valid[:, :height, :width].all() and valid.sum() == 2 * height * width
    batch.ignore = torch.zeros(1, 64, 64, dtype=torch.bool)
    batch.ignore[:, 3:5] = True
    assert module(world, encoder)._valid(batch).sum() == 2 * 62 * 64


def test_a_distilled_model_is_where_it_starts_and_the_export_is_what_it_ends_with(world, encoder, tmp_path):
    first = module(world, encoder)
    first.model.image_size = 64
    save_model(first.model, tmp_path / "model")
    second = module(world, HRSAM(**encoder.config), init_from=str(tmp_path / "model"))
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    trainer(tmp_path, 1).fit(second, datamodule=data(world))
    save_model(second.exported(), tmp_path / "model")
    opened = load_model(tmp_path / "model")
    assert opened.first_click == "single" and opened.image_size == 64
    for name, value in second.model.state_dict().items():
        assert torch.equal(value, opened.state_dict()[name]), name


def test_validation_reports_canonical_metrics(world, encoder, tmp_path):
    segment = module(world, encoder, clicks=5)
    fit = trainer(tmp_path, 1)
    (found,) = fit.validate(segment, datamodule=data(world, val=str(world.images), val_limit=3), verbose=False)
    assert {"val/noc90", "val/noc95", "val/nof95", "val/iou@1", "val/iou@5", "val/boundary_iou"} <= set(found)


def test_the_embedding_term_needs_embeddings(world, encoder, tmp_path):
    segment = module(world, encoder, loss=LossWeights(embedding=1.0))
    with pytest.raises(UserError, match=r"set data\.embeddings"):
        trainer(tmp_path, 1).fit(segment, datamodule=data(world))
    together = trainer(tmp_path, 1)
    together.fit(segment, datamodule=data(world, embeddings=str(world.embeddings)))
    assert {"train/loss/embedding", "train/loss/normalized_focal"} <= set(together.callback_metrics)


@pytest.mark.parametrize("weights", [{"normalized_focal": 0.0}, {"dice": -1.0}])
def test_a_loss_without_weight_is_named(weights):
    with pytest.raises(UserError, match=r"model\.loss"):
        LossWeights(**weights)


def test_another_models_checkpoint_is_refused(world, encoder, tmp_path):
    save_model(module(world, encoder).model, tmp_path / "model")
    other = HRSAM(**{**encoder.config, "width": 48})
    with pytest.raises(UserError, match=r"another model's weights: .*pos_embed is \(1, 17, 32\), not \(1, 17, 48\)"):
        module(world, other, init_from=str(tmp_path / "model"))

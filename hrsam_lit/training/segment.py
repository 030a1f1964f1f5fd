"""Mask training with simulated clicks (HRSAM's second stage), and the same without any distillation."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hrsam_lit.clicks import correction_rounds, sample_clicks
from hrsam_lit.data.batch import Batch
from hrsam_lit.data.dataset import EvaluationItem
from hrsam_lit.errors import UserError
from hrsam_lit.losses import bce_loss, dice_loss, normalized_focal_loss
from hrsam_lit.losses.features import feature_mse, on_student_grid
from hrsam_lit.metrics import names
from hrsam_lit.models.checkpoints import init_encoder, load_decoder, read_weights, take_state
from hrsam_lit.models.decoder import Prompts
from hrsam_lit.models.encoder import ImageEncoder
from hrsam_lit.models.promptable import Promptable
from hrsam_lit.training.clicked import ClickedModule
from hrsam_lit.training.data import data_of
from hrsam_lit.training.optim import OptimizerConfig, build_optimizer


@dataclass
class LossWeights:
    """Weights of the mask training's terms; the default is HRSAM's: normalised focal loss alone.

    embedding: keeps the encoder near the teacher's cached embeddings (data.embeddings) while it learns masks.
    """

    normalized_focal: float = 1.0
    bce: float = 0.0
    dice: float = 0.0
    embedding: float = 0.0

    def __post_init__(self) -> None:
        values = [getattr(self, field.name) for field in fields(self)]
        if min(values) < 0 or max(values) == 0:
            raise UserError(f"model.loss has no positive weight, or a negative one: {self}")


class SegmentModule(ClickedModule):
    """Clicks are simulated on the model's own errors; the last answer is supervised.

    One encoder pass with gradient an image; its detached output serves the click rounds.

    encoder: the student. decoder: where SAM's decoder weights come from (teacher folder, file or model folder).
    init_from: model folder or checkpoint to start from, encoder and, where it holds one, decoder.
    start_at_teacher: the output norm starts at the cached embeddings' channel mean and spread (for students
    that were not distilled). gamma, most_rounds: correction clicks before the supervised answer are drawn
    with P(n) ~ gamma^n, n <= most_rounds. spread: a training click is any error pixel deeper than the deepest
    over `spread`. first_click: see Promptable. padding_counts: padding is supervised as background.
    train_encoder, train_decoder: what learns. clicks: simulated a validation object.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        decoder: str,
        *,
        optimizer: OptimizerConfig | None = None,
        loss: LossWeights | None = None,
        init_from: str | None = None,
        start_at_teacher: bool = False,
        gamma: float = 0.6,
        most_rounds: int = 20,
        spread: float = 1.7,
        first_click: Literal["best_of_three", "single"] = "single",
        padding_counts: bool = True,
        train_encoder: bool = True,
        train_decoder: bool = True,
        clicks: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__(clicks)
        self.model = Promptable(encoder, load_decoder(decoder), first_click=first_click).train()
        self.optimizer_config = optimizer or OptimizerConfig()
        self.loss = loss or LossWeights()
        self.start_at_teacher = start_at_teacher
        self.output_factors: dict[str, float] = {}
        self.gamma, self.most_rounds, self.spread = gamma, most_rounds, spread
        self.padding_counts = padding_counts
        self.seed = seed
        if init_from is not None:
            self._take(init_from)
        self.model.encoder.requires_grad_(train_encoder)
        if not train_decoder:
            self.model.decoder.requires_grad_(False)

    def _take(self, source: str) -> None:
        init_encoder(self.model.encoder, source)
        decoder = {
            key.removeprefix("decoder."): value
            for key, value in read_weights(source).items()
            if key.startswith("decoder.")
        }
        if decoder:
            take_state(self.model.decoder, decoder, source)

    def setup(self, stage: str) -> None:
        """Take the canvas size from the data; give an undistilled student the teacher's statistics."""
        datamodule = data_of(self)
        self.model.image_size = datamodule.image_size
        if stage == "fit" and self.start_at_teacher:
            self.output_factors = self.model.encoder.init_output(*datamodule.embedding_statistics())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of the answer to the last click."""
        if batch.masks is None or batch.present is None:
            raise UserError("mask training needs masks: the shards of data.train hold none")
        drawn = np.random.SeedSequence((self.seed, self.global_step, self.global_rank)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(drawn[0] >> 1))
        canvas = (batch.images.shape[2], batch.images.shape[3])
        embeddings = self.model.encode(batch.images, batch.sizes)
        with torch.no_grad():
            prompts = self._click(embeddings.detach(), batch, canvas, generator)
        answer = self.model.decode(embeddings, canvas, prompts)
        logits = F.interpolate(answer.logits.flatten(0, 1).float(), canvas, mode="bilinear", align_corners=False)[:, 0]
        terms = self._terms(logits, embeddings, batch)
        loss = torch.stack([getattr(self.loss, name) * value for name, value in terms.items()]).sum()
        for name, value in terms.items():
            self.log(names.train_loss(name), value, batch_size=len(batch))
        with torch.no_grad():
            self.log(names.TRAIN_IOU, self._iou(logits, batch), prog_bar=True, batch_size=len(batch))
        return loss

    def _click(self, embeddings: Tensor, batch: Batch, canvas: tuple[int, int], generator: torch.Generator) -> Prompts:
        """Clicks and previous logits that the supervised answer gets: one click and n corrections."""
        assert batch.masks is not None
        shape = batch.masks.shape[:2]
        truth = batch.masks.flatten(0, 1)
        # What is clicked or ignored is no error: a clicked pixel is a hole that pushes the next click away.
        settled = torch.zeros_like(truth) if batch.ignore is None else batch.ignore.repeat_interleave(shape[1], 0)
        prediction = torch.zeros_like(truth)
        prompts = Prompts()
        points: list[Tensor] = []
        labels: list[Tensor] = []
        for number in range(1 + correction_rounds(generator, self.gamma, self.most_rounds)):
            if number:
                logits = self.model.decode(embeddings, canvas, prompts).logits[:, :, 0]
                prompts.logits = logits
                whole = F.interpolate(logits.float(), canvas, mode="bilinear", align_corners=False)
                prediction = (whole > 0).flatten(0, 1)
            spread = self.spread if number else 1.0
            point, label = sample_clicks(truth, prediction, generator, spread, settled)
            settled[torch.arange(len(truth)), point[:, 1].long(), point[:, 0].long()] |= label >= 0
            points.append(point)
            labels.append(label)
            prompts.points = torch.stack(points, dim=1).unflatten(0, shape)
            prompts.labels = torch.stack(labels, dim=1).unflatten(0, shape)
        return prompts

    def _terms(self, logits: Tensor, embeddings: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Every term with a positive weight, averaged over the objects (or images) that count."""
        assert batch.masks is not None and batch.present is not None
        truth = batch.masks.flatten(0, 1)
        valid = self._valid(batch)
        weight = (batch.present * batch.weight[:, None]).flatten()
        functions = {"normalized_focal": normalized_focal_loss, "bce": bce_loss, "dice": dice_loss}
        terms = {
            name: (function(logits, truth, valid) * weight).sum() / weight.sum().clamp_min(1)
            for name, function in functions.items()
            if getattr(self.loss, name) > 0
        }
        if self.loss.embedding > 0:
            if batch.embeddings is None or batch.embedding_frames is None:
                raise UserError("model.loss.embedding needs cached embeddings: set data.embeddings")
            grid = (embeddings.shape[2], embeddings.shape[3])
            target, cells = on_student_grid(batch.embeddings, batch.embedding_frames, batch.frames, grid)
            _, std = data_of(self).embedding_statistics()
            losses = feature_mse(embeddings, target, cells, std.to(embeddings.device))
            terms["embedding"] = (losses * batch.weight).sum() / batch.weight.sum().clamp_min(1)
        return terms

    def _valid(self, batch: Batch) -> Tensor | None:
        """Pixels that are supervised, bool (B*P, H, W); None where all are."""
        assert batch.masks is not None
        keep: Tensor | None = None if batch.ignore is None else ~batch.ignore
        if not self.padding_counts:
            height, width = batch.images.shape[2:]
            rows = torch.arange(height, device=batch.images.device) < batch.sizes[:, :1]
            columns = torch.arange(width, device=batch.images.device) < batch.sizes[:, 1:]
            inside = rows[:, :, None] & columns[:, None, :]
            keep = inside if keep is None else keep & inside
        return None if keep is None else keep.repeat_interleave(batch.masks.shape[1], 0)

    @staticmethod
    def _iou(logits: Tensor, batch: Batch) -> Tensor:
        """Mean IoU of the supervised answers on the canvas."""
        assert batch.masks is not None and batch.present is not None
        truth, predicted = batch.masks.flatten(0, 1), logits > 0
        both = (truth & predicted).sum(dim=(1, 2))
        either = (truth | predicted).sum(dim=(1, 2)).clamp_min(1)
        present = batch.present.flatten()
        return ((both / either) * present).sum() / present.sum().clamp_min(1)

    def on_validation_epoch_start(self) -> None:
        """Begin."""
        self.start_clicking()

    def validation_step(self, item: EvaluationItem, batch_idx: int) -> None:
        """Click one held-out object by the evaluation protocol."""
        self.click(item)

    def on_validation_epoch_end(self) -> None:
        """Log."""
        self.log_clicks("val")

    def configure_optimizers(self) -> Any:
        """AdamW over what is trained."""
        return build_optimizer(
            self.model.encoder, self.model.decoder, self.optimizer_config, self.trainer.max_steps, self.output_factors
        )

    def exported(self) -> Promptable:
        """The student, ready to be saved."""
        return self.model

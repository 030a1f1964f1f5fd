"""`hrsam evaluate`: simulated clicks on a prepared set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import track

from hrsam_lit.data.dataset import EvaluationSet
from hrsam_lit.data.record import encode_mask
from hrsam_lit.data.shards import ShardSet
from hrsam_lit.errors import UserError
from hrsam_lit.evaluation.clicks import Clicker, ClickRule, ObjectResult, summarise
from hrsam_lit.files import write_json
from hrsam_lit.models.checkpoints import load_model
from hrsam_lit.models.promptable import Promptable
from hrsam_lit.models.teachers import load_teacher
from hrsam_lit.runs.lineage import lineage
from hrsam_lit.runs.report import metrics_table


def open_model(source: str | Path, teacher_decoder: Path | None = None) -> tuple[Promptable, str]:
    """A model and its name, from a run's model folder or from anything `load_teacher` takes."""
    folder = Path(source)
    if (folder / "config.json").is_file() and '"encoder"' in (folder / "config.json").read_text(encoding="utf-8"):
        return load_model(folder), str(folder)
    teacher = load_teacher(source, teacher_decoder)
    return teacher.model, teacher.name


def evaluate_command(
    source: str,
    data: Path,
    *,
    teacher_decoder: Path | None,
    out: Path | None,
    clicks: int,
    rule: ClickRule,
    image_size: int | None,
    limit: int | None,
) -> None:
    """Evaluate, print the table, and write rows and summary where `out` says."""
    if clicks < 1:
        raise UserError(f"--clicks {clicks}: at least 1 is needed")
    model, name = open_model(source, teacher_decoder)
    if image_size is not None:
        model.image_size = image_size
    items = EvaluationSet(ShardSet.open(data), limit)
    clicker = Clicker(model, clicks, rule)
    results = [clicker(items[index]) for index in track(range(len(items)), description=name)]
    summary = summarise(results)
    print(metrics_table([{"model": name, "objects": len(results), "input": model.image_size, **summary}]), end="")
    if out is not None:
        settings = {"data": str(data), "clicks": clicks, "rule": rule, "image_size": model.image_size}
        results_file(out, name, results, settings)


def results_file(path: Path, name: str, results: list[ObjectResult], settings: Mapping[str, Any]) -> None:
    """One JSON file: what was evaluated and how, the summary, one row an object; kept masks as COCO RLE."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for result in results:
        masks = {count: encode_mask(mask) for count, mask in result.masks.items()}
        rows.append({**result.row(), "masks": masks})
    write_json(path, {"model": name, **settings, "lineage": lineage(), "summary": summarise(results), "objects": rows})

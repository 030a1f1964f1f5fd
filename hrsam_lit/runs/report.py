"""A run's report as one Markdown file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path

from hrsam_lit.files import replacing
from hrsam_lit.metrics import names

# metric -> (digits after the point, meaning); the order is that of the table's columns
METRICS: dict[str, tuple[int, str]] = {
    names.noc(0.90): (2, "mean clicks until IoU 0.90, lower is better"),
    names.noc(0.95): (2, "mean clicks until IoU 0.95, lower is better"),
    names.nof(0.95): (0, "objects that do not reach IoU 0.95 with all clicks, lower is better"),
    names.iou_at(1): (3, "mean IoU after 1 click, higher is better"),
    names.iou_at(5): (3, "mean IoU after 5 clicks, higher is better"),
    names.iou_at(20): (3, "mean IoU after 20 clicks, higher is better"),
    names.MS_IMAGE: (1, "median milliseconds to encode an image"),
    names.MS_CLICK: (1, "median milliseconds to answer a click"),
}
_MISSING = "-"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells -> a Markdown table ending in a newline; columns of numbers are flushed right."""
    assert all(len(row) == len(header) for row in rows), "a row's length differs from the header's"
    cells = [[_cell(text) for text in row] for row in (header, *rows)]
    numeric = [all(_is_number(row[k]) for row in rows) and bool(rows) for k in range(len(header))]
    widths = [max(3, *(len(row[k]) for row in cells)) for k in range(len(header))]
    flush = list(zip(widths, numeric, strict=True))
    rule = ["-" * (width - 1) + ":" if right else "-" * width for width, right in flush]
    lines = []
    for row in (cells[0], rule, *cells[1:]):
        padded = [text.rjust(w) if right else text.ljust(w) for text, (w, right) in zip(row, flush, strict=True)]
        lines.append(f"| {' | '.join(padded)} |\n")
    return "".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _is_number(text: str) -> bool:
    if text == _MISSING:
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def metrics_table(table_rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of column -> value as a Markdown table: text columns, then METRICS in order, then other numbers.

    A value a row does not have, or None, is shown as a dash; a column no row has is left out.
    """
    found = list(dict.fromkeys(name for row in table_rows for name in row))
    text = [name for name in found if any(isinstance(row.get(name), str) for row in table_rows)]
    known = [name for name in METRICS if name in found and name not in text]
    columns = [*text, *known, *(name for name in found if name not in text and name not in METRICS)]
    return markdown_table(columns, [[_value(name, row.get(name)) for name in columns] for row in table_rows])


def _value(name: str, value: object) -> str:
    if value is None:
        return _MISSING
    if not isinstance(value, Real) or isinstance(value, bool):
        return str(value)
    if name in METRICS:
        return f"{float(value):.{METRICS[name][0]}f}"
    return str(value) if isinstance(value, Integral) else f"{float(value):.4g}"


def write_report(
    path: str | Path,
    *,
    headline: Sequence[str],
    table_rows: Sequence[Mapping[str, object]],
    stage_lines: Sequence[str],
    pictures: Mapping[str, str],
    commands: Sequence[str],
    notes: Sequence[str],
    title: str = "Report",
) -> None:
    """Write a Markdown report, whole or not at all; a section without content is left out.

    headline: sentences at the top; table_rows: see `metrics_table`; stage_lines, notes: one list item each;
    pictures: title -> path relative to the report's folder, which must exist; commands: shell lines that
    continue from here.
    """
    path = Path(path)
    absent = [name for name in pictures.values() if not (path.parent / name).is_file()]
    assert not absent, f"pictures that are not beside {path}: {absent}"
    sections = [f"# {title}\n", *(f"{line}\n" for line in headline)]
    if table_rows:
        shown = [name for name in METRICS if any(name in row for row in table_rows)]
        meanings = [f"- `{name}`: {METRICS[name][1]}" for name in shown]
        legend = "\n" + "\n".join(meanings) + "\n" if meanings else ""
        sections.append(f"## Results\n\n{metrics_table(table_rows)}{legend}")
    for name, relative in pictures.items():
        target = Path(relative).as_posix()
        sections.append(f"## {name}\n\n![{name}]({f'<{target}>' if ' ' in target else target})\n")
    for name, lines in (("Stages", stage_lines), ("Notes", notes)):
        if lines:
            sections.append(f"## {name}\n\n" + "".join(f"- {line}\n" for line in lines))
    if commands:
        sections.append("## Next\n\n```bash\n" + "\n".join(commands) + "\n```\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text("\n".join(sections), encoding="utf-8")

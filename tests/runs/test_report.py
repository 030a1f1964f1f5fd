"""Reports: the table's order and digits, the sections, whole files."""

from __future__ import annotations

import numpy as np
import pytest

from hrsam_lit.runs.report import METRICS, markdown_table, metrics_table, write_report

ROWS = [
    {"ms/click": 12.345, "model": "teacher", "iou@5": 0.90951, "noc90": 5.268, "nof95": 7, "params (M)": 9.8},
    {"model": "student", "noc90": 15.0, "iou@5": 0.7, "nof95": None, "ms/click": 3.0, "params (M)": 1.25},
]


def everything(**changes):
    content = {
        "headline": ["The student is 7 times faster."],
        "table_rows": ROWS,
        "stage_lines": ["distil: 900 steps, 150 s"],
        "pictures": {"Held-out pictures": "strip.png"},
        "commands": ["hrsam predict a.jpg"],
        "notes": ["one seed"],
    }
    return content | changes


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_columns_are_aligned_numbers_to_the_right():
    table = markdown_table(["name", "n"], [["a", "1.50"], ["longer", "-"]])
    assert table == (
        "| name   |    n |\n"
        "| ------ | ---: |\n"
        "| a      | 1.50 |\n"
        "| longer |    - |\n"
    )  # fmt: skip


def test_bars_and_line_breaks_stay_inside_their_cell():
    lines = markdown_table(["a|b"], [["x\ny | z"]]).splitlines()
    assert lines == ["| a\\|b     |", "| -------- |", "| x y \\| z |"]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(AssertionError, match="length"):
        markdown_table(["a", "b"], [["1"]])


def test_metrics_stand_in_their_order_with_their_digits():
    lines = [cells(line) for line in metrics_table(ROWS).splitlines()]
    assert lines[0] == ["model", "noc90", "nof95", "iou@5", "ms/click", "params (M)"]
    assert lines[2] == ["teacher", "5.27", "7", "0.910", "12.3", "9.8"]
    assert lines[3] == ["student", "15.00", "-", "0.700", "3.0", "1.25"]


@pytest.mark.parametrize("kind", [float, np.float64, np.float32])
def test_numbers_of_any_library_are_rounded_alike(kind):
    assert "| 0.667 |" in metrics_table([{"iou@5": kind(2 / 3)}])
    assert "| 0.6667 |" in metrics_table([{"other": kind(2 / 3)}])
    assert "nan" in metrics_table([{"iou@5": kind("nan")}])
    assert "| 15.00 |" in metrics_table([{"noc90": 15}])


def test_every_metric_has_a_column():
    table = metrics_table([dict.fromkeys(METRICS, 1.0)])
    assert cells(table.splitlines()[0]) == list(METRICS)


def test_the_report_has_every_section_in_order(tmp_path):
    (tmp_path / "strip.png").write_bytes(b"")
    write_report(tmp_path / "report.md", **everything(title="Quickstart"))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert heads == ["# Quickstart", "## Results", "## Held-out pictures", "## Stages", "## Notes", "## Next"]
    for part in (
        "The student is 7 times faster.", "| teacher |", "- `noc90`: ", "![Held-out pictures](strip.png)",
        "- distil: 900 steps, 150 s", "- one seed", "```bash\nhrsam predict a.jpg\n```",
    ):  # fmt: skip
        assert part in text
    assert "noc95" not in text  # no row has it
    assert "\n\n\n" not in text


def test_empty_sections_are_left_out(tmp_path):
    empty = everything(headline=[], table_rows=[], stage_lines=[], pictures={}, commands=[], notes=[])
    write_report(tmp_path / "report.md", **empty)
    assert (tmp_path / "report.md").read_text() == "# Report\n"


def test_a_picture_that_is_not_there_is_refused_and_the_old_report_stays(tmp_path):
    (tmp_path / "report.md").write_text("old")
    with pytest.raises(AssertionError, match=r"strip\.png"):
        write_report(tmp_path / "report.md", **everything())
    assert [file.name for file in tmp_path.iterdir()] == ["report.md"]
    assert (tmp_path / "report.md").read_text() == "old"


def test_a_write_that_fails_leaves_the_old_report(tmp_path):
    (tmp_path / "report.md").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_report(tmp_path / "report.md", **everything(pictures={}, notes=["\ud800"]))
    assert [file.name for file in tmp_path.iterdir()] == ["report.md"]
    assert (tmp_path / "report.md").read_text() == "old"


def test_links_with_spaces_are_bracketed(tmp_path):
    (tmp_path / "two words.png").write_bytes(b"")
    write_report(tmp_path / "report.md", **everything(pictures={"P": "two words.png"}))
    assert "![P](<two words.png>)" in (tmp_path / "report.md").read_text()

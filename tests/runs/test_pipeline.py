"""Stages are finished once, in order, and go on where they stopped."""

import json

import pytest

from hrsam_lit.errors import UserError
from hrsam_lit.runs.pipeline import Pipeline, Stage


def stage(folder, name, ran, fail=False):
    def run():
        ran.append(name)
        if fail:
            raise KeyboardInterrupt
        (folder / name).write_text(name)
        return f"made {name}"

    return Stage(name, run, (folder / name,))


def test_a_broken_run_goes_on_at_the_broken_stage(tmp_path, capsys):
    folder, ran = tmp_path / "run", []
    pipeline = Pipeline(folder, {"seed": 1})
    with pytest.raises(KeyboardInterrupt):
        pipeline.run([stage(folder, "a", ran), stage(folder, "b", ran, fail=True), stage(folder, "c", ran)])
    again = Pipeline(folder, {"seed": 1})
    again.run([stage(folder, name, ran) for name in "abc"])
    assert ran == ["a", "b", "b", "c"]
    assert "[1/3] a: made a (done before)" in capsys.readouterr().out
    assert [line.split(":")[0] for line in again.lines()] == ["a", "b", "c"]


def test_a_finished_stage_whose_output_is_gone_runs_again(tmp_path):
    folder, ran = tmp_path / "run", []
    Pipeline(folder, {}).run([stage(folder, "a", ran)])
    (folder / "a").unlink()
    Pipeline(folder, {}).run([stage(folder, "a", ran)])
    assert ran == ["a", "a"]


def test_other_settings_are_refused_and_fresh_starts_anew(tmp_path):
    folder, ran = tmp_path / "run", []
    Pipeline(folder, {"minutes": 5}).run([stage(folder, "a", ran)])
    with pytest.raises(UserError, match=r"minutes 5 instead of 7.*--fresh"):
        Pipeline(folder, {"minutes": 7})
    Pipeline(folder, {"minutes": 7}, fresh=True).run([stage(folder, "a", ran)])
    assert ran == ["a", "a"]


def test_fresh_deletes_no_folder_that_is_not_a_run(tmp_path):
    (tmp_path / "precious").write_text("mine")
    Pipeline(tmp_path, {}, fresh=True)
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps({"settings": {}})[:-3])
    with pytest.raises(UserError, match=r"state\.json"):
        Pipeline(tmp_path, {})

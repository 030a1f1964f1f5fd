"""Stages in order, each finished once: a pipeline that goes on where it was stopped."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrsam_lit.errors import UserError
from hrsam_lit.files import write_json


@dataclass(frozen=True)
class Stage:
    """A name, the work, and what the work leaves; `run` returns the stage's one plain line.

    A stage may be interrupted at any moment: run again, it goes on or starts anew by itself.
    """

    name: str
    run: Callable[[], str]
    outputs: tuple[Path, ...]


class Pipeline:
    """Runs stages in a folder; `state.json` there holds the settings and every finished stage's line.

    settings: plain values that decide the outcome; a folder made with others is refused.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], fresh: bool = False) -> None:
        self.folder = folder
        self.path = folder / "state.json"
        if fresh and self.path.is_file():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.state: dict[str, Any] = {"settings": dict(settings), "stages": {}}
        if self.path.is_file():
            self.state = self._read(dict(settings))
        else:
            write_json(self.path, self.state)

    def _read(self, settings: dict[str, Any]) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            made = state["settings"]
        except (json.JSONDecodeError, KeyError) as error:
            raise UserError(f"{self.path} is no pipeline state ({error}); --fresh starts anew") from None
        differing = [key for key in settings if made.get(key) != settings[key]]
        if differing:
            shown = ", ".join(f"{key} {made.get(key)!r} instead of {settings[key]!r}" for key in differing)
            raise UserError(f"{self.folder} holds a run with {shown}; give another --out, or --fresh to start anew")
        return state

    def run(self, stages: list[Stage]) -> None:
        """Run what is not finished, in order, and print each stage's line."""
        for number, stage in enumerate(stages, start=1):
            title = f"[{number}/{len(stages)}] {stage.name}"
            finished = self.state["stages"].get(stage.name)
            if finished is not None and all(path.exists() for path in stage.outputs):
                print(f"{title}: {finished['line']} (done before)", flush=True)
                continue
            print(f"{title} ...", flush=True)
            start = time.monotonic()
            line = stage.run()
            missing = [str(path) for path in stage.outputs if not path.exists()]
            assert not missing, f"stage {stage.name} left no {', '.join(missing)}"
            seconds = round(time.monotonic() - start, 1)
            self.state["stages"][stage.name] = {"line": line, "seconds": seconds}
            write_json(self.path, self.state)
            print(f"{title}: {line} ({seconds:.0f} s)", flush=True)

    def lines(self) -> list[str]:
        """`name: line (seconds)` of every finished stage."""
        return [f"{name}: {stage['line']} ({stage['seconds']:.0f} s)" for name, stage in self.state["stages"].items()]

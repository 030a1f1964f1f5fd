"""Every module imports, and the command line starts light."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"hrsam_lit": ".", "hrsam_kernels": "kernels", "hrsam_prep": "data_prep"}


def modules() -> list[str]:
    """Dotted names of the modules of our three packages, read off the tree."""
    names = []
    for package, source in SOURCES.items():
        for file in sorted((ROOT / source / package).rglob("*.py")):
            parts = file.relative_to(ROOT / source).with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


@pytest.mark.parametrize("name", modules())
def test_module_imports_from_this_tree(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert Path(module.__file__).resolve().is_relative_to(ROOT)


def test_all_three_packages_are_walked() -> None:
    assert {name.split(".")[0] for name in modules()} == SOURCES.keys()


@pytest.mark.parametrize("name", ["hrsam_lit", "hrsam_lit.cli"])
def test_import_does_not_load_heavy_packages(name: str) -> None:
    code = f"import sys, {name}; print(*{{'torch', 'lightning', 'transformers'}} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == []

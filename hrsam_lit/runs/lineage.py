"""Which code and which libraries made a result."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from hrsam_lit import __version__


def lineage() -> dict[str, str]:
    """Plain strings: git commit of the code (or "release"), versions, and the device."""
    libraries = {name: version(name) for name in ("lightning", "transformers", "albumentations", "webdataset")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "hrsam_lit": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **libraries,
        "device": device,
    }


def _commit() -> str:
    """Commit of the checkout this file lies in, with + where it was changed; "release" outside a checkout."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return "release"

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")

"""Write requirements.lock; `make lock` runs this.

Versions are those installed beside this interpreter: change them there, run the tests, then lock.
Hashes come from pip's own resolver report, so the indexes are the ones pip is configured with; one
report a target below, because a release has another wheel for each Python and platform. `--check`
asks nobody: it compares the lock with what is declared and installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
GLIBCS = (17, 24, 26, 27, 28)  # the manylinux generations a current Linux accepts
MACHINES = {  # pip's --platform tags of a machine, and what markers see there
    "linux x86_64": [f"manylinux_2_{g}_x86_64" for g in GLIBCS] + ["manylinux2014_x86_64"],
    "linux aarch64": [f"manylinux_2_{g}_aarch64" for g in GLIBCS] + ["manylinux2014_aarch64"],
    "darwin arm64": ["macosx_14_0_arm64"],
}
HEADER = f"""\
# What hrsam-lit[quickstart,test] needs, as tested; written by `make lock`, not by hand.
# torch is left out: its build depends on the machine, so the Makefile installs it (TORCH there).
#   pip install --require-hashes --no-deps -r requirements.lock
# Hashes are of the wheels for CPython {PYTHONS[0]} to {PYTHONS[-1]} on {", ".join(MACHINES)}.
"""


def environments() -> list[dict[str, str]]:
    """Marker environments of every target."""
    here = {key: str(value) for key, value in default_environment().items()}
    found = []
    for machine in MACHINES:
        system, architecture = machine.split()
        there = {"sys_platform": system, "platform_system": system.capitalize()}
        there["platform_machine"] = architecture
        for python in PYTHONS:
            found.append({**here, **there, "python_version": python, "python_full_version": f"{python}.0"})
    return found


def closure(requirements: Iterable[str], environments: list[dict[str, str]], torch: bool = False) -> dict[str, str]:
    """Canonical name -> installed version of all that `requirements` reach in any of the environments.

    Raises SystemExit when something reached is not installed, or at a version outside its bound.
    Unless asked for, torch is walked through but not listed, and of its requirements only those
    without a marker count, since the others are the GPU libraries of one build.
    """
    versions: dict[str, str] = {}
    seen: set[tuple[str, str, int]] = set()
    queue = [(Requirement(text), "", index) for text in requirements for index in range(len(environments))]
    while queue:
        requirement, extra, index = queue.pop()
        marker = requirement.marker
        if marker is not None and not marker.evaluate({**environments[index], "extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            raise SystemExit(f"{requirement} is needed, but not installed; install it here first") from None
        if not requirement.specifier.contains(found.version, prereleases=True):
            raise SystemExit(f"{name} {found.version} is installed, but {requirement} is needed")
        if torch or name != "torch":
            versions[name] = found.version
        for wanted in {"", *requirement.extras}:
            if (name, wanted, index) in seen:
                continue
            seen.add((name, wanted, index))
            for text in found.requires or ():
                child = Requirement(text)
                if torch or name != "torch" or child.marker is None:
                    queue.append((child, wanted, index))
    return versions


def report(pins: list[str], python: str, platforms: list[str]) -> dict[str, tuple[str, str]]:
    """Canonical name -> (wheel's file name, SHA-256) as pip would install `pins` on one target."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, answer = Path(folder, "pins.txt"), Path(folder, "report.json")
        wanted.write_text("\n".join(pins) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--no-deps", "--only-binary=:all:", "--report", str(answer)]
        command += ["--target", str(Path(folder, "none")), "--python-version", python, "-r", str(wanted)]
        command += [part for platform in platforms for part in ("--platform", platform)]
        subprocess.run(command, check=True)
        installs = json.loads(answer.read_text(encoding="utf-8"))["install"]
    return {
        canonicalize_name(item["metadata"]["name"]): (
            item["download_info"]["url"].rsplit("/", 1)[-1],
            item["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for item in installs
    }


def declared() -> list[str]:
    """Requirements that the lock answers: to build, to run, for quickstart and for the tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    roots = [*project["build-system"]["requires"], *project["project"]["dependencies"], *extras["quickstart"]]
    return roots + [text for text in extras["test"] if Requirement(text).name != project["project"]["name"]]


def check(versions: dict[str, str]) -> None:
    """Raise SystemExit unless requirements.lock pins exactly `versions`."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    pins = {line.split()[0] for line in lines if "==" in line and not line.startswith("#")}
    wanted = {f"{name}=={version}" for name, version in versions.items()}
    problems = [f"{pin} is needed here, but not locked" for pin in sorted(wanted - pins)]
    problems += [f"{pin} is locked, but not needed here" for pin in sorted(pins - wanted)]
    if problems:
        raise SystemExit("\n".join(problems))
    print(f"{LOCK.name}: {len(pins)} packages, as declared and as installed")


def write(versions: dict[str, str]) -> None:
    """Collect the hashes of `versions`, then replace requirements.lock."""
    hashes: dict[str, set[str]] = {name: set() for name in versions}
    pins = [f"{name}=={version}" for name, version in versions.items()]
    for machine, platforms in MACHINES.items():
        for python in PYTHONS:
            print(f"{machine}, Python {python}: {len(pins)} packages", flush=True)
            portable = set()
            for name, (file, sha256) in report(pins, python, platforms).items():
                hashes[name].add(sha256)
                if file.endswith("-none-any.whl"):
                    portable.add(name)
            pins = [pin for pin in pins if pin.split("==")[0] not in portable]

    lines = [HEADER]
    for name in sorted(versions):
        found = [f"    --hash=sha256:{sha256}" for sha256 in sorted(hashes[name])]
        lines.append(" \\\n".join([f"{name}=={versions[name]}", *found]) + "\n")
    temporary = LOCK.with_suffix(".lock.tmp")
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, LOCK)
    print(f"{LOCK.name}: {len(versions)} packages, {sum(map(len, hashes.values()))} hashes")


if __name__ == "__main__":
    (check if "--check" in sys.argv[1:] else write)(closure(declared(), environments()))

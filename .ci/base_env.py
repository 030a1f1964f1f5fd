"""Make an environment that holds the base dependencies alone: python .ci/base_env.py DIR [--bare]

It links what hrsam-lit requires without extras out of the environment this runs in, so it takes
seconds and holds the very files of the lock; what only the extras bring is absent. hrsam-lit itself
is linked as it is installed here; `--bare` leaves it out, for a wheel to be put in.
"""

from __future__ import annotations

import argparse
import venv
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path, PurePosixPath

from lock import closure
from packaging.markers import default_environment
from packaging.utils import canonicalize_name

PROJECT = "hrsam-lit"


def name_of(found: Distribution) -> str:
    """Canonical name of a distribution."""
    return canonicalize_name(found.metadata["Name"])


def library_files(found: Distribution) -> list[PurePosixPath]:
    """Files of a distribution below site-packages, compiled caches left out."""
    if found.files is None:
        raise SystemExit(f"{name_of(found)} has no list of its files; reinstall it with pip")
    return [file for file in found.files if file.parts[0] != ".." and "__pycache__" not in file.parts]


def link(wanted: set[str], site: Path) -> None:
    """Link the library files of the `wanted` distributions into `site`.

    A top folder that no other distribution shares is one link; the others are linked file by file.
    """
    installed = {name_of(found): found for found in reversed(list(distributions()))}
    files = {name: library_files(found) for name, found in installed.items()}
    shared = {file.parts[0] for name in files.keys() - wanted for file in files[name]}
    for name in sorted(wanted):
        for file in files[name]:
            top = PurePosixPath(file.parts[0])
            part = file if top.name in shared else top
            target = site / part
            if not target.is_symlink():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(str(installed[name].locate_file(part)))


def main() -> None:
    """Make the environment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bare", action="store_true", help="leave the project itself out")
    arguments = parser.parse_args()

    environment = {key: str(value) for key, value in default_environment().items()}
    wanted = set(closure(distribution(PROJECT).requires or (), [environment], torch=True))
    if not arguments.bare:
        wanted.add(PROJECT)
    venv.create(arguments.folder, clear=True, symlinks=True, with_pip=False)
    (site,) = arguments.folder.glob("lib/python*/site-packages")
    link(wanted, site)
    print(f"{arguments.folder}: {len(wanted)} distributions")


if __name__ == "__main__":
    main()

"""Compare a built wheel with the tree it came from: python .ci/check_wheel.py WHEEL"""

from __future__ import annotations

import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Exit with a message when a file is missing from the wheel, or is there uninvited."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    expected = set()
    for package, folder in setuptools["package-dir"].items():
        source = ROOT / folder
        for file in source.rglob("*"):
            if file.suffix in {".py", ".yaml", ".typed"}:
                expected.add(f"{package}/{file.relative_to(source).as_posix()}")
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
    found = {name for name in names if not name.split("/")[0].endswith(".dist-info")}

    # A stray top-level `kernels` would overwrite another project's package of that name.
    tops = {name.split("/")[0] for name in found} - set(setuptools["package-dir"])
    problems = [f"top-level {top} does not belong in the wheel" for top in sorted(tops)]
    problems += [f"{name} is in the tree, not in the wheel" for name in sorted(expected - found)]
    problems += [f"{name} is in the wheel, not in the tree" for name in sorted(found - expected)]
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        problems.append("the licence is not in the wheel")
    if problems:
        raise SystemExit("\n".join(problems))
    print(f"{sys.argv[1]}: {len(found)} files in {', '.join(sorted(setuptools['package-dir']))}")


if __name__ == "__main__":
    main()

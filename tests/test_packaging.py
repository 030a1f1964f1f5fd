"""What is declared, locked and shipped agrees with the tree."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT: dict[str, Any] = tomllib.loads(TEXT)
SETUPTOOLS: dict[str, Any] = PROJECT["tool"]["setuptools"]
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
DECLARED = [
    *PROJECT["build-system"]["requires"],
    *PROJECT["project"]["dependencies"],
    *(text for extra in EXTRAS.values() for text in extra),
]
BOUNDS = [text for text in DECLARED if Requirement(text).specifier]
LOCKED_EXTRAS = ("quickstart", "test")


def lock() -> dict[str, tuple[Version, list[str]]]:
    """Canonical name -> (version, SHA-256 hashes) of requirements.lock."""
    found: dict[str, tuple[Version, list[str]]] = {}
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    for line in lines:
        if not line or line.startswith("#"):
            continue
        pin, *options = line.split()
        name, version = pin.split("==")
        assert name == canonicalize_name(name), f"{name} is not in canonical form"
        assert name not in found, f"{name} is locked twice"
        found[name] = (Version(version), [option.removeprefix("--hash=sha256:") for option in options])
    return found


LOCK = lock()


def torch_of_makefile() -> Version:
    """The version of torch that the Makefile installs beside the lock."""
    match = re.search(r"^TORCH \?= (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert match is not None
    return Version(match[1])


def folders_with(suffix: str) -> set[str]:
    """Dotted package names of all folders below the source roots that hold files with a suffix."""
    found = set()
    for package, folder in SETUPTOOLS["package-dir"].items():
        for file in (ROOT / folder).rglob(f"*{suffix}"):
            found.add(".".join([package, *file.parent.relative_to(ROOT / folder).parts]))
    return found


@pytest.mark.parametrize("text", BOUNDS)
def test_bound_carries_its_reason_on_the_same_line(text: str) -> None:
    lines = [line for line in TEXT.splitlines() if f'"{text}"' in line]
    assert lines
    for line in lines:
        assert re.search(r"#.*[a-z]{3}", line.split(f'"{text}"', 1)[1]), f"{line.strip()} gives no reason"


def test_python_bound_carries_its_reason() -> None:
    (line,) = [line for line in TEXT.splitlines() if line.startswith("requires-python")]
    assert re.search(r"#.*[a-z]{3}", line)


@pytest.mark.parametrize(
    "text",
    [
        *PROJECT["build-system"]["requires"],
        *PROJECT["project"]["dependencies"],
        *(text for extra in LOCKED_EXTRAS for text in EXTRAS[extra]),
    ],
)
def test_dependency_is_locked_inside_its_bound(text: str) -> None:
    requirement = Requirement(text)
    name = canonicalize_name(requirement.name)
    if name == PROJECT["project"]["name"]:
        assert requirement.extras <= set(LOCKED_EXTRAS)
        return
    version = torch_of_makefile() if name == "torch" else LOCK[name][0]
    assert requirement.specifier.contains(version, prereleases=True), f"{version} is locked"


def test_every_pin_has_hashes() -> None:
    assert LOCK
    for name, (_, hashes) in LOCK.items():
        assert hashes, f"{name} has no hash"
        assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in hashes), name


def test_torch_and_its_gpu_libraries_are_not_locked() -> None:
    assert [name for name in LOCK if re.match(r"torch$|triton|nvidia-|cuda-", name)] == []


@pytest.mark.parametrize("bad", ["2.6.2", "2.6.3"])
@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
def test_malicious_lightning_is_neither_locked_nor_allowed(name: str, bad: str) -> None:
    assert LOCK[name][0] != Version(bad)
    for text in DECLARED:
        if canonicalize_name(Requirement(text).name) == name:
            assert not Requirement(text).specifier.contains(bad)


def test_lock_names_no_host() -> None:
    for name in ("requirements.lock", "Makefile", ".ci/lock.py", ".ci/run"):
        assert "://" not in (ROOT / name).read_text(encoding="utf-8"), name


def test_imports_point_one_way() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_no_package_takes_a_common_name() -> None:
    tops = {name.split(".")[0] for name in SETUPTOOLS["packages"]}
    assert tops == SETUPTOOLS["package-dir"].keys()
    assert tops.isdisjoint({"kernels", "tests", "experiments", "data_prep", "benchmarks"})


@pytest.mark.parametrize("folder", ["kernels", "data_prep", "tests"])
def test_source_root_is_no_package(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_every_folder_with_python_files_is_packaged() -> None:
    assert folders_with(".py") == set(SETUPTOOLS["packages"])


def test_every_folder_with_recipes_is_packaged() -> None:
    # Data below a folder that is no package still goes in, but setuptools announces that this will end.
    assert folders_with(".yaml") <= set(SETUPTOOLS["packages"])


def test_every_package_has_an_init() -> None:
    for name in SETUPTOOLS["packages"]:
        top, *rest = name.split(".")
        assert ROOT.joinpath(SETUPTOOLS["package-dir"][top], *rest, "__init__.py").is_file(), name


def test_recipes_are_package_data() -> None:
    experiments = ROOT / SETUPTOOLS["package-dir"]["hrsam_experiments"]
    globs = SETUPTOOLS["package-data"]["hrsam_experiments"]
    matched = {file for glob in globs for file in experiments.glob(glob)}
    assert set(experiments.rglob("*.yaml")) <= matched
    assert list(experiments.rglob("*.yml")) == [], "the suffix of recipes is .yaml"


def test_recipes_are_read_through_importlib_resources() -> None:
    recipes = list((ROOT / "experiments").rglob("*.yaml"))
    assert recipes
    for recipe in recipes:
        parts = recipe.relative_to(ROOT / "experiments").parts
        assert files("hrsam_experiments").joinpath(*parts).read_bytes() == recipe.read_bytes()


def test_typing_marker_is_shipped() -> None:
    assert "py.typed" in SETUPTOOLS["package-data"]["hrsam_lit"]
    assert (ROOT / "hrsam_lit" / "py.typed").is_file()


def test_licence_is_whole() -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence

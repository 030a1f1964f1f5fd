"""Bad input as a user meets it: one clear line, exit code 2, nothing half-written."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrsam_lit import cli
from hrsam_lit.data.shards import ShardSet


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def jpeg(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def mask(height: int, width: int, value: int = 255) -> bytes:
    array = np.zeros((height, width), np.uint8)
    array[: height // 2, : width // 2] = value
    return png(array)


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("images", "masks"):
        (tmp_path / "raw" / name).mkdir(parents=True)
    for number in range(3):
        (tmp_path / f"raw/images/p{number}.jpg").write_bytes(jpeg(40, 50))
        (tmp_path / f"raw/masks/p{number}.png").write_bytes(mask(40, 50))
    return tmp_path / "raw"


def refused(capsys, *arguments) -> str:
    assert cli.main([str(argument) for argument in arguments]) == 2
    shown = capsys.readouterr().err
    lines = [line for line in shown.splitlines() if line.startswith("hrsam: error: ")]
    assert len(lines) == 1 and "Traceback" not in shown
    return lines[0]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("masks/p1.png", mask(40, 60), ("p1.png", "p1.jpg")),
        ("images/p1.jpg", jpeg(40, 50)[:300], ("p1.jpg",)),
        ("images/p1.jpg", b"not an image", ("p1.jpg",)),
        ("masks/p1.png", mask(40, 50, 0), ("p1.png",)),
        ("images/p1.jpg", jpeg(1, 1), ("p1.jpg", "1 x 1")),
        ("masks/p1.png", None, ("p1.jpg",)),
    ],
    ids=["mask of another size", "cut JPEG", "no JPEG", "empty mask", "image of 1x1", "no mask"],
)
def test_a_bad_file_is_named_and_no_set_is_left(folder, tmp_path, capsys, file, content, words):
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    line = refused(capsys, "prep", "folder", "--source", folder, "--out", tmp_path / "out", "--holdout", 0)
    assert all(word in line for word in words)
    assert not list((tmp_path / "out").rglob("*"))


def test_an_image_of_30000_by_50_goes_all_the_way(world, folder, tmp_path, capsys):
    (folder / "images/wide.jpg").write_bytes(jpeg(50, 30000))
    (folder / "masks/wide.png").write_bytes(mask(50, 30000))
    out = tmp_path / "out"
    assert cli.main(["prep", "folder", f"--source={folder}", f"--out={out}", "--holdout=0"]) == 0
    assert cli.main(["prep", "embed", str(out / "train"), f"--teacher={world.teacher}", f"--out={tmp_path / 'e'}"]) == 0
    assert (
        cli.main(["evaluate", str(world.teacher), str(out / "train"), "--clicks=2", f"--out={tmp_path / 'r.json'}"])
        == 0
    )
    assert "4" in capsys.readouterr().out and (tmp_path / "r.json").is_file()


def test_a_cut_shard_is_named(world, folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["prep", "folder", f"--source={folder}", f"--out={out}", "--holdout=0"]) == 0
    shard = next((out / "train").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 3])
    line = refused(capsys, "evaluate", world.teacher, out / "train", "--out", tmp_path / "r.json")
    assert shard.name in line and not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "{nothing}", "{images}"], "holds no model"),
        (["evaluate", "{teacher}", "{nothing}"], "nothing"),
        (["evaluate", "{teacher}", "{images}", "--clicks=0"], "--clicks 0"),
        (["prep", "embed", "{images}", "--teacher={nothing}", "--out={out}"], "holds no model"),
        (["prep", "folder", "--source={nothing}", "--out={out}"], "images"),
        (["prep", "sa1b", "--source={nothing}", "--out={out}"], "no SA-1B tar"),
        (["prep", "folder", "--source={raw}", "--out={file}/out"], "cannot be made"),
        (["fit"], "model"),
    ],
)
def test_wrong_paths_and_values_are_named(world, folder, tmp_path, capsys, arguments, words):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "file").write_text("")
    names = {
        "nothing": tmp_path / "nothing", "images": world.images, "teacher": world.teacher, "out": tmp_path / "out",
        "raw": folder, "file": tmp_path / "file",
    }  # fmt: skip
    line = refused(capsys, *(argument.format(**names) for argument in arguments))
    assert words in line
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.tar"))


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from hrsam_lit import cli
raise SystemExit(cli.main(sys.argv[1:]))
"""


def test_a_full_disk_is_one_line_and_leaves_nothing_unfinished(folder, tmp_path):
    for number in range(20):
        (folder / f"images/q{number}.jpg").write_bytes(jpeg(300, 400))
        (folder / f"masks/q{number}.png").write_bytes(mask(300, 400))
    command = ["prep", "folder", f"--source={folder}", f"--out={tmp_path / 'out'}", "--holdout=0"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(limit=300_000), *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "disk is full" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "out").rglob("*.tar*"))
    assert cli.main(command) == 0
    assert len(ShardSet.open(tmp_path / "out/train")) == 23


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="wants a folder that root may not write either")
@pytest.mark.parametrize("command", ["prep folder", "quickstart"])
def test_no_write_permission_is_one_line(world, folder, capsys, command):
    options = {
        "prep folder": ["--source", folder, "--holdout", 0],
        "quickstart": ["--data", folder, "--teacher", world.teacher],
    }
    line = refused(capsys, *command.split(), *options[command], "--out", "/sys/nowhere")
    assert "/sys/nowhere" in line


def test_a_file_where_a_folder_should_be_is_one_line(world, folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = refused(capsys, "quickstart", "--data", folder, "--teacher", world.teacher, "--out", tmp_path / "file/run")
    assert str(tmp_path / "file") in line

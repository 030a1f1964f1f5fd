"""What a user types and sees, without any work done."""

import errno
import subprocess
import sys

import pytest

from hrsam_lit import cli
from hrsam_lit.errors import UserError

COMMANDS = ("quickstart", "fit", "validate", "test", "evaluate", "prep")


def run(capsys, *arguments):
    code = cli.main(arguments)
    return code, capsys.readouterr()


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [["quickstrat"], ["quickstart", "--minuts", "3"], ["quickstart", "--minutes", "soon"], ["prep"], []],
)
def test_mistyped_commands_are_one_line(capsys, arguments):
    code, shown = run(capsys, *arguments)
    assert code == 2 and shown.out == ""
    assert shown.err.startswith("hrsam: error: ") and shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("data.train: no such folder"), 2, "data.train: no such folder"),
        (OSError(errno.ENOSPC, "No space left on device", "/full/disk"), 2, "/full/disk: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 2, "/root/x: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_mistakes_and_full_disks_are_one_line_without_a_traceback(capsys, monkeypatch, error, code, words):
    def fail(_):
        raise error

    monkeypatch.setattr(cli, "_quickstart", fail)
    found, shown = run(capsys, "quickstart")
    assert found == code and words in shown.err and shown.err.count("\n") == 1


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    def fail(_):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(cli, "_quickstart", fail)
    with pytest.raises(OSError, match="Bad file"):
        cli.main(["quickstart"])


def test_help_loads_no_heavy_library():
    code = (
        "import sys; from hrsam_lit import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'lightning', 'transformers', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"

"""Files are whole or absent."""

import pytest

from hrsam_lit.files import replacing, sha256, write_json


def test_an_error_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "state.json"
    write_json(path, {"a": 1})
    before = path.read_bytes()

    def write_half():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_half()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_sha256_of_known_bytes(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

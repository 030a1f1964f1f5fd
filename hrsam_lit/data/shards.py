"""Sets of tar shards with an index: any sample is one seek and one read away.

A set is a folder with `*.tar`, `index.json` (the shards, their hashes, where the data come from) and two
arrays that are memory-mapped: `samples.npy` (byte offset, size, checksum and objects of each sample, in
the order of the shards) and `keys.npy`. A sample is the run of members that share a key, as webdataset
reads it too. 11 million samples take 198 MB of `samples.npy`.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import numpy as np

from hrsam_lit.data.record import Record, read_facts
from hrsam_lit.errors import UserError
from hrsam_lit.files import replacing, sha256, write_json

SCHEMA = 1
INDEX = "index.json"
SAMPLE = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc", "<u4"), ("objects", "<u2")])
LONGEST_KEY = 200
_BLOCK = 512  # tar's unit


def check_key(key: str) -> str:
    """The key itself; raises UserError where it could not be a member's name in a shard."""
    if not key or len(key.encode()) > LONGEST_KEY or any(c in "./\\" or not c.isprintable() for c in key):
        raise UserError(f"sample key {key!r}: 1 to {LONGEST_KEY} bytes without '.', '/' and '\\' are needed; rename it")
    return key


class _Discarded(Exception):
    """Unwinds the files of a shard that is not wanted."""


class ShardWriter:
    """Write samples into numbered tars; the same samples give the same bytes, a shard is whole or absent."""

    def __init__(self, folder: str | Path, samples_per_shard: int = 1000) -> None:
        if samples_per_shard < 1:
            raise UserError(f"samples_per_shard={samples_per_shard}: at least 1 is needed")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.samples_per_shard = samples_per_shard
        self.shard = 0
        self._open = ExitStack()
        self._tar: Any = None
        self._count = 0

    @staticmethod
    def name(shard: int) -> str:
        """File name of a shard by its number."""
        return f"shard-{shard:06d}.tar"

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def add(self, record: Record) -> None:
        """Append one record."""
        self.write(record.key, record.to_members())

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample: extension -> bytes."""
        check_key(key)
        if self._tar is None:
            self._begin()
        self._tar.write({"__key__": key, **members})
        self._count += 1
        if self._count == self.samples_per_shard:
            self.finish_shard()

    def finish_shard(self) -> None:
        """Close the current shard under its final name; nothing where none is open."""
        if self._tar is not None:
            self._open.close()
            self._tar, self._count = None, 0
            self.shard += 1

    def discard(self) -> None:
        """Throw the unfinished shard away; nothing where none is open."""
        with suppress(_Discarded), self._open:
            raise _Discarded
        self._tar, self._count = None, 0

    def _begin(self) -> None:
        from webdataset import TarWriter  # takes a second to import; readers do without it

        temporary = self._open.enter_context(replacing(self.folder / self.name(self.shard)))
        file = self._open.enter_context(temporary.open("wb"))
        self._tar = self._open.enter_context(TarWriter(file, user="", group="", mode=0o644, mtime=0, encoder=False))


def write_index(
    folder: str | Path,
    *,
    kind: str = "images",
    provenance: Mapping[str, Any] | None = None,
    licence: str = "",
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Scan the tars of a folder and write the index beside them.

    kind: "images" (records) or "embeddings"; provenance: where the data come from, licence: a note on
    their terms, facts: what else the kind needs; all three as JSON. Raises UserError for damaged tars,
    repeated keys and member names that point outside.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise UserError(f"{folder}: no .tar shards to index")
    tables, keys, shards = [], [], []
    for path in paths:
        table, names = _scan(path, kind)
        tables.append(table)
        keys += names
        shards.append({"name": path.name, "samples": len(names), "bytes": path.stat().st_size, "sha256": sha256(path)})
    known: set[str] = set()
    for key in keys:
        if key in known:
            raise UserError(f"{folder}: sample key {key!r} occurs twice; keys must be unique in a set")
        known.add(key)
    (folder / INDEX).unlink(missing_ok=True)  # the index is written last and vouches for the arrays
    _save(folder / "samples.npy", np.concatenate(tables))
    _save(folder / "keys.npy", np.array([key.encode() for key in keys]))
    write_json(
        folder / INDEX,
        {
            "schema": SCHEMA,
            "kind": kind,
            "samples": len(keys),
            "shards": shards,
            "provenance": dict(provenance or {}),
            "licence": licence,
            **(facts or {}),
        },
    )


def _save(path: Path, array: np.ndarray) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def _scan(path: Path, kind: str) -> tuple[np.ndarray, list[str]]:
    """Sample table (SAMPLE,) and keys of one tar."""
    keys: list[str] = []
    ranges: list[list[int]] = []  # offset, end, objects
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                key, extension = split_member(path.name, member)
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if not keys or key != keys[-1]:
                    keys.append(check_key(key))
                    ranges.append([member.offset, end, 0])
                ranges[-1][1] = end
                if kind == "images" and extension == "json":
                    text = tar.extractfile(member)
                    assert text is not None
                    ranges[-1][2] = len(read_facts(key, text.read())["instances"])
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{path}: the shard is damaged ({error}); make it again") from error
    table = np.zeros(len(keys), SAMPLE)
    with open(path, "rb") as file:
        for row, (offset, end, objects) in enumerate(ranges):
            file.seek(offset)
            data = file.read(end - offset)
            table[row] = (offset, end - offset, zlib.crc32(data), objects)
        if not keys or file.read(2 * _BLOCK) != bytes(2 * _BLOCK):
            raise UserError(f"{path}: the shard is cut off or empty; make it again")
    return table, keys


def split_member(tar: str, member: tarfile.TarInfo) -> tuple[str, str]:
    """Key and extension of a tar's member; raises UserError for links and names that point outside."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or not member.isreg():
        raise UserError(f"{tar}: member {member.name!r} is not a plain file inside the shard; do not use this shard")
    key, _, extension = str(name).partition(".")
    return key, extension


def _parts(name: str, tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in tar:
        content = tar.extractfile(member)
        if content is not None:  # None for a folder
            yield split_member(name, member)[1], content.read()


class ShardSet:
    """An indexed set of shards; open it with `ShardSet.open`."""

    def __init__(self, folder: Path, info: dict[str, Any], samples: np.ndarray, keys: np.ndarray) -> None:
        self.folder, self.info = folder, info
        self.keys = keys  # bytes (N,)
        self.objects = samples["objects"]  # uint16 (N,), objects of each sample
        self._samples = samples
        self.shard_sizes = np.array([shard["samples"] for shard in info["shards"]], np.int64)
        self._ends = np.cumsum(self.shard_sizes)
        self._sorted: np.ndarray | None = None

    @classmethod
    def open(cls, folder: str | Path, kind: str = "images") -> ShardSet:
        """Memory-map a set; raises UserError where there is none of this kind."""
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; a prepared set of shards is needed here")
        if not (folder / INDEX).is_file():
            raise UserError(f"{folder}: no {INDEX}, so not a finished set of shards; prepare it first")
        try:
            info = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            if info["schema"] != SCHEMA:
                raise UserError(
                    f"{folder / INDEX}: schema {info['schema']}, this version reads {SCHEMA}: prepare the set again"
                )
            if info["kind"] != kind:
                raise UserError(f"{folder}: holds {info['kind']}, not {kind}; give the folder of the {kind}")
            if any(PurePosixPath(shard["name"]).name != shard["name"] for shard in info["shards"]):
                raise UserError(f"{folder / INDEX}: names a shard outside its folder; do not use this set")
            samples = np.load(folder / "samples.npy", mmap_mode="r")
            keys = np.load(folder / "keys.npy", mmap_mode="r")
            count = sum(shard["samples"] for shard in info["shards"])
            if samples.dtype != SAMPLE or not len(samples) == len(keys) == info["samples"] == count:
                raise ValueError("its tables do not belong together")
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder}: the index is damaged ({error}); prepare the set again") from error
        return cls(folder, info, samples, keys)

    def __reduce__(self) -> tuple[Callable[..., ShardSet], tuple[Path, str]]:
        # Pickling a memory map would copy it into every worker.
        return ShardSet.open, (self.folder, self.info["kind"])

    def __len__(self) -> int:
        return len(self._samples)

    def key(self, index: int) -> str:
        """Key of one sample."""
        return bytes(self.keys[index]).decode()

    def find(self, keys: Sequence[str] | np.ndarray) -> np.ndarray:
        """Row of each key (strings or bytes), int64 (len(keys),); raises UserError naming a missing one."""
        asked = np.array([key.encode() for key in keys]) if not isinstance(keys, np.ndarray) else keys
        if np.array_equal(asked, self.keys):
            return np.arange(len(self))
        if self._sorted is None:
            self._sorted = np.argsort(self.keys)
        place = np.searchsorted(self.keys, asked, sorter=self._sorted).clip(max=len(self) - 1)
        rows = self._sorted[place]
        missing = np.flatnonzero(np.asarray(self.keys[rows]) != asked)
        if len(missing):
            raise UserError(
                f"{self.folder}: no sample {bytes(asked[missing[0]]).decode()!r} "
                f"({len(missing)} of {len(asked)} asked for are missing)"
            )
        return rows

    def shard_of(self, index: int) -> str:
        """Name of the shard that holds a sample."""
        return str(self.info["shards"][int(np.searchsorted(self._ends, index, "right"))]["name"])

    def members(self, index: int) -> dict[str, bytes]:
        """Extension -> bytes of one sample; raises UserError naming shard and key where they are wrong."""
        row = self._samples[index]
        name = self.shard_of(index)
        try:
            with open(self.folder / name, "rb") as file:
                file.seek(int(row["offset"]))
                data = file.read(int(row["size"]))
        except OSError as error:
            raise UserError(
                f"{self.folder / name}: sample {self.key(index)!r} cannot be read ({error.strerror}); restore the shard"
            ) from error
        if len(data) != row["size"] or zlib.crc32(data) != row["crc"]:
            raise UserError(
                f"{self.folder / name}: sample {self.key(index)!r} is cut off or damaged; "
                "restore the shard or prepare the set again"
            )
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            return dict(_parts(name, tar))

    def read(self, index: int) -> Record:
        """One sample as a record."""
        return Record.from_members(self.key(index), self.members(index))

    def verify(self, checksums: bool = False) -> None:
        """Compare the shards' sizes (and SHA-256) with the index; raises UserError naming the shard."""
        for shard in self.info["shards"]:
            path = self.folder / shard["name"]
            whole = path.is_file() and path.stat().st_size == shard["bytes"]
            if not whole or (checksums and sha256(path) != shard["sha256"]):
                raise UserError(f"{path}: not the shard the index knows; restore it or prepare the set again")

"""Records -> shard sets, split by photo; a set is finished or absent."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hrsam_lit.data.record import Record
from hrsam_lit.data.shards import INDEX, ShardSet, ShardWriter, write_index
from hrsam_lit.errors import UserError

SPLITS = ("train", "val", "test")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def prepare(
    reader: Iterable[Record],
    out: str | Path,
    *,
    holdout: float = 0.0,
    test: float = 0.0,
    group: str | Callable[[str], str] | None = None,
    seed: int = 0,
    samples_per_shard: int = 1000,
    provenance: Mapping[str, Any] | None = None,
    licence: str = "",
    progress: Callable[[int], None] | None = None,
) -> dict[str, ShardSet]:
    """Write the records to `out/train`, `out/val` and `out/test`, those whose share is above 0.

    holdout, test: shares of the groups that go to val and test; which group goes where follows from its
    name and `seed` alone. group: what must stay together, a regular expression whose first bracket is
    found in the key, or a function of the key; by default every key is its own group. provenance: where
    the records come from, as JSON; sets finished with the same provenance and settings are kept. progress
    is called with the count of records written.

    Raises UserError for shares out of range, a set made otherwise, an empty set and a full disk.
    """
    shares = {"train": 1.0 - holdout - test, "val": holdout, "test": test}
    if min(shares.values()) < -1e-9:
        raise UserError(f"holdout={holdout}, test={test}: shares from 0 to 1 are needed, together at most 1")
    settings = {
        "holdout": holdout,
        "test": test,
        "seed": seed,
        "samples_per_shard": samples_per_shard,
        "group": group if isinstance(group, str | None) else group.__qualname__,
    }
    split_of = _splitter(group, shares, seed)
    return write_sets(
        ((split_of(record.key), record) for record in reader),
        [split for split in SPLITS if shares[split] > 1e-9],
        out,
        samples_per_shard=samples_per_shard,
        provenance={**(provenance or {}), "settings": settings},
        licence=licence,
        progress=progress,
    )


def write_sets(
    records: Iterable[tuple[str, Record]],
    splits: Sequence[str],
    out: str | Path,
    *,
    samples_per_shard: int = 1000,
    provenance: Mapping[str, Any],
    licence: str = "",
    progress: Callable[[int], None] | None = None,
) -> dict[str, ShardSet]:
    """Write records that come with the name of their set to `out/<name>`, for every name in `splits`.

    Sets finished with the same provenance are kept, and then no record is asked for. Raises UserError for a
    set made otherwise, an empty set and a full disk.
    """
    out, about = Path(out), dict(provenance)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}); give another folder") from error
    finished = [split for split in splits if _finished(out / split, about)]
    partial = {split: out / f".{split}.partial" for split in splits}
    for folder in partial.values():
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
    if len(finished) < len(splits):
        try:
            _write(records, partial, samples_per_shard, progress)
            for split, folder in partial.items():
                if not any(folder.glob("*.tar")):
                    raise UserError(f"{out / split}: no photo fell into this set; raise its share or change the seed")
                write_index(folder, provenance={**about, "split": split}, licence=licence)
            for split in splits:
                if split not in finished:
                    partial[split].rename(out / split)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise UserError(
                f"{out}: the disk is full; free some space and run it again (nothing unfinished was left there)"
            ) from error
        finally:
            for folder in partial.values():
                shutil.rmtree(folder, ignore_errors=True)
    return {split: ShardSet.open(out / split) for split in splits}


def _finished(folder: Path, about: dict[str, Any]) -> bool:
    """Whether a set made in this very way lies there; raises UserError for anything else that does."""
    if not folder.exists():
        return False
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder}: exists and is no prepared set; give another folder or remove it")
    images = ShardSet.open(folder)
    found = {name: value for name, value in images.info["provenance"].items() if name != "split"}
    if found != about:
        name = min(name for name in {*found, *about} if found.get(name) != about.get(name))
        raise UserError(
            f"{folder}: was prepared with {name}={found.get(name)!r}, not {about.get(name)!r}; "
            "give another folder or remove it"
        )
    images.verify()
    return True


def _splitter(group: str | Callable[[str], str] | None, shares: dict[str, float], seed: int) -> Callable[[str], str]:
    """Key -> split."""

    def group_of(key: str) -> str:
        if group is None:
            return key
        if callable(group):
            return group(key)
        found = re.search(group, key)
        if found is None:
            raise UserError(f"group={group!r}: not found in sample key {key!r}")
        return found.group(1)

    def split_of(key: str) -> str:
        digest = hashlib.blake2b(f"{seed}:{group_of(key)}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        if place < shares["test"]:
            return "test"
        return "val" if place < shares["test"] + shares["val"] else "train"

    if isinstance(group, str):
        try:
            groups = re.compile(group).groups
        except re.error as error:
            raise UserError(f"group={group!r}: not a regular expression ({error})") from error
        if groups < 1:
            raise UserError(f"group={group!r}: put what photos share in brackets, such as _(\\d+)$")
    return split_of


def _write(
    records: Iterable[tuple[str, Record]],
    folders: dict[str, Path],
    samples_per_shard: int,
    progress: Callable[[int], None] | None,
) -> None:
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(ShardWriter(folder, samples_per_shard)) for split, folder in folders.items()
        }
        for count, (split, record) in enumerate(records, 1):
            writers[split].add(record)
            if progress is not None:
                progress(count)

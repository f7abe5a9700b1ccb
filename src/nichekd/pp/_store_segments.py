"""Segments of a feature store: a file each, so that whoever writes one disturbs nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._files import flush
from nichekd.pp._crops import SEGMENT
from nichekd.pp._store_manifest import CELLS, FEATURES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray


def write_segment(path: Path, segment: int, features: NDArray[np.float16]) -> None:
    """Put the rows of a segment, up to 1,024, into the store ``path``; on disk when it returns."""
    import zarr

    array = zarr.open_array(path / FEATURES, mode="r+")
    start = segment * SEGMENT
    array[start : start + len(features)] = features
    flush(path / FEATURES / array.metadata.encode_chunk_key((segment, 0)))


def by_segment(batches: Iterable[NDArray[np.float16]]) -> Iterator[NDArray[np.float16]]:
    """Batches of rows, from the beginning of a segment on, as whole segments; the last may be shorter."""
    pending: list[NDArray[np.float16]] = []
    for batch in batches:
        pending.append(batch)
        while sum(map(len, pending)) >= SEGMENT:
            rows = np.concatenate(pending)
            yield rows[:SEGMENT]
            pending = [rows[SEGMENT:]]
    if sum(map(len, pending)):
        yield np.concatenate(pending)


def with_done(manifest: dict[str, Any], segments: Iterable[int]) -> dict[str, Any]:
    """``manifest`` once ``segments``, too, are on disk.

    ``n_done`` counts the cells of the segments from the first on; ``ahead`` lists those beyond a gap, where workers
    left one, and is gone when there is none.
    """
    ahead = {*manifest.get("ahead", ()), *segments}
    n_done = manifest["n_done"]
    while n_done < manifest["n"] and n_done // SEGMENT in ahead:
        n_done = min(n_done + SEGMENT, manifest["n"])
    beyond = sorted(segment for segment in ahead if segment * SEGMENT >= n_done)
    rest = {name: value for name, value in manifest.items() if name != "ahead"}
    return rest | {"n_done": n_done} | ({"ahead": beyond} if beyond else {})


def missing_segments(manifest: dict[str, Any]) -> list[int]:
    """Segments that are not on disk yet, in order."""
    ahead = set(manifest.get("ahead", ()))
    wanted = range(-(-manifest["n_done"] // SEGMENT), -(-manifest["n"] // SEGMENT))
    return [segment for segment in wanted if segment not in ahead]


def require_files(path: Path, n_done: int) -> None:
    """Raise ``ValueError`` if files of the first ``n_done`` cells are gone: zarr would read them as zeros."""
    import zarr

    try:
        parts = {name: zarr.open_array(path / name, mode="r") for name in (FEATURES, CELLS)}
    except FileNotFoundError as err:
        raise ValueError(
            f"store={str(path)!r} is damaged: {err}. Delete the folder; the same call makes it again."
        ) from err
    n_files = {FEATURES: -(-n_done // SEGMENT), CELLS: 1}  # a file a segment
    for name, wanted in n_files.items():
        keys = (parts[name].metadata.encode_chunk_key((i, 0)[: parts[name].ndim]) for i in range(wanted))
        lost = sum(not (path / name / key).is_file() for key in keys)
        if lost:
            raise ValueError(
                f"store={str(path)!r} is damaged: {lost:,} of {wanted:,} files of its {name} are gone. Delete the "
                "folder; the same call makes it again."
            )

"""Features on disk: written segment by segment, taken up again where a killed run stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._files import flush, held
from nichekd.pp._crops import SEGMENT
from nichekd.pp._store_manifest import CELLS, FEATURES, FORMAT, LOCK, read_manifest, write_manifest
from nichekd.pp._store_segments import missing_segments, require_files, with_done, write_segment
from nichekd.pp._table_order import TableOrder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import dask.array as da
    from numpy.typing import NDArray

    from nichekd.models._precision import Precision

log = logging.getLogger(__name__)

READ_ROWS = 64  # rows that zarr reads at once; a file holds a segment of them
LAZY_ROWS = 8192  # rows in a chunk of the lazy array, 25 MB of 1,536 features


class FeatureStore:
    """A zarr group with the features of a table's cells, float16.

    ``features`` (n, F) lists cells in the order they were read in, along a curve through the tissue, so that cells
    that lie together are read together; ``cells`` (n,) says which row of the table each is. The group's attributes
    hold the manifest: what the features were made of, and how many segments are done.

    Parameters
    ----------
    path
        Folder of the store; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self._pending: list[NDArray[np.float16]] = []

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What the store was made of, or ``None`` if there is none yet.

        Raises
        ------
        ValueError
            If something else is there, or a store of a later format.
        """
        return read_manifest(self.path)

    @property
    def n_done(self) -> int:
        """Cells from the first on whose features are safe on disk, without a gap."""
        return int((self.manifest or {}).get("n_done", 0))

    @property
    def missing(self) -> list[int]:
        """Segments that are not on disk yet, in order."""
        return missing_segments(self._known())

    @property
    def is_complete(self) -> bool:
        """Whether all cells are done."""
        manifest = self.manifest
        return manifest is not None and manifest["n_done"] == manifest["n"]

    @property
    def precision(self) -> Precision | None:
        """What its features were, or are being, encoded in; ``None`` if there is no store yet."""
        manifest = self.manifest
        return None if manifest is None else manifest["made_of"]["precision"]

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Row of the table of each row of the store, (n,)."""
        import zarr

        return np.asarray(zarr.open_array(self.path / CELLS, mode="r")[:])

    def check(self, made_of: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` if the store was made of anything else, and say what differs."""
        manifest = self.manifest
        if manifest is None:
            return
        theirs = manifest["made_of"]
        differ = [
            f"{name} is {theirs.get(name)!r} in the store and {made_of.get(name)!r} now"
            for name in sorted({*theirs, *made_of})
            if theirs.get(name) != made_of.get(name)
        ]
        if differ:
            raise ValueError(
                f"store={str(self.path)!r} holds the features of something else: {'; '.join(differ)} (encoder of the "
                f"store: {manifest['about'].get('encoder')}). Name another folder, or delete this one."
            )

    @contextmanager
    def writing(
        self, made_of: Mapping[str, Any], *, order: NDArray[np.int64], n_features: int, about: Mapping[str, Any]
    ) -> Iterator[None]:
        """Hold the store against other processes; makes it if there is none.

        The lock is the operating system's, so that it ends with the process that holds it, however that ends.

        Parameters
        ----------
        made_of
            What tells these features from others; a store made of anything else is refused.
        order
            Cells in the order in which they will come; an existing store keeps its own.
        n_features
            F.
        about
            More to note in the manifest.

        Raises
        ------
        RuntimeError
            If another process is writing to it.
        ValueError
            If the store was made of something else.
        """
        self.manifest  # noqa: B018  refuses a folder of other things before anything is written to it
        self.path.mkdir(parents=True, exist_ok=True)
        busy = RuntimeError(
            f"Another process is writing to store={str(self.path)!r}. Wait until it is done, or name another folder."
        )
        with held(self.path / LOCK, busy):
            if self.manifest is None:
                with self._telling(0):
                    self._create(made_of, order, n_features, about)
            self.check(made_of)
            self._pending.clear()
            yield
            if self.is_complete:
                # Windows, while it is held: all cells are done, and a lock does no harm
                with suppress(PermissionError):
                    (self.path / LOCK).unlink(missing_ok=True)

    def append(self, features: NDArray[np.float16]) -> None:
        """Add the features of the next cells of :attr:`order`, (b, F); on disk once a segment or the last is full."""
        self._pending.append(features)
        n_pending, manifest = sum(map(len, self._pending)), self._known()
        is_last = manifest["n_done"] + n_pending == manifest["n"]
        if n_pending >= SEGMENT or is_last:
            pending = np.concatenate(self._pending)
            n_now = n_pending if is_last else n_pending // SEGMENT * SEGMENT
            for start in range(0, n_now, SEGMENT):
                self._commit(pending[start : min(start + SEGMENT, n_now)])
            self._pending = [pending[n_now:]]

    def note_done(self, segments: Iterable[int]) -> None:
        """Note in the manifest that these segments were written, wherever that was."""
        write_manifest(self.path, with_done(self._known(), segments))

    def array(self) -> da.Array:
        """The features in the order of the table, (n, F), lazy, float16.

        Raises
        ------
        ValueError
            If files of the store are gone: zarr would read them as zeros.
        """
        import dask.array as da

        require_files(self.path, self.n_done)
        view = TableOrder(self.path)
        chunks = (min(LAZY_ROWS, view.shape[0]), view.shape[1])
        token = hashlib.sha256(json.dumps([str(self.path), self.manifest], sort_keys=True).encode()).hexdigest()
        return da.from_array(view, chunks=chunks, name=f"nichekd-features-{token}", meta=np.empty((0, 0), np.float16))

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Features of these rows of the table, (m, F)."""
        return TableOrder(self.path).take(rows)

    def _known(self) -> dict[str, Any]:
        manifest = self.manifest
        if manifest is None:
            raise FileNotFoundError(f"There is no feature store {self.path}. Run nk.pp.histology_features(store=...).")
        return manifest

    def _create(
        self, made_of: Mapping[str, Any], order: NDArray[np.int64], n_features: int, about: Mapping[str, Any]
    ) -> None:
        import zarr

        for name in (FEATURES, CELLS):  # of a run that was killed before it wrote its manifest
            shutil.rmtree(self.path / name, ignore_errors=True)
        zarr.create_array(
            self.path / FEATURES,
            shape=(len(order), n_features),
            chunks=(READ_ROWS, n_features),
            shards=(SEGMENT, n_features),
            dtype=np.float16,
            compressors=None,  # floats shrink by a tenth, at three times the time
        )
        cells = zarr.create_array(self.path / CELLS, shape=order.shape, chunks=(len(order),), dtype=np.int64)
        cells[:] = order
        flush(*(path for path in self.path.rglob("*") if path.is_file()))
        manifest = {"format": FORMAT, "made_of": dict(made_of), "about": dict(about), "n": len(order), "n_done": 0}
        write_manifest(self.path, manifest | {"order": "hilbert"})

    def _commit(self, features: NDArray[np.float16]) -> None:
        # what a cluster had done beyond a gap is done again: append() counts on there being none
        manifest = {name: value for name, value in self._known().items() if name != "ahead"}
        start = manifest["n_done"]
        with self._telling(start):
            write_segment(self.path, start // SEGMENT, features)
            write_manifest(self.path, with_done(manifest, [start // SEGMENT]))  # last: what it counts is on disk

    @contextmanager
    def _telling(self, n_done: int) -> Iterator[None]:
        """Have an error of the disk say what is safe."""
        try:
            yield
        except OSError as err:
            safe = f"The first {n_done:,} cells are safe in" if n_done else "No cell is yet in"
            err.add_note(f"{safe} {self.path}; the same call goes on from there.")
            raise


def cells_hash(centre_px: NDArray[np.int64]) -> str:
    """16 hexadecimal digits that tell sets of cells apart: their centre pixels, in the order of the table."""
    return hashlib.sha256(np.ascontiguousarray(centre_px, dtype="<i8").tobytes()).hexdigest()[:16]

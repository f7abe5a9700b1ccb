"""The features of a store, in the order of the table."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd.pp._crops import SEGMENT
from nichekd.pp._store_manifest import CELLS, FEATURES

if TYPE_CHECKING:
    from pathlib import Path

    import zarr
    from numpy.typing import NDArray


class TableOrder:
    """An array (n, F) that reads from the store on ``[...]``; pickled as its path."""

    dtype, ndim = np.dtype(np.float16), 2

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[type[TableOrder], tuple[Path]]:
        return type(self), (self.path,)

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and features."""
        n_cells, n_features = self._features.shape
        return n_cells, n_features

    @cached_property
    def _features(self) -> zarr.Array:
        import zarr

        return zarr.open_array(self.path / FEATURES, mode="r")

    @cached_property
    def _position(self) -> NDArray[np.int64]:
        """Row of the store of each row of the table, (n,)."""
        import zarr

        order = np.asarray(zarr.open_array(self.path / CELLS, mode="r")[:])
        position = np.empty_like(order)
        position[order] = np.arange(len(order))
        return position

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Features of ``rows`` of the table."""
        position = self._position[rows]
        order = np.argsort(position, kind="stable")
        found = np.empty((len(position), self.shape[1]), dtype=self.dtype)
        # file by file, from the first row wanted to the last: zarr takes ten times as long to pick them itself
        for here in np.split(order, np.flatnonzero(np.diff(position[order] // SEGMENT)) + 1):
            if len(here):
                first, last = int(position[here[0]]), int(position[here[-1]])
                found[here] = np.asarray(self._features[first : last + 1])[position[here] - first]
        return found

    def __getitem__(self, index: Any) -> NDArray[np.float16]:
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        return self.take(np.arange(self.shape[0])[rows])[:, columns]

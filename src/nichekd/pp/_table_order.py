"""The features of a store, in the order of the table."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

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
        positions, back = np.unique(self._position[rows], return_inverse=True)  # each file is opened once
        return np.asarray(self._features.oindex[positions])[back]

    def __getitem__(self, index: Any) -> NDArray[np.float16]:
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        return self.take(np.arange(self.shape[0])[rows])[:, columns]

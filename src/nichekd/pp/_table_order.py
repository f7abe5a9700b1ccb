"""The features of a store, in the order of the table."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FEATURES, CELLS = "features", "cells"  # arrays of a store


class TableOrder:
    """The features as an array in the order of the table; pickled as its path."""

    dtype, ndim = np.dtype(np.float16), 2

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.path, self.shape = path, shape

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "shape": self.shape}

    @cached_property
    def _position(self) -> NDArray[np.int64]:
        """Row of the store of each row of the table, (n,)."""
        import zarr

        order = zarr.open_array(self.path / CELLS, mode="r")[:]
        position = np.empty_like(order)
        position[order] = np.arange(len(order))
        return position

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Features of ``rows`` of the table."""
        import zarr

        positions, back = np.unique(self._position[rows], return_inverse=True)  # each file is opened once
        return zarr.open_array(self.path / FEATURES, mode="r").oindex[positions][back]

    def __getitem__(self, index: Any) -> NDArray[np.float16]:
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        return self.take(np.arange(self.shape[0])[rows])[:, columns]

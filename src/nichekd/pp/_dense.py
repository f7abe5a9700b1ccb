"""Cells read off the feature maps of overlapping tiles: the slide is encoded once, however close the cells lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from nichekd.pp._crops import read_ahead
from nichekd.pp._encode import as_float16, one_behind

if TYPE_CHECKING:
    from collections.abc import Generator

    import torch
    from numpy.typing import NDArray

    from nichekd.models import Encoder
    from nichekd.models._precision import Precision
    from nichekd.pp._crops import CropReader

WINDOW = 0.25  # side of the window that is pooled around a cell, in tiles: 56 of 224 px, a cell and those it touches


@dataclass(frozen=True)
class DensePlan:
    """Tiles on a grid, and for each cell what the tile with the nearest centre shows around it.

    Parameters
    ----------
    reader
        Crops around the cells, whose side is that of the tiles.
    encoder
        One that shows its feature map.
    stride_px
        Distance of the tiles' centres.
    batch_size
        Tiles encoded at once.
    num_workers
        Threads that read tiles.
    """

    reader: CropReader
    encoder: Encoder
    stride_px: int
    batch_size: int = 64
    num_workers: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.stride_px <= self.reader.crop_px:
            raise ValueError(
                f"stride_px={self.stride_px}; tiles of {self.reader.crop_px} px cover the slide with a stride of 1 to "
                f"{self.reader.crop_px} px."
            )

    @cached_property
    def n_features(self) -> int:
        """Numbers that are read off at a cell."""
        import torch

        from nichekd.models._dense import read_off

        self.encoder.check(self.reader.crop_px)
        white = np.full((1, 3, self.reader.crop_px, self.reader.crop_px), 255, dtype=np.uint8)
        middle = torch.full((1, 2), 0.5)
        tile = torch.zeros(1, dtype=torch.int64)
        return read_off(self.encoder, white, tile, middle, window=WINDOW, precision="32").shape[1]

    @cached_property
    def _grid(self) -> tuple[NDArray[np.int64], CropReader]:
        """Tile of each cell, (n,), and the reader of the tiles that hold cells."""
        squares, tile = np.unique(self.reader.centre_px // self.stride_px, axis=0, return_inverse=True)
        last = np.subtract(self.reader.size_px, 1)
        centres = np.minimum(squares * self.stride_px + self.stride_px // 2, last)
        return tile.reshape(-1), self.reader.moved_to(centres)

    @property
    def n_tiles(self) -> int:
        """Number of tiles that hold cells."""
        return len(self._grid[1].centre_px)

    @property
    def block_cells(self) -> int:
        """Those of eight batches: the tiles of a batch that a block shares with the next are encoded for both."""
        return 8 * self.batch_size * -(-len(self.reader.centre_px) // self.n_tiles)

    def order(self) -> NDArray[np.int64]:
        """Cells tile by tile, a permutation, (n,)."""
        tile, tiles = self._grid
        rank = np.empty(self.n_tiles, dtype=np.int64)
        rank[tiles.order()] = np.arange(self.n_tiles)
        return np.argsort(rank[tile], kind="stable")

    def encoded(
        self, order: NDArray[np.int64], *, precision: Precision, n_done: int = 0, stop: int | None = None
    ) -> Generator[tuple[NDArray[np.int64], NDArray[np.float16]], None, None]:
        """Cells and their features, (b,) and (b, F), along ``order``, which is one of :meth:`order`.

        Batches of tiles are the same whether or not the first ``n_done`` cells, and those from ``stop`` on, are left
        out.
        """
        tile, tiles = self._grid
        starts = np.flatnonzero(_is_new(tile[order]))[:: self.batch_size]  # each of so many tiles
        stops = np.append(starts[1:], len(order))
        end = len(order) if stop is None else stop
        spans = [(first, last) for first, last in zip(starts, stops, strict=True) if last > n_done and first < end]

        def read(span: tuple[int, int]) -> tuple[slice, NDArray[np.int64], NDArray[np.uint8]]:
            cells = order[slice(*span)]
            wanted = slice(max(n_done - span[0], 0), end - span[0])
            return wanted, cells, tiles.read(tile[cells][_is_new(tile[cells])])

        batches = read_ahead(read, spans, self.num_workers)
        for cells, features in one_behind(
            (cells[wanted], self._encode(cells, pixels, precision)[wanted]) for wanted, cells, pixels in batches
        ):
            yield cells, as_float16(features, self.encoder.name)

    def _encode(self, cells: NDArray[np.int64], pixels: NDArray[np.uint8], precision: Precision) -> torch.Tensor:
        """What is seen at each cell, (b, F)."""
        import torch

        from nichekd.models._dense import read_off

        tile, tiles = self._grid
        which = torch.from_numpy(np.cumsum(_is_new(tile[cells])) - 1)
        corner = tiles.centre_px[tile[cells]] - tiles.crop_px // 2
        position = torch.from_numpy((self.reader.centre_px[cells] + 0.5 - corner) / tiles.crop_px)  # (b, 2)
        return read_off(self.encoder, pixels, which, position, window=WINDOW, precision=precision)


def _is_new(tile: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where a run of cells of the same tile begins."""
    return np.diff(tile, prepend=-1) != 0

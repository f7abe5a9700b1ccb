"""Tiles of cells, each correlated with the nuclei of the image around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nichekd.pp._shifts import Surface, Window, surface_of, transform_px
from nichekd.pp._tiles import ImageTiles, ResampledTiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nichekd._image import CellImage

WINDOW_UM = (120.0, 400.0)  # least and most of a tile that is looked at
FEWEST = 20  # cells in a tile
CACHE_BYTES = 64 * 2**20


class TooFewCellsError(ValueError):
    """No tile has enough cells on the image."""


def tile_surfaces(
    image: CellImage, max_shift_um: float, grid: tuple[int, int], mpp: float, transforms: tuple[str, ...]
) -> dict[str, list[Surface]]:
    """For each transform, the correlation of each tile with enough cells; each window is read once.

    Raises
    ------
    TooFewCellsError
        If there is no such tile.
    """
    factor = mpp / image.mpp
    tiles = ResampledTiles(ImageTiles(image.pixels, CACHE_BYTES), factor, CACHE_BYTES)
    size = np.array(image.size_px) / factor
    cells = {name: transform_px(image.xy_px / factor, size, name) for name in transforms}
    reach = int(np.ceil(max_shift_um / mpp))
    found: dict[str, list[Surface]] = {name: [] for name in transforms}
    middles, side_um = _middles(cells["identity"], size, grid, mpp)
    for name, middle in middles.items():
        window = Window.around(tiles, middle, side_um, reach, mpp)
        for transform in transforms:
            surface = surface_of(window, cells[transform], name)
            if surface.n_cells >= FEWEST:
                found[transform].append(surface)
    if not any(found.values()):
        raise TooFewCellsError(
            f"No tile of {grid[0]} × {grid[1]} has {FEWEST} cells on image {image.key!r}; there are "
            f"{len(image.xy_px):,} cells. Take fewer, larger tiles (grid=(1, 1)), or look at the units of "
            "obsm['spatial']: it has to be in µm."
        )
    return {name: surfaces for name, surfaces in found.items() if surfaces}


def _middles(
    xy: NDArray[np.float64], size: NDArray[np.float64], grid: tuple[int, int], mpp: float
) -> tuple[dict[str, NDArray[np.float64]], float]:
    """Median cell of each tile of a grid over the cells that are on the image, and the side of its window in µm."""
    on = xy[((xy >= 0) & (xy < size)).all(axis=1)]
    if not len(on):
        return {}, WINDOW_UM[0]
    low, high = on.min(axis=0), on.max(axis=0) + 1e-6
    column, row = ((on - low) / (high - low) * (grid[1], grid[0])).astype(int).T
    middles = {
        f"{i}-{j}": np.median(on[(row == i) & (column == j)], axis=0)
        for i in range(grid[0])
        for j in range(grid[1])
        if np.any((row == i) & (column == j))
    }
    # no wider than a tile, so that windows share few cells
    return middles, float(np.clip(((high - low) / (grid[1], grid[0])).min() * mpp, *WINDOW_UM))

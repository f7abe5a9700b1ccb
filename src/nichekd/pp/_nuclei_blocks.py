"""Outlines of nuclei, block by block: each block sees some µm more than its own, and keeps what has its middle there."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from nichekd.pp._crops import read_ahead
from nichekd.pp._tiles import WHITE, ResampledTiles, paste, touched

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from nichekd.pp._tiles import Tiles

    Labeller = Callable[[NDArray[np.uint8]], NDArray[np.integer]]

BLOCK_PX = 1024  # of a block's own part
HALO_UM = (
    48.0  # a nucleus whose middle is in the block lies in it whole, with the surroundings that its outline depends on
)
TWINS_UM = 1.0  # middles of one nucleus as two blocks see it; networks differ a little at a block's edge
SMOOTH_PX = 0.25  # outlines may leave the pixels' by this much, for a third of the points


@dataclass(frozen=True)
class Grid:
    """Blocks over an image at the resolution at which nuclei are looked for."""

    tiles: Tiles
    mpp: float
    factor: float  # pixels of the full resolution in one of these
    fill: int = WHITE  # beyond the image
    block_px: int = BLOCK_PX
    halo_um: float = HALO_UM

    @classmethod
    def of(cls, tiles: Tiles, mpp: float, wanted_mpp: float, tolerance: float, *, cache_bytes: int) -> Grid:
        """Tiles as they are, or resampled to ``wanted_mpp`` if that is ``tolerance`` times coarser or finer."""
        factor = wanted_mpp / mpp
        if 1 / tolerance <= factor <= tolerance:
            return cls(tiles, mpp, 1.0)
        return cls(ResampledTiles(tiles, factor, cache_bytes), wanted_mpp, factor)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.tiles.y_edges[-1]), int(self.tiles.x_edges[-1])

    @property
    def halo_px(self) -> int:
        """What a block sees beyond its own part."""
        return int(np.ceil(self.halo_um / self.mpp))

    def blocks(self) -> list[tuple[int, int]]:
        """First row and column of all blocks."""
        height, width = self.size
        return list(product(range(0, height, self.block_px), range(0, width, self.block_px)))

    def own(self, block: tuple[int, int]) -> tuple[int, int, int, int]:
        """Top, bottom, left and right of what belongs to a block."""
        (top, left), (height, width) = block, self.size
        return top, min(top + self.block_px, height), left, min(left + self.block_px, width)

    def seen(self, block: tuple[int, int]) -> tuple[int, int, int, int]:
        """The same of what it sees; nothing lies beyond the image."""
        top, bottom, left, right = self.own(block)
        halo, (height, width) = self.halo_px, self.size
        return max(top - halo, 0), min(bottom + halo, height), max(left - halo, 0), min(right + halo, width)

    def read(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        """Pixels of a box, (c, rows, columns)."""
        boxes: NDArray[np.uint8] | None = None
        for key in touched(self.tiles, top, bottom, left, right):
            tile = self.tiles.tile(*key)
            if boxes is None:
                boxes = np.full((tile.shape[0], bottom - top, right - left), self.fill, dtype=tile.dtype)
            paste(boxes, tile, self.tiles, key, top, left)
        if boxes is None:
            raise ValueError(f"Rows {top} to {bottom} and columns {left} to {right} lie beyond the image.")
        return boxes


def outline_blocks(
    grid: Grid, blocks: list[tuple[int, int]], label: Labeller, *, n_jobs: int, progress: str
) -> NDArray[np.object_]:
    """Outlines of all nuclei whose middle is in one of the blocks.

    Parameters
    ----------
    grid
        The image.
    blocks
        Some of its blocks.
    label
        Makes labels (rows, columns) of pixels (c, rows, columns).
    n_jobs
        Threads.
    progress
        What the bar is called.

    Returns
    -------
    Polygons in pixels of the full resolution, in reading order of their centroids, (n,).
    """
    import shapely
    from tqdm import tqdm

    from nichekd._settings import settings

    def work(block: tuple[int, int]) -> NDArray[np.object_]:
        top, bottom, left, right = grid.seen(block)
        return _outlines(np.asarray(label(grid.read(top, bottom, left, right))), top, left, grid.own(block))

    # a thread that only waits is none the faster: with one, blocks are made when asked for
    found = read_ahead(work, blocks, n_jobs if n_jobs > 1 else 0)
    bar = tqdm(found, desc=progress, total=len(blocks), disable=not settings.progress, leave=False)
    polygons = np.concatenate([np.empty(0, dtype=object), *bar])
    polygons = without_twins(polygons, TWINS_UM / grid.mpp)
    return shapely.transform(polygons, lambda xy: xy * grid.factor)


def without_twins(polygons: NDArray[np.object_], apart: float) -> NDArray[np.object_]:
    """``polygons`` in reading order of their centroids, without those nearer than ``apart`` to a larger one."""
    import shapely
    from scipy.spatial import cKDTree

    if not len(polygons):
        return polygons
    xy = shapely.get_coordinates(shapely.centroid(polygons))
    order = np.lexsort((xy[:, 0], xy[:, 1]))
    polygons, xy = polygons[order], xy[order]
    pairs = cKDTree(xy).query_pairs(apart, output_type="ndarray")
    if len(pairs):
        area = shapely.area(polygons)
        smaller = np.where(area[pairs[:, 0]] < area[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
        polygons = np.delete(polygons, np.unique(smaller))
    return polygons


def _outlines(labels: NDArray[np.integer], top: int, left: int, own: tuple[int, int, int, int]) -> NDArray[np.object_]:
    """Polygons of the labels whose mean pixel is in ``own``, in pixels from the image's corner."""
    import shapely
    from scipy import ndimage as ndi
    from skimage.measure import find_contours

    rings = []
    for number, place in enumerate(ndi.find_objects(labels.astype(np.int32, copy=False)), start=1):
        if place is None:
            continue
        mask = labels[place] == number
        row0, column0 = top + place[0].start, left + place[1].start
        rows, columns = np.nonzero(mask)
        # whole numbers, so that all blocks that see a nucleus agree on whose it is
        middle = (
            (row0 * len(rows) + rows.sum()) / len(rows) + 0.5,
            (column0 * len(rows) + columns.sum()) / len(rows) + 0.5,
        )
        if not (own[0] <= middle[0] < own[1] and own[2] <= middle[1] < own[3]):
            continue
        ring = max(find_contours(np.pad(mask, 1).astype(np.float32), 0.5), key=len)  # holes are shorter
        # a pixel's middle is half a pixel from its corner, and the padding another whole one
        rings.append(ring[:, ::-1] + (column0 - 0.5, row0 - 0.5))
    if not rings:
        return np.empty(0, dtype=object)
    ends = np.cumsum([len(ring) for ring in rings])
    polygons = shapely.polygons(
        shapely.linearrings(np.concatenate(rings), indices=np.repeat(np.arange(len(rings)), np.diff(ends, prepend=0)))
    )
    return shapely.simplify(polygons, SMOOTH_PX)

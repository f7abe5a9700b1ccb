"""Crops around cells, read tile by tile along a space-filling curve, ahead of whoever encodes them."""

from __future__ import annotations

from collections import defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from nichekd._units import as_number, check_mpp, same_mpp
from nichekd.pp._hilbert import reading_order
from nichekd.pp._tiles import CACHE_BYTES, WHITE, ImageTiles, ResampledTiles, paste, touched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from nichekd._image import CellImage
    from nichekd.pp._tiles import Tiles

Item = TypeVar("Item")
Made = TypeVar("Made")

SEGMENT = 1024  # crops; batches never reach over its end, so that work can be taken up again at any segment


class CropReader:
    """Square crops centred on cells.

    A crop of p px has the rows and columns [c − p // 2, c − p // 2 + p) around the pixel c in which the cell's centre
    lies, and is white beyond the image.

    Parameters
    ----------
    image
        The image, and the cells' centres in its pixels.
    crop_px
        Side of a crop.
    mpp
        µm per pixel of the crops, if another than the image's: they are then cut out of the resampled image.
    cache_bytes
        Decoded tiles that are kept.

    Raises
    ------
    ValueError
        If ``crop_px`` is not a whole number above 0, or ``mpp`` no resolution of a microscope.
    """

    def __init__(
        self, image: CellImage, *, crop_px: int = 224, mpp: float | None = None, cache_bytes: int = CACHE_BYTES
    ) -> None:
        side = as_number(crop_px, "crop_px=")
        if not side >= 1 or side % 1:
            raise ValueError(f"crop_px={side:g}; it has to be a whole number of pixels, at least 1.")
        self.crop_px = int(side)
        wanted = image.mpp if mpp is None else check_mpp(mpp, "mpp=")
        self.mpp = image.mpp if same_mpp(wanted, image.mpp) else wanted
        factor = self.mpp / image.mpp
        self._tiles: Tiles = ImageTiles(image.pixels, cache_bytes)
        centre = image.xy_px
        if factor != 1:
            self._tiles, centre = ResampledTiles(self._tiles, factor, cache_bytes), centre / factor
        self.centre_px: NDArray[np.int64] = np.floor(centre).astype(np.int64)

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of the image at the crops' resolution."""
        return int(self._tiles.x_edges[-1]), int(self._tiles.y_edges[-1])

    def moved_to(self, centre_px: NDArray[np.int64]) -> CropReader:
        """A reader of the same image, with the same decoded tiles, around other pixels, (m, 2): column, row."""
        other = copy(self)
        other.centre_px = centre_px
        return other

    def through(self, change: Callable[[Tiles], Tiles]) -> CropReader:
        """A reader of the same crops out of changed tiles."""
        other = copy(self)
        other._tiles = change(self._tiles)
        return other

    def order(self) -> NDArray[np.int64]:
        """All cells, in an order that reads each tile about once."""
        return reading_order(self.centre_px, self._tiles.y_edges, self._tiles.x_edges)

    def read(self, cells: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Crops of these cells, (b, 3, crop_px, crop_px)."""
        crops = np.full((len(cells), 3, self.crop_px, self.crop_px), WHITE, dtype=np.uint8)
        corners = (self.centre_px[cells] - self.crop_px // 2).tolist()  # left, top
        members: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, (left, top) in enumerate(corners):
            for key in touched(self._tiles, top, top + self.crop_px, left, left + self.crop_px):
                members[key].append(i)
        for key, inside in members.items():  # tile by tile: each is asked for once, however small the cache
            tile = self._tiles.tile(*key)
            for i in inside:
                left, top = corners[i]
                paste(crops[i], tile, self._tiles, key, top, left)
        return crops

    def batches(
        self, order: NDArray[np.int64], *, batch_size: int = 64, num_workers: int = 2
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Cells and their crops, batch by batch along ``order``, read ahead by threads.

        Parameters
        ----------
        order
            Cells.
        batch_size
            Most crops in a batch.
        num_workers
            Threads; 0 reads when asked. Which crops make a batch does not depend on it.

        Yields
        ------
        Cells (b,), and crops (b, 3, crop_px, crop_px).
        """
        return read_ahead(lambda cells: (cells, self.read(cells)), batch_cells(order, batch_size), num_workers)


def batch_cells(order: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """``order`` in pieces of at most ``batch_size``, none over the end of a segment of 1,024."""
    for start in range(0, len(order), SEGMENT):
        segment = order[start : start + SEGMENT]
        for first in range(0, len(segment), batch_size):
            yield segment[first : first + batch_size]


def read_ahead(make: Callable[[Item], Made], items: Iterable[Item], n_threads: int) -> Iterator[Made]:
    """``map(make, items)`` in order, with up to two results a thread in the making."""
    if n_threads == 0:
        yield from map(make, items)
        return
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="nichekd-crops")
    ahead: deque[Future[Made]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(make, item))
            if len(ahead) > 2 * n_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

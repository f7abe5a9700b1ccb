"""An image as tiles, each decoded about once, whatever the number of crops that share it."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future
from itertools import product
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    import dask.array as da
    from numpy.typing import NDArray

CACHE_BYTES = 256 * 2**20  # a few hundred decoded tiles of 512 px, what a curve through a wide slide comes back to
RESAMPLED_TILE = 512  # px
WHITE = 255  # beyond the image


class Tiles(Protocol):
    """An image cut into a grid of tiles."""

    y_edges: NDArray[np.int64]
    """Where rows of tiles begin, and the height; (n_rows + 1,)."""
    x_edges: NDArray[np.int64]
    """Where columns of tiles begin, and the width; (n_columns + 1,)."""

    def tile(self, row: int, column: int) -> NDArray[np.uint8]:
        """Pixels of a tile, (3, height, width). Any thread may ask."""


class TileCache:
    """The tiles used last, up to a number of bytes; one that two threads ask for at once is made once."""

    def __init__(self, n_bytes: int = CACHE_BYTES) -> None:
        self._n_bytes, self._held = n_bytes, 0
        self._tiles: OrderedDict[Hashable, Future[NDArray[np.uint8]]] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[TileCache], tuple[int]]:
        return type(self), (self._n_bytes,)  # other processes decode for themselves

    def get(self, key: Hashable, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """The tile ``key``, from the cache or made now."""
        with self._lock:
            known = self._tiles.get(key)
            if known is None:
                mine: Future[NDArray[np.uint8]] = Future()
                self._tiles[key] = mine
            else:
                self._tiles.move_to_end(key)
        if known is not None:
            return known.result()
        try:
            tile = make()
        except BaseException as err:
            with self._lock:
                del self._tiles[key]  # a later call tries again
            mine.set_exception(err)
            raise
        mine.set_result(tile)
        self._make_room(tile.nbytes)
        return tile

    def _make_room(self, n_bytes: int) -> None:
        """Forget the tiles that were not used for longest, but for those still in the making and the newest."""
        with self._lock:
            self._held += n_bytes
            for key in list(self._tiles)[:-1]:
                if self._held <= self._n_bytes:
                    break
                if self._tiles[key].done():
                    self._held -= self._tiles.pop(key).result().nbytes


class ImageTiles:
    """Tiles of a dask array (3, y, x): its own chunks, so that none is decoded for a part of it."""

    def __init__(self, pixels: da.Array, cache_bytes: int = CACHE_BYTES) -> None:
        import dask

        pixels = pixels if pixels.numblocks[0] == 1 else pixels.rechunk({0: -1})
        self.y_edges, self.x_edges = (np.cumsum([0, *map(int, sizes)]) for sizes in pixels.chunks[1:])
        # one look-up table for all chunks: asking the array itself costs 40 ms a chunk on a slide of 76,000
        (optimised,) = dask.optimize(pixels)
        self._graph = dict(optimised.__dask_graph__())
        self._keys = optimised.__dask_keys__()[0]
        self._cache = TileCache(cache_bytes)

    def tile(self, row: int, column: int) -> NDArray[np.uint8]:
        """A chunk, decoded unless it was used lately."""
        return self._cache.get((row, column), lambda: self._decode(row, column))

    def _decode(self, row: int, column: int) -> NDArray[np.uint8]:
        import dask
        from dask.optimization import cull

        key = self._keys[row][column]
        graph, _ = cull(self._graph, [key])
        # decoders give interleaved colours; planes of their own make each crop's copy ten times faster
        return np.ascontiguousarray(dask.get(graph, key))


class ResampledTiles:
    """Tiles of the image at another resolution, by area: a new pixel is the mean of what it covers, white beyond."""

    def __init__(self, source: Tiles, factor: float, cache_bytes: int = CACHE_BYTES) -> None:
        self._source, self._factor = source, factor
        self.y_edges, self.x_edges = (self._edges(int(edges[-1])) for edges in (source.y_edges, source.x_edges))
        self._cache = TileCache(cache_bytes)

    def tile(self, row: int, column: int) -> NDArray[np.uint8]:
        """A tile of the resampled image."""
        return self._cache.get((row, column), lambda: self._resample(row, column))

    def _edges(self, size: int) -> NDArray[np.int64]:
        resampled = int(np.ceil(size / self._factor))
        return np.unique([*range(0, resampled, RESAMPLED_TILE), resampled])

    def _resample(self, row: int, column: int) -> NDArray[np.uint8]:
        y_weights, y = area_weights(self.y_edges[row], self.y_edges[row + 1], self._factor)
        x_weights, x = area_weights(self.x_edges[column], self.x_edges[column + 1], self._factor)
        box = np.full((3, len(y), len(x)), WHITE, dtype=np.uint8)
        for tile_key in touched(self._source, y.start, y.stop, x.start, x.stop):
            paste(box, self._source.tile(*tile_key), self._source, tile_key, y.start, x.start)
        means = np.stack([(y_weights @ channel.astype(np.float32)) @ x_weights.T for channel in box])
        return np.rint(means).astype(np.uint8)


def area_weights(start: np.int64, stop: np.int64, factor: float) -> tuple[NDArray[np.float32], range]:
    """How much source pixels count in the new pixels ``start`` to ``stop`` along one axis.

    New pixel i covers the source from i · factor to (i + 1) · factor.

    Returns
    -------
    Weights, (new, source), rows adding up to 1; and the source pixels that they belong to.
    """
    source = range(int(np.floor(start * factor)), int(np.ceil(stop * factor)))
    left = np.arange(start, stop)[:, None] * factor  # (new, 1)
    pixels = np.arange(source.start, source.stop)[None]  # (1, source)
    overlap = np.minimum(left + factor, pixels + 1) - np.maximum(left, pixels)
    weights = np.clip(overlap, 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32), source


def touched(tiles: Tiles, top: int, bottom: int, left: int, right: int) -> Iterator[tuple[int, int]]:
    """Rows and columns of the tiles that a box overlaps; none where it lies beyond the image."""
    rows = _overlapping(tiles.y_edges, top, bottom)
    columns = _overlapping(tiles.x_edges, left, right)
    return product(rows, columns)


def _overlapping(edges: NDArray[np.int64], start: int, stop: int) -> range:
    first = int(np.searchsorted(edges, start, side="right")) - 1
    last = int(np.searchsorted(edges, stop, side="left"))
    return range(max(first, 0), min(last, len(edges) - 1))


def paste(
    box: NDArray[np.uint8], tile: NDArray[np.uint8], tiles: Tiles, key: tuple[int, int], top: int, left: int
) -> None:
    """Copy into ``box``, whose corner is at row ``top`` and column ``left``, what it shares with a tile."""
    tile_top, tile_left = int(tiles.y_edges[key[0]]), int(tiles.x_edges[key[1]])
    y0, y1 = max(top, tile_top), min(top + box.shape[1], tile_top + tile.shape[1])
    x0, x1 = max(left, tile_left), min(left + box.shape[2], tile_left + tile.shape[2])
    box[:, y0 - top : y1 - top, x0 - left : x1 - left] = tile[
        :, y0 - tile_top : y1 - tile_top, x0 - tile_left : x1 - tile_left
    ]

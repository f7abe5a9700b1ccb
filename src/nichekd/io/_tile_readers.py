"""Array-like readers of tiled image files: only the tiles asked for are read, by any number of threads.

Why not ``tifffile``'s zarr store: it decodes inside zarr's one event loop, so threads queue up, and it can't be
pickled, so no worker process could use it.
"""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CHUNK = 512  # px; smaller tiles are read several at a time, to keep the task graph of a whole slide small
JPEG = frozenset({6, 7, 33007, 34892})  # TIFF compressions whose tiles share tables in the page's header


class TileReader(ABC):
    """A (channel, y, x) image that reads on ``[...]``; pickled as its path.

    Parameters
    ----------
    path
        Image file.
    level
        Of the file's pyramid; 0 is the full resolution.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    chunks: tuple[int, int, int]  # whole tiles
    mpp: float | None  # µm per px of the full resolution by the file's own metadata
    n_levels: int  # of the file's pyramid

    def __init__(self, path: Path, level: int = 0) -> None:
        self.path = path
        self.level = level
        self._open()

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return 3

    @abstractmethod
    def _open(self) -> None:
        """Open the file, and set shape, dtype, chunks, mpp and n_levels."""

    @abstractmethod
    def read(self, y: range, x: range) -> NDArray[Any]:
        """Pixels of the box ``y`` × ``x`` inside the image, (c, len(y), len(x))."""

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Numpy's basic indexing, of which dask uses slices and whole numbers."""
        index = index if isinstance(index, tuple) else (index,)
        index += (slice(None),) * (3 - len(index))
        ranges = [_as_range(key, size) for key, size in zip(index, self.shape, strict=True)]
        box = self.read(ranges[1], ranges[2])[ranges[0].start : ranges[0].stop]
        inner = tuple(0 if not isinstance(key, slice) else slice(None, None, key.step) for key in index)
        return box[inner]

    def __reduce__(self) -> tuple[type[TileReader], tuple[Path, int]]:
        return type(self), (self.path, self.level)


def _as_range(key: Any, size: int) -> range:
    """The stretch of an axis that an index covers; steps are taken afterwards."""
    if not isinstance(key, slice):
        start = int(key) + (size if key < 0 else 0)
        return range(start, start + 1)
    start, stop, _ = slice(key.start, key.stop).indices(size)
    return range(start, max(start, stop))


class TiffReader(TileReader):
    """A level of a TIFF: of the largest series of an OME-TIFF, Aperio .svs, or any (tiled) TIFF."""

    def _open(self) -> None:
        from tifffile import TiffFile

        from nichekd.io._image_metadata import tiff_mpp

        self._lock = threading.Lock()
        self._tiff = TiffFile(self.path)
        weakref.finalize(self, self._tiff.close)
        if not self._tiff.series:  # its directory of pages often comes last
            raise ValueError(f"{self.path} is a TIFF without a page: it is truncated. Copy it again.")
        number = max(range(len(self._tiff.series)), key=lambda i: np.prod(self._tiff.series[i].shape))
        levels = self._tiff.series[number].levels
        self.n_levels, level = len(levels), levels[self.level]
        self.dtype = np.dtype(level.dtype)
        self.axes = level.axes
        if self.axes not in {"YX", "YXS", "SYX", "CYX"}:
            raise ValueError(
                f"{self.path} holds axes {level.axes!r} of sizes {level.shape}; an H&E image has y, x and colour only. "
                "Save one plane of it, or hand in an array."
            )
        sizes = dict(zip(level.axes, level.shape, strict=True))
        self.shape = (sizes.get("S", sizes.get("C", 1)), sizes["Y"], sizes["X"])
        self._pages: list[Any] = list(level.pages)  # as many as there are planes apart from each other
        self._page = level.keyframe
        self._planar = self.axes == "SYX"
        page = self._page
        self._tile = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        self.chunks = (
            self.shape[0],
            _whole_tiles(self._tile[0], self.shape[1]),
            _whole_tiles(self._tile[1], self.shape[2]),
        )
        self.mpp = tiff_mpp(self._tiff, number)
        self._check_length()

    def _check_length(self) -> None:
        """Refuse a file that ends before its last tile does, as a copy that was cut off."""
        there = self._tiff.filehandle.size
        end = max(
            (
                offset + size
                for page in self._pages
                for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True)
            ),
            default=0,
        )
        if end > there:
            raise ValueError(
                f"{self.path} is truncated: it has {there:,} bytes, and its tiles reach to byte {end:,}. Copy it again."
            )

    def read(self, y: range, x: range) -> NDArray[Any]:
        """Pixels of the box ``y`` × ``x``, (c, len(y), len(x)); a tile that the file leaves out is white."""
        n_planes = 1 if self.axes in {"YX", "YXS"} else self.shape[0]  # planes stored apart from each other
        per_plane = self.shape[0] // n_planes
        box = np.full((n_planes, len(y), len(x), per_plane), 255, dtype=self.dtype)
        tiles = product(range(n_planes), _tiles(y, self._tile[0]), _tiles(x, self._tile[1]))
        for plane, row, column in tiles:
            tile = self._decode(plane, row, column)
            if tile is None:
                continue
            top, left = row * self._tile[0], column * self._tile[1]
            ys = range(max(top, y.start), min(top + tile.shape[0], y.stop))
            xs = range(max(left, x.start), min(left + tile.shape[1], x.stop))
            box[plane, ys.start - y.start : ys.stop - y.start, xs.start - x.start : xs.stop - x.start] = tile[
                ys.start - top : ys.stop - top, xs.start - left : xs.stop - left
            ]
        return box[..., 0] if n_planes > 1 else np.moveaxis(box[0], -1, 0)

    def _decode(self, plane: int, row: int, column: int) -> NDArray[Any] | None:
        """One tile, (height, width, samples); ``None`` where the file has none."""
        n_rows, n_columns = (-(-size // tile) for size, tile in zip(self.shape[1:], self._tile, strict=True))
        page = self._pages[0 if self._planar or len(self._pages) == 1 else plane]
        tile_number = row * n_columns + column + (plane * n_rows * n_columns if self._planar else 0)
        offset, size = page.dataoffsets[tile_number], page.databytecounts[tile_number]
        if size == 0:
            return None
        with self._lock:  # one file position for all threads; decoding goes on outside
            self._tiff.filehandle.seek(offset)
            encoded = self._tiff.filehandle.read(size)
        tables = (
            {"jpegtables": page.jpegtables, "jpegheader": self._page.jpegheader}
            if self._page.compression in JPEG
            else {}
        )
        tile, _, _ = self._page.decode(encoded, tile_number, **tables)
        return None if tile is None else tile[0]


class OpenSlideReader(TileReader):
    """A level of a slide that OpenSlide reads: .svs, .ndpi, .mrxs, .scn, .bif, ..."""

    def _open(self) -> None:
        from openslide import OpenSlide

        self._slide = OpenSlide(self.path)  # its read_region is thread-safe
        weakref.finalize(self, self._slide.close)
        self.n_levels = self._slide.level_count
        width, height = self._slide.level_dimensions[self.level]
        self._downsample = self._slide.level_downsamples[self.level]
        self.shape = (3, height, width)
        self.dtype = np.dtype(np.uint8)
        properties = self._slide.properties
        tile = (properties.get(f"openslide.level[{self.level}].tile-{side}", CHUNK) for side in ("height", "width"))
        rows, columns = map(int, tile)
        self.chunks = (3, _whole_tiles(rows, height), _whole_tiles(columns, width))
        sides = [float(properties[f"openslide.mpp-{axis}"]) for axis in "xy" if f"openslide.mpp-{axis}" in properties]
        self.mpp = float(np.sqrt(sides[0] * sides[-1])) if sides else None
        self._check_end()

    def _check_end(self) -> None:
        """Refuse a file that is cut off, by its last pixel."""
        from openslide import OpenSlideError

        _, height, width = self.shape
        try:
            self.read(range(height - 1, height), range(width - 1, width))
        except OpenSlideError as error:
            raise ValueError(f"{self.path} is truncated or damaged ({error}). Copy it again.") from error

    def read(self, y: range, x: range) -> NDArray[np.uint8]:
        """Pixels of the box ``y`` × ``x``, (3, len(y), len(x)); where nothing was scanned, white."""
        if not (len(y) and len(x)):
            return np.empty((3, len(y), len(x)), dtype=np.uint8)
        corner = round(x.start * self._downsample), round(y.start * self._downsample)  # in the full resolution
        rgba = np.asarray(self._slide.read_region(corner, self.level, (len(x), len(y))))  # (y, x, 4)
        opaque = rgba[..., 3:] > 0
        return np.moveaxis(np.where(opaque, rgba[..., :3], np.uint8(255)), -1, 0)


def _tiles(pixels: range, tile: int) -> range:
    """Numbers of the tiles that ``pixels`` touch along one axis."""
    return range(pixels.start // tile, -(-pixels.stop // tile) if len(pixels) else pixels.start // tile)


def _whole_tiles(tile: int, size: int) -> int:
    """Chunk length: as many whole tiles as reach ``CHUNK`` px, the image at most."""
    return min(-(-CHUNK // tile) * tile, size)

"""The image of a simulated tissue, drawn region by region from the list of its cells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from nichekd.datasets._tissue import MARGIN_UM, Waves

if TYPE_CHECKING:
    from collections.abc import Callable

    import dask.array as da
    from numpy.typing import NDArray

    from nichekd.datasets._tissue import Tissue

CHUNK_PX = 512
AT_ONCE = 64  # nuclei; bounds the memory of a region
STEP_PX = 8  # what changes slowly is worked out on every eighth pixel
EDGE_UM = 0.6  # width of a nucleus's edge
RADII_UM = (1.8, 5.5)
CYTOPLASM = 1.7  # radius of a cell in radii of its nucleus
# optical density of unit stain in red, green, blue
HAEMATOXYLIN = np.array([1.05, 1.15, 0.55])
EOSIN = np.array([0.08, 0.75, 0.38])
TYPE_EFFECT = 0.35  # shift of a trait between cell types, in sd of that trait within a type


@dataclass(frozen=True, eq=False)
class Nuclei:
    """What a nucleus looks like; arrays of (n_cells,), float32."""

    radius_um: NDArray[np.float32]
    """Geometric mean of the half axes."""
    stretch: NDArray[np.float32]
    """Square root of the ratio of the half axes."""
    cosine: NDArray[np.float32]
    sine: NDArray[np.float32]
    """Of the angle of the long axis. Kept for all cells: worked out region by region, the last bit could differ."""
    depth: NDArray[np.float32]
    """Haematoxylin."""
    cytoplasm: NDArray[np.float32]
    """Eosin around it."""

    @cached_property
    def reach_um(self) -> NDArray[np.float32]:
        """Farthest that a cell is seen from its centre."""
        return self.radius_um * self.stretch * np.float32(CYTOPLASM) + np.float32(EDGE_UM) * self.stretch


def draw_nuclei(rng: np.random.Generator, cell_type: NDArray[np.int64], n_cell_types: int) -> Nuclei:
    """Nuclei whose size, shape and stain depend on the cell type only weakly: by about a third of their spread."""
    effect = TYPE_EFFECT * rng.normal(size=(n_cell_types, 4))
    traits = (effect[cell_type] + rng.normal(size=(len(cell_type), 4))).astype(np.float32)
    angle = rng.uniform(0, np.pi, len(cell_type))
    return Nuclei(
        radius_um=np.clip(3.1 * np.exp(0.17 * traits[:, 0]), *RADII_UM),
        stretch=np.exp(np.clip(0.16 + 0.1 * traits[:, 1], 0, 0.5)),
        cosine=np.cos(angle).astype(np.float32),
        sine=np.sin(angle).astype(np.float32),
        depth=np.clip(0.72 + 0.12 * traits[:, 2], 0.3, 1.2),
        cytoplasm=np.clip(0.16 + 0.07 * traits[:, 3], 0, 0.5),
    )


class Drawing:
    """An array, uint8 (3, height, width), whose regions are drawn when they are read.

    Every pixel is a function of its place alone, so that regions fit together however they are cut out, in whatever
    order and by whichever worker.
    """

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(
        self,
        tissue: Tissue,
        nuclei: Nuclei,
        *,
        mpp: float,
        K: int,
        seed: np.random.SeedSequence,
        token: tuple[object, ...],
    ) -> None:
        rng = np.random.default_rng(seed)
        self.mpp = mpp
        self.shape = (3, *(int(np.ceil(size / mpp)) for size in reversed(tissue.size_um)))
        self._tissue, self._nuclei, self._token = tissue, nuclei, token
        self._salt = int(rng.integers(2**32))
        self._ground = Waves.draw(rng, (150.0, 600.0))
        self._fibres = Waves.draw(rng, (5.0, 25.0), n=40, along=rng.uniform(0, np.pi))
        self._outline = Waves.draw(rng, (60.0, 300.0))
        self._by_niche = 0.035 * rng.normal(size=K)
        self._reach_px = int(nuclei.reach_um.max() / mpp) + 2

    def __dask_tokenize__(self) -> tuple[object, ...]:
        return self._token

    def __getitem__(self, key: slice | int | tuple[slice | int, ...]) -> NDArray[np.uint8]:
        """Slices and integers as numpy has them; only the region they span is drawn."""
        key = key if isinstance(key, tuple) else (key,)
        key = (*key, *(slice(None),) * (3 - len(key)))
        channels, cuts = key[0], key[1:]
        rows, columns = (np.atleast_1d(np.arange(n)[cut]) for cut, n in zip(cuts, self.shape[1:], strict=True))
        if not (len(rows) and len(columns)):
            return np.zeros((3, len(rows), len(columns)), dtype=np.uint8)[channels]
        y0, x0 = int(rows.min()), int(columns.min())
        region = self._draw(y0, int(rows.max()) + 1, x0, int(columns.max()) + 1)[:, rows - y0][:, :, columns - x0]
        return region[(channels, *(slice(None) if isinstance(cut, slice) else 0 for cut in cuts))]

    def _draw(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint8]:
        """Pixels of rows [y0, y1) and columns [x0, x1), (3, y, x): light through the stains, Beer and Lambert."""
        rows, columns = np.arange(y0, y1), np.arange(x0, x1)
        haematoxylin = np.zeros((len(rows), len(columns)), dtype=np.float32)
        cytoplasm = np.zeros_like(haematoxylin)
        self._add_cells(haematoxylin, cytoplasm, y0, x0)
        eosin = (self._stroma(rows, columns) + cytoplasm) * self._on_tissue(rows, columns)
        # in float64, as a last bit of float32 that depends on a region's cut would now and then change a grey level
        density = HAEMATOXYLIN[:, None, None] * haematoxylin.astype(np.float64) + EOSIN[:, None, None] * eosin
        light: NDArray[np.float64] = 243 * np.exp(-density) + self._grain(rows, columns)
        return np.clip(np.rint(light), 0, 255).astype(np.uint8)

    def _centres_um(self, pixels: NDArray[np.int64]) -> NDArray[np.float64]:
        return (pixels.astype(np.float64) + 0.5) * self.mpp

    def _stroma(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Eosin of the ground: slow clouds, a little of the niche, and fibres."""
        fibres = self._fibres.on_grid(self._centres_um(columns), self._centres_um(rows))

        def slow(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
            return 0.07 * self._ground.on_grid(x, y) + self._by_niche[self._tissue.domains.on_grid(x, y)]

        eosin: NDArray[np.float64] = 0.36 + 0.05 * fibres + self._interpolated(slow, rows, columns)
        np.maximum(eosin, 0.05, out=eosin)
        return eosin

    def _on_tissue(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
        """1 on tissue, 0 on the bare glass around it; the outline is wavy."""
        y, x = self._centres_um(rows)[:, None], self._centres_um(columns)
        width, height = self._tissue.size_um
        inside = np.minimum(np.minimum(x, width - x), np.minimum(y, height - y)) - 0.6 * MARGIN_UM
        return np.clip((inside + 5 * self._interpolated(self._outline.on_grid, rows, columns)) / 3, 0, 1)

    def _interpolated(
        self,
        field: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """A slow field, linear between the nodes of a grid that is the same for all regions."""
        nodes = [np.arange(at[0] // STEP_PX, at[-1] // STEP_PX + 2) for at in (rows, columns)]
        y, x = (self._centres_um(at * STEP_PX) for at in nodes)
        values = field(x, y)  # (n_y, n_x)
        for axis, at in enumerate((rows, columns)):
            lower = at // STEP_PX - nodes[axis][0]
            t = (at % STEP_PX) / STEP_PX
            t = t[:, None] if axis == 0 else t
            values = np.take(values, lower, axis) * (1 - t) + np.take(values, lower + 1, axis) * t
        return values

    def _grain(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Camera noise by a hash of the pixel's place, sd 2.5 grey levels."""
        y, x = rows.astype(np.uint32), columns.astype(np.uint32)
        mixed = y[:, None] * np.uint32(0x9E3779B1) + x * np.uint32(0x85EBCA77)
        mixed ^= np.uint32(self._salt)
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            mixed ^= mixed >> np.uint32(shift)
            mixed *= np.uint32(factor)
        mixed ^= mixed >> np.uint32(16)
        pairs = (mixed & np.uint32(0x00FF00FF)) + (mixed >> np.uint32(8) & np.uint32(0x00FF00FF))
        four = (pairs & np.uint32(0xFFFF)) + (pairs >> np.uint32(16))  # sum of the four bytes: mean 510, sd 147.8
        return (four.astype(np.float64) - 510) * (2.5 / 147.8)

    @cached_property
    def _bins(self) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """Cells sorted by square of ``CHUNK_PX``, where each square starts, and squares per row."""
        square = (self._tissue.xy / self.mpp // CHUNK_PX).astype(np.int64)
        per_row = -(-self.shape[2] // CHUNK_PX)
        number = square[:, 1] * per_row + square[:, 0]
        n_squares = per_row * -(-self.shape[1] // CHUNK_PX)
        return np.argsort(number, kind="stable"), np.searchsorted(np.sort(number), np.arange(n_squares + 1)), per_row

    def _near(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.int64]:
        """Cells that may reach into a region."""
        order, starts, per_row = self._bins
        n_rows = (len(starts) - 1) // per_row
        low, high = (
            (np.array([y0, x0]) - self._reach_px) // CHUNK_PX,
            (np.array([y1, x1]) + self._reach_px) // CHUNK_PX,
        )
        row_range = range(max(0, low[0]), min(n_rows - 1, high[0]) + 1)
        first, last = max(0, low[1]), min(per_row - 1, high[1])
        parts = [order[starts[row * per_row + first] : starts[row * per_row + last + 1]] for row in row_range]
        cells = np.concatenate([np.zeros(0, dtype=np.int64), *parts])
        x, y = (self._tissue.xy[cells] / self.mpp).T
        reach = self._reach_px
        return cells[(x > x0 - reach) & (x < x1 + reach) & (y > y0 - reach) & (y < y1 + reach)]

    def _add_cells(self, haematoxylin: NDArray[np.float32], cytoplasm: NDArray[np.float32], y0: int, x0: int) -> None:
        """Draw nuclei and the cytoplasm around them; where they overlap the denser wins, whatever the order."""
        height, width = haematoxylin.shape
        cells = self._near(y0, y0 + height, x0, x0 + width)
        cells = cells[np.argsort(self._nuclei.reach_um[cells])]  # alike in size, so that windows fit
        for start in range(0, len(cells), AT_ONCE):
            some = cells[start : start + AT_ONCE]
            reach = int(self._nuclei.reach_um[some[-1]] / self.mpp) + 2
            window = np.arange(-reach, reach + 1)
            xy = self._tissue.xy[some] / self.mpp
            centre = np.floor(xy).astype(np.int64)
            columns = centre[:, 0, None] + window  # (n, w)
            rows = centre[:, 1, None] + window
            dx = ((columns + 0.5 - xy[:, 0, None]) * self.mpp).astype(np.float32)[:, None, :]
            dy = ((rows + 0.5 - xy[:, 1, None]) * self.mpp).astype(np.float32)[:, :, None]
            far, radius = self._elliptic_distance(some, dx, dy)  # (n, w, w)
            depth, around = self._nuclei.depth[some, None, None], self._nuclei.cytoplasm[some, None, None]
            nucleus = depth * np.clip((1 - far) * radius / np.float32(EDGE_UM) + 0.5, 0, 1)
            cell = around * np.clip((np.float32(CYTOPLASM) - far) * radius / np.float32(2 * EDGE_UM) + 0.5, 0, 1)
            rows, columns = np.broadcast_arrays(rows[:, :, None] - y0, columns[:, None, :] - x0)
            seen = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width) & ((nucleus > 0) | (cell > 0))
            at = rows[seen] * width + columns[seen]
            np.maximum.at(haematoxylin.reshape(-1), at, nucleus[seen])
            np.maximum.at(cytoplasm.reshape(-1), at, cell[seen])

    def _elliptic_distance(
        self, cells: NDArray[np.int64], dx: NDArray[np.float32], dy: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Distance from the centre in half axes of the nucleus, (n, w, w), and its radius in µm, (n, 1, 1)."""
        look = self._nuclei
        radius, stretch = look.radius_um[cells, None, None], look.stretch[cells, None, None]
        cosine, sine = look.cosine[cells, None, None], look.sine[cells, None, None]
        along = (dx * cosine + dy * sine) / (radius * stretch)
        across = (dy * cosine - dx * sine) / (radius / stretch)
        return np.sqrt(along * along + across * across), radius


def as_dask(drawing: Drawing, *, at_once_px: int) -> da.Array:
    """The drawing as a dask array: in memory if it has at most ``at_once_px`` pixels, else drawn as it is read."""
    import dask.array as da

    lazy = da.from_array(
        drawing, chunks=(3, CHUNK_PX, CHUNK_PX), asarray=False, fancy=False, meta=np.empty((0, 0, 0), np.uint8)
    )
    if drawing.shape[1] * drawing.shape[2] > at_once_px:
        return lazy
    return lazy.persist(scheduler="threads")

"""Where the cells of a simulated tissue are, and which niche is where."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

CELLS_PER_UM2 = 4_000e-6
KEPT = 0.82  # of the lattice sites, on average; niches differ in it, so they differ in density
JITTER = 0.3  # of the lattice spacing: two cells are never nearer than 0.4 of it
MARGIN_UM = 40.0  # of bare glass around the tissue
PATCH_UM = 350.0  # size of a niche's domains, where K of them fit into a strip
N_STRIPS = 4  # of nk.pp.split: each is to hold each niche


@dataclass(frozen=True, eq=False)
class Waves:
    """A smooth random field of mean 0 and variance 1: a sum of plane waves, so that it has a value anywhere."""

    vectors: NDArray[np.float64]
    """(n_waves, 2), radians per µm in x and y."""
    phases: NDArray[np.float64]
    """(n_waves,)"""

    @classmethod
    def draw(
        cls, rng: Generator, wavelengths: tuple[float, float], *, n: int = 16, along: float | None = None
    ) -> Waves:
        """Waves of lengths between two, in µm, in all directions or within some 20° of the angle ``along``."""
        angle = rng.uniform(0, 2 * np.pi, n) if along is None else rng.normal(along, 0.35, n)
        number = 2 * np.pi / np.exp(rng.uniform(math.log(wavelengths[0]), math.log(wavelengths[1]), n))
        vectors = number[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
        return cls(vectors, rng.uniform(0, 2 * np.pi, n))

    def at(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values at positions in µm, (n, 2) → (n,)."""
        total = np.zeros(len(xy))
        for vector, phase in zip(self.vectors, self.phases, strict=True):
            total += np.cos(xy @ vector + phase)
        return total * math.sqrt(2 / len(self.phases))

    def on_grid(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values on the grid of ``x``, (w,), and ``y``, (h,), in µm → (h, w).

        cos(a + b) = cos a cos b - sin a sin b makes of it a product of two thin matrices. By einsum, not by BLAS,
        whose own threads would fight with those that draw.
        """
        in_x = np.outer(x, self.vectors[:, 0])  # (w, n_waves)
        in_y = np.outer(y, self.vectors[:, 1]) + self.phases  # (h, n_waves)
        left = np.hstack([np.cos(in_y), np.sin(in_y)]) * math.sqrt(2 / len(self.phases))
        return np.einsum("yk,xk->yx", left, np.hstack([np.cos(in_x), -np.sin(in_x)]))


@dataclass(frozen=True, eq=False)
class Domains:
    """Niches as smooth domains: Voronoi cells of labelled seeds, seen through a warp."""

    seeds: NDArray[np.float64]
    """(n_seeds, 2), µm."""
    niche: NDArray[np.int64]
    """(n_seeds,), niche of each."""
    warp: tuple[Waves, Waves]
    reach_um: float

    @classmethod
    def draw(cls, rng: Generator, K: int, width: float, height: float) -> Domains:
        """Domains over ``width`` × ``height`` µm, every niche in each of four horizontal strips."""
        strip = height / N_STRIPS
        rows = max(1, round(strip / PATCH_UM))
        columns = max(math.ceil(K / rows), round(width / PATCH_UM))
        patch = np.array([width / columns, strip / rows])
        n_strip = rows * columns
        labels = [
            np.concatenate([rng.permutation(K) for _ in range(-(-n_strip // K))])[:n_strip] for _ in range(N_STRIPS)
        ]
        column, row = np.meshgrid(np.arange(columns), np.arange(rows * N_STRIPS))
        corners = np.column_stack([column.ravel(), row.ravel()]) + 0.5
        seeds = (corners + rng.uniform(-0.2, 0.2, corners.shape)) * patch + MARGIN_UM
        size = float(patch.min())
        warp = Waves.draw(rng, (0.8 * size, 2 * size)), Waves.draw(rng, (0.8 * size, 2 * size))
        return cls(seeds, np.concatenate(labels), warp, 0.1 * size)

    @cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(self.seeds)

    def at(self, xy: NDArray[np.float64]) -> NDArray[np.int64]:
        """Niche at positions in µm, (n, 2) → (n,)."""
        return self._nearest(xy, np.column_stack([wave.at(xy) for wave in self.warp]))

    def on_grid(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int64]:
        """Niche on a grid, (w,) and (h,) µm → (h, w)."""
        grid = np.stack(np.meshgrid(x, y), axis=-1)  # (h, w, 2)
        shift = np.stack([wave.on_grid(x, y) for wave in self.warp], axis=-1)
        return self._nearest(grid.reshape(-1, 2), shift.reshape(-1, 2)).reshape(grid.shape[:2])

    def _nearest(self, xy: NDArray[np.float64], shift: NDArray[np.float64]) -> NDArray[np.int64]:
        return self.niche[self._tree.query(xy + self.reach_um * shift)[1]]


@dataclass(frozen=True, eq=False)
class Tissue:
    """Cells, in the order of the table, and the ground they lie on."""

    xy: NDArray[np.float64]
    """Centres in µm from the image's top-left corner, (n_cells, 2)."""
    niche: NDArray[np.int64]
    """(n_cells,)"""
    domains: Domains
    size_um: tuple[float, float]
    """Width and height of the image, µm."""


def draw_tissue(seed: np.random.SeedSequence, n_cells: int, K: int) -> Tissue:
    """``n_cells`` cells in ``K`` niches.

    Cells are a random part of a jittered hexagonal lattice, dense in some niches and loose in others: some 4,000 per
    mm², no two closer than 0.4 of the lattice spacing, 6 µm.
    """
    rng = np.random.default_rng(seed)
    spacing = math.sqrt(2 * KEPT / (math.sqrt(3) * CELLS_PER_UM2))
    row_height = spacing * math.sqrt(3) / 2
    n_rows = max(1, round(math.sqrt(n_cells / CELLS_PER_UM2) / row_height))
    n_columns = math.ceil(n_cells / KEPT / n_rows)
    width, height = n_columns * spacing, n_rows * row_height

    row, column = np.divmod(np.arange(n_rows * n_columns), n_columns)
    shift = np.where(row % 2, 0.25, -0.25)
    sites = np.column_stack([(column + 0.5 + shift) * spacing, (row + 0.5) * row_height]) + MARGIN_UM
    angle, length = rng.uniform(0, 2 * np.pi, len(sites)), JITTER * spacing * np.sqrt(rng.uniform(size=len(sites)))
    sites += length[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])

    domains = Domains.draw(rng, K, width, height)
    niche = domains.at(sites)
    looseness = rng.uniform(1, 1.35, K)[niche]
    # the n smallest of exponential waiting times: a weighted sample without replacement
    kept = np.argsort(rng.exponential(size=len(sites)) * looseness, kind="stable")[:n_cells]
    kept = rng.permutation(kept)  # a table's order says nothing of the tissue
    return Tissue(sites[kept], niche[kept], domains, (width + 2 * MARGIN_UM, height + 2 * MARGIN_UM))

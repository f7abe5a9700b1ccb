"""Crops of training cells, and what there is to predict in them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from nichekd.pp._crops import CropReader

MOST_CROPS = 2_500  # an epoch: sections of many cells need not show them all each time
EDGE_PX = 8  # cells nearer to a crop's edge than a step of the map are not read off


@dataclass(frozen=True)
class CropTask:
    """What is to be predicted, where.

    Attributes
    ----------
    reader
        Crops around the cells.
    xy_px
        Cell centres in the crops' pixels, (n, 2), column and row.
    targets, clusters
        (n, T) of unit variance, and (n,).
    niches
        A teacher's probabilities, (n, K), all 0 for cells that don't teach; ``None`` without a teacher.
    """

    reader: CropReader
    xy_px: NDArray[np.float64]
    targets: NDArray[np.float32]
    clusters: NDArray[np.int64]
    niches: NDArray[np.float32] | None = None

    def batch(
        self, anchors: NDArray[np.integer], members: list[NDArray[np.integer]]
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Crops (b, 3, p, p), points (b, m, 2), where there is one (b, m), and what is wanted of those, flat."""
        size = max(len(cells) for cells in members)
        points = np.zeros((len(anchors), size, 2), dtype=np.float32)
        there = np.zeros((len(anchors), size), dtype=bool)
        corners = self.reader.centre_px[anchors] - self.reader.crop_px // 2
        for i, cells in enumerate(members):
            points[i, : len(cells)] = self.xy_px[cells] - corners[i]
            there[i, : len(cells)] = True
        cells = np.concatenate(members)
        return (
            torch.from_numpy(self.reader.read(np.asarray(anchors, dtype=np.int64))),
            torch.from_numpy(points),
            torch.from_numpy(there),
            [torch.from_numpy(w[cells]) for w in (self.targets, self.clusters, self.niches) if w is not None],
        )


class CropSampler:
    """Crops centred on some cells, and the cells among them that each crop shows."""

    def __init__(self, task: CropTask, cells: NDArray[np.integer], rng: np.random.Generator) -> None:
        self.task, self.cells, self.rng = task, cells, rng
        self.tree = cKDTree(task.xy_px[cells])
        self.reach = task.reader.crop_px / 2 - EDGE_PX

    @cached_property
    def n_shown(self) -> float:
        """Cells that a crop shows on average."""
        return self._shown(np.random.default_rng(0))

    @property
    def n_covering(self) -> int:
        """Crops that show each cell two and a half times on average, or as many as an epoch has."""
        return min(MOST_CROPS, max(64, math.ceil(2.5 * len(self.cells) / self._shown(self.rng))))

    def _shown(self, rng: np.random.Generator) -> float:
        """Cells that a crop shows, on average over some."""
        some = self.cells[rng.choice(len(self.cells), min(500, len(self.cells)), replace=False)]
        return float(self.tree.query_ball_point(self.task.xy_px[some], self.reach, p=np.inf, return_length=True).mean())

    def batches(self, n_crops: int, batch_size: int) -> Any:
        """Anchors and members, crop by crop at random."""
        n = min(n_crops, len(self.cells))
        anchors = self.cells[self.rng.choice(len(self.cells), n, replace=False)]
        for start in range(0, n - n % batch_size or n, batch_size):
            some = anchors[start : start + batch_size]
            found = self.tree.query_ball_point(self.task.xy_px[some], self.reach, p=np.inf)
            yield some, [self.cells[np.asarray(members)] for members in found]

"""Neighborhoods as tensors: each cell's features once, tokens as pointers to them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class NeighborhoodBatch:
    """B neighborhoods over M distinct cells, padded to L tokens; token 0 is the centre cell.

    Attributes
    ----------
    features
        (M, F), of each cell once: neighborhoods share cells some fifty-fold.
    token
        (B, L), row of ``features`` of each token.
    offset
        (B, L, 2), token minus centre, in radii.
    mask
        (B, L), true where there is a token.
    """

    features: Tensor
    token: Tensor
    offset: Tensor
    mask: Tensor

    def with_features(self, features: Tensor) -> NeighborhoodBatch:
        """The same neighborhoods with other features (M, F') of their cells."""
        return replace(self, features=features)

    def to(self, device: torch.device) -> NeighborhoodBatch:
        """The same batch on ``device``."""
        return NeighborhoodBatch(
            *(part.to(device, non_blocking=True) for part in (self.features, self.token, self.offset, self.mask))
        )


@dataclass(frozen=True)
class NeighborhoodIndex:
    """Who neighbors whom, and where: all that a batch needs besides the features.

    Attributes
    ----------
    indptr, indices
        CSR rows of the radius graph, centre excluded.
    xy
        (n, 2), cell centres, µm.
    radius
        µm; offsets are divided by it.
    """

    indptr: NDArray[np.integer]
    indices: NDArray[np.integer]
    xy: NDArray[np.float64]
    radius: float

    @classmethod
    def from_graph(cls, graph: csr_matrix, xy: NDArray[np.floating], radius: float) -> NeighborhoodIndex:
        """From a radius graph (n, n) and centres (n, 2) in µm."""
        return cls(graph.indptr, graph.indices, np.asarray(xy, dtype=np.float64), float(radius))

    @property
    def sizes(self) -> NDArray[np.integer]:
        """Tokens of each cell's neighborhood, (n,), the centre included."""
        return np.diff(self.indptr) + 1

    def tokens(self, cells: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Cells of each neighborhood, (B, L), padded with the centre, and where they are no padding."""
        start, size = self.indptr[cells].astype(np.int64), self.sizes[cells].astype(np.int64)
        column = np.arange(max(int(size.max(initial=1)), 1))
        mask = column < size[:, None]  # (B, L)
        neighbor = self.indices[(start[:, None] + column - 1)[mask & (column > 0)]]
        token = np.repeat(cells.astype(np.int64)[:, None], len(column), axis=1)
        token[mask & (column > 0)] = neighbor
        return token, mask

    def batch(self, cells: NDArray[np.integer], features: NDArray[np.floating]) -> NeighborhoodBatch:
        """The neighborhoods of ``cells`` (B,), with rows of ``features`` (n, F), read once per distinct cell."""
        token, mask = self.tokens(cells)
        distinct, inverse = np.unique(token, return_inverse=True)
        offset = ((self.xy[token] - self.xy[cells][:, None]) / self.radius).astype(np.float32)
        rows = np.asarray(features[distinct], dtype=np.float32)
        return NeighborhoodBatch(
            torch.from_numpy(rows),
            torch.from_numpy(inverse.reshape(token.shape)),
            torch.from_numpy(offset),
            torch.from_numpy(mask),
        )


def random_rotations(n: int, generator: torch.Generator) -> Tensor:
    """N rotations, half of them with a reflection, (n, 2, 2), to multiply offsets by from the right."""
    turn = 2 * math.pi * torch.rand(n, generator=generator)
    mirror = random_signs(n, generator)
    cos, sin = turn.cos(), turn.sin()
    return torch.stack([torch.stack([cos, sin * mirror], -1), torch.stack([-sin, cos * mirror], -1)], 1)


def random_signs(n: int, generator: torch.Generator) -> Tensor:
    """N times 1 or -1, (n,)."""
    return torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)

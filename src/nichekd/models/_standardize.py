from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


class Standardize(nn.Module):
    """Features at the training cells' mean 0 and standard deviation 1; what never varied stays 0."""

    mean: Tensor
    scale: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))

    def fit(self, blocks: Iterable[NDArray[np.floating]]) -> Standardize:
        """Take mean and standard deviation over ``blocks`` of rows, (·, F) each, in one pass."""
        n, total, square = 0, np.zeros(len(self.mean)), np.zeros(len(self.mean))
        for block in blocks:
            rows = np.asarray(block, dtype=np.float64)
            n, total, square = n + len(rows), total + rows.sum(0), square + (rows**2).sum(0)
        mean = total / n
        sd = np.sqrt(np.maximum(square / n - mean**2, 0))
        self.mean.copy_(torch.from_numpy(mean))
        # an infinite scale silences a constant feature, where a tiny one would blow up its noise on another slide
        self.scale.copy_(torch.from_numpy(np.where(sd > 1e-6 * np.maximum(np.abs(mean), 1), sd, np.inf)))
        return self

    def forward(self, features: Tensor) -> Tensor:
        """(M, F) → (M, F)."""
        return (features - self.mean) / self.scale

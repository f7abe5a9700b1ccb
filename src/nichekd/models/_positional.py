from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FrequencyEncoding(nn.Module):
    r"""Sines and cosines of a position at octave-spaced frequencies.

    :math:`\left[\sin(2^k \pi x), \cos(2^k \pi x)\right]_{k=0}^{n-1}` for each coordinate, where x is an offset in units
    of the radius, so that the slowest wave spans the neighborhood :cite:`Mildenhall2020`.
    """

    def __init__(self, n_frequencies: int = 6) -> None:
        super().__init__()
        self.n_frequencies = n_frequencies

    @property
    def n_features(self) -> int:
        """Length of the encoding of a two-dimensional offset."""
        return 4 * self.n_frequencies

    def forward(self, offset: Tensor) -> Tensor:
        """``offset`` (..., 2) in radii → (..., 4 * n_frequencies)."""
        sin, cos = (math.pi * offset).sin(), (math.pi * offset).cos()
        waves = []
        for _ in range(self.n_frequencies):
            waves += [sin, cos]
            # the next octave by the double-angle formulas: a sixth of the transcendental calls
            sin, cos = 2 * sin * cos, 1 - 2 * sin * sin
        return torch.cat(waves, dim=-1) if waves else offset.new_zeros(*offset.shape[:-1], 0)

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nichekd.models._neighborhood_batch import random_signs

BRIGHTEST = 255.0


@dataclass(frozen=True)
class CropAugmentation:
    """Random changes of crops that leave their cells what they are.

    Attributes
    ----------
    stain
        Standard deviation of the logarithm of each channel's optical density: how strongly a slide is stained.
    tint
        Standard deviation of what is added to the density: colour of the glass and the lamp.
    turn
        Quarter turns and mirroring.
    """

    stain: float = 0.12
    tint: float = 0.03
    turn: bool = True

    def __call__(self, crops: Tensor, points: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Changed crops (b, 3, p, p), uint8, and the ``points`` (b, n, 2) on them, in pixels, moved along.

        Crops are turned alike within a batch, and stained each in its own way.
        """
        side = crops.shape[-1]
        if self.turn:
            quarters = int(torch.randint(4, (1,), generator=generator))
            crops = torch.rot90(crops, quarters, (2, 3))
            for _ in range(quarters):  # counter-clockwise: the right edge becomes the top
                points = torch.stack([points[..., 1], side - points[..., 0]], dim=-1)
            if random_signs(1, generator)[0] < 0:
                crops = crops.flip(3)
                points = torch.stack([side - points[..., 0], points[..., 1]], dim=-1)
        n = len(crops)
        density = -((crops.float().clamp_min(1)) / BRIGHTEST).log()
        gain = (self.stain * torch.randn(n, 3, 1, 1, generator=generator)).exp()
        offset = self.tint * torch.randn(n, 3, 1, 1, generator=generator)
        changed = BRIGHTEST * (-(density * gain + offset)).clamp_max(math.log(1.0)).exp()
        return changed.round().to(torch.uint8), points

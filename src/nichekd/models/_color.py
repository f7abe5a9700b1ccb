"""Colour statistics of a crop: the floor that an encoder has to beat."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Optical densities of haematoxylin, eosin and DAB in red, green and blue: Ruifrok & Johnston 2001
RGB_FROM_HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
DARKEST = 1e-6  # least transmitted light; its density is the unit, as in skimage.color.rgb2hed
STEP = 2  # every second pixel each way is enough for statistics of a crop, in a quarter of the time


class ColorStatistics(nn.Module):
    r"""Mean, standard deviation and quantiles of red, green, blue, haematoxylin, eosin and DAB.

    Stains by colour deconvolution :cite:`Ruifrok2001`: :math:`s = \max(0, \log(v) / \log(10^{-6}) \, M^{-1})`, v the
    red, green and blue in 0...1, M the stains' optical densities. Of every second pixel each way.

    Takes crops (b, 3, h, w) in 0...1; returns (b, 42).
    """

    n_features = 6 * (2 + len(QUANTILES))

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("hed_from_rgb", torch.linalg.inv(torch.tensor(RGB_FROM_HED, dtype=torch.float64)).float())

    def forward(self, rgb: Tensor) -> Tensor:
        """Statistics, (b, 42)."""
        with torch.autocast(rgb.device.type, enabled=False):  # eight bits of bf16 would blur quantiles
            return self._statistics(rgb.float())

    def _statistics(self, rgb: Tensor) -> Tensor:
        rgb = rgb[..., ::STEP, ::STEP]
        density = rgb.clamp_min(DARKEST).log() / torch.log(torch.tensor(DARKEST))  # (b, 3, h, w)
        hed = torch.einsum("bchw,cs->bshw", density, self.hed_from_rgb).clamp_min(0)
        values = torch.cat([rgb, hed], dim=1).flatten(2).sort(dim=-1).values  # (b, 6, m)
        at = torch.tensor(QUANTILES, device=rgb.device) * (values.shape[-1] - 1)
        low, high = values[..., at.floor().long()], values[..., at.ceil().long()]  # (b, 6, 5)
        quantiles = low + (high - low) * (at - at.floor())
        mean, sd = values.mean(dim=-1, keepdim=True), values.std(dim=-1, correction=0, keepdim=True)  # (b, 6, 1)
        return torch.cat([mean, sd, quantiles], dim=-1).flatten(1)

"""What an encoder sees at each place of a tile, and in the tile as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nichekd.models._encoder import Encoder
    from nichekd.models._precision import Precision


def read_off(
    encoder: Encoder,
    tiles: Tensor | NDArray[np.uint8],
    tile: Tensor,
    position: Tensor,
    *,
    window: float,
    precision: Precision = "auto",
) -> Tensor:
    """Features of places in tiles.

    A module with a method ``at(tiles, points)``, such as a gene-aware encoder's, says itself what it sees at a point;
    of the others it is the mean of the map around it, and then the tile's global features.

    Parameters
    ----------
    encoder
        Its module has ``at``, or is one of timm.
    tiles
        uint8, (b, 3, p, p).
    tile
        Tile of each place, (m,), ascending.
    position
        x and y in the tile, (m, 2), as shares of its side, 0 to 1.
    window
        Side of the window that is averaged, as a share of the tile's.
    precision
        As of :meth:`Encoder.encode`.

    Returns
    -------
    float32, (m, F).

    Raises
    ------
    ValueError
        If the module shows no map of its features.
    """
    module: Any = encoder.module
    if not hasattr(module, "at"):
        maps, summary = encode_map(encoder, tiles, precision=precision)
        tile = tile.to(maps.device)
        around = pool_around(maps, tile, position.to(maps), window=window)
        return torch.cat([around, summary[tile]], dim=1)
    points, slot = _padded(position * tiles.shape[-1], tile, len(tiles))
    features = encoder.run(lambda x: module.at(x, points.to(x.device, torch.float32)), tiles, precision=precision)
    return features.float()[tile, slot]


def _padded(rows: Tensor, tile: Tensor, n_tiles: int) -> tuple[Tensor, Tensor]:
    """Rows (m, d) tile by tile, (n_tiles, most, d), and each row's place there, (m,)."""
    counts = torch.bincount(tile, minlength=n_tiles)
    slot = torch.arange(len(tile), device=tile.device) - (counts.cumsum(0) - counts)[tile]
    padded = rows.new_zeros(n_tiles, int(counts.max()), rows.shape[1])
    padded[tile, slot] = rows
    return padded, slot


def encode_map(
    encoder: Encoder, tiles: Tensor | NDArray[np.uint8], *, precision: Precision = "auto"
) -> tuple[Tensor, Tensor]:
    """Feature maps of tiles, and their global features.

    Parameters
    ----------
    encoder
        Its module is one of timm: a ViT, whose patch tokens make the map, or a convolutional network.
    tiles
        uint8, (b, 3, h, w), square.
    precision
        As of :meth:`Encoder.encode`.

    Returns
    -------
    Maps, float32 (b, C, rows, columns); and what :meth:`Encoder.encode` returns for the tiles, float32 (b, F).

    Raises
    ------
    ValueError
        If the module shows no map of its features.
    """
    module: Any = encoder.module
    if not (hasattr(module, "forward_features") and hasattr(module, "forward_head")):
        raise ValueError(
            f"Encoder {encoder.name!r} is a {type(module).__name__} without timm's forward_features and forward_head, "
            "so that it shows no feature map. Take mode='crop', or a model of timm."
        )

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        features = module.forward_features(x)
        return features, module.forward_head(features)

    features, summary = encoder.run(both, tiles, precision=precision)
    if features.ndim == 4 and getattr(module, "output_fmt", "NCHW") == "NHWC":
        features = features.permute(0, 3, 1, 2)
    if features.ndim == 3:
        tokens = features[:, getattr(module, "num_prefix_tokens", 0) :]  # without CLS and registers
        side = round(tokens.shape[1] ** 0.5)
        features = tokens.transpose(1, 2).unflatten(2, (side, side)) if side * side == tokens.shape[1] else tokens
    if features.ndim != 4:
        raise ValueError(
            f"Encoder {encoder.name!r} has features of shape {tuple(features.shape)}, which are no square map. Take "
            "mode='crop'."
        )
    return features.float(), summary.float()


def pool_around(maps: Tensor, tile: Tensor, position: Tensor, *, window: float) -> Tensor:
    """Mean of a map over a square window around each position.

    A place of the map counts as much as the window covers of it; windows end at the tile's edge.

    Parameters
    ----------
    maps
        (b, C, rows, columns).
    tile
        Map of each position, (m,), ascending.
    position
        x and y in the tile, (m, 2), as shares of its side, 0 to 1.
    window
        Side of the window, as a share of the tile's.

    Returns
    -------
    (m, C).
    """
    b, _, n_rows, n_columns = maps.shape
    columns, rows = _cover(position[:, 0], n_columns, window), _cover(position[:, 1], n_rows, window)
    weights = (rows[:, :, None] * columns[:, None, :]).flatten(1)  # (m, rows · columns)
    # one product a tile, all tiles at once: padded to the tile with most positions
    padded, slot = _padded(weights, tile, b)
    return torch.bmm(padded, maps.flatten(2).transpose(1, 2))[tile, slot]


def _cover(centre: Tensor, n_places: int, window: float) -> Tensor:
    """How much of each of ``n_places`` equal places a window covers, as shares of what it covers, (m, n_places)."""
    edges = torch.arange(n_places + 1, device=centre.device) / n_places
    low, high = (centre - window / 2)[:, None], (centre + window / 2)[:, None]
    covered = (torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])).clamp_min(0)
    return covered / covered.sum(dim=1, keepdim=True)

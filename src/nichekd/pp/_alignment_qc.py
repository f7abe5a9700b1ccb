from __future__ import annotations

import logging
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nichekd._image import has_image
from nichekd._loose_image import get_image_loosely
from nichekd._record import record
from nichekd._resolve import get_table
from nichekd.pp._shift_tiles import TooFewCellsError, tile_surfaces
from nichekd.pp._shifts import TRANSFORMS, Peak, Surface, best_peak

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from nichekd._image import CellImage

log = logging.getLogger(__name__)

LARGEST_UM = 5.0  # shift that is warned of: a nucleus' radius
SURE, CLEAR, ENOUGH = 0.25, 0.1, 200  # confidence, correlation and cells from which a shift is warned of


def alignment_qc(
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    max_shift_um: float = 60.0,
    grid: tuple[int, int] = (4, 4),
    mpp: float = 1.0,
    transforms: bool = True,
    table_key: str = "table",
) -> pd.DataFrame:
    r"""How far the cells sit from the nuclei in the image.

    The haematoxylin h of the image and the cells' centres c, drawn as points, are smoothed alike, freed of what is
    wider than a nucleus, and cross-correlated tile by tile,
    :math:`\rho(d) = \langle h(x + d)\, c(x) \rangle / (\lVert h \rVert \lVert c \rVert)`; the shift is where
    :math:`\rho` is largest, by a parabola between pixels. The global one is that of all tiles' mean. All is done again
    for the cells turned and mirrored about the image.

    Parameters
    ----------
    sdata
        Cells and their image. Cells may lie outside the image.
    image_key
        Name of the image; may be left out where there is one.
    max_shift_um
        Largest shift along x or y that is looked for.
    grid
        Rows and columns of tiles over the cells. Of each, up to 400 × 400 µm around its middle cell are looked at, so
        that a large slide takes no longer than a small one.
    mpp
        µm per pixel at which they are compared.
    transforms
        Also try the cells turned and mirrored.
    table_key
        Name of the table.

    Returns
    -------
    A row for the whole (``tile`` is ``"global"``) and one for each tile with at least 20 cells (``"row-column"``):

    - ``x``, ``y``: the tile's middle, µm;
    - ``dx``, ``dy``, ``shift``: what to add to ``obsm["spatial"]`` so that the cells sit on the nuclei, and its length, µm;
    - ``peak``: the correlation there; ``confidence``: by what share the next best correlation, more than 10 µm off, is
      lower; 0 is a guess, and from 0.25 a shift is to be believed;
    - ``n_cells``;
    - ``transform``: what the cells have to go through first, to fit best: ``"identity"``, ``"rot90"``, ``"rot180"``,
      ``"rot270"`` (the cells turned counter-clockwise, as seen, with the image's frame), ``"flip"`` (left and right
      exchanged), ``"flip_rot90"``, ``"flip_rot180"``, ``"flip_rot270"`` (exchanged, then turned). Shifts are what
      remains after it.

    Writes ``uns["nichekd"]["alignment_qc"]``, which :func:`nichekd.pl.alignment` draws.

    Raises
    ------
    TypeError
        If ``sdata`` has no image, being an ``AnnData``.
    KeyError
        If the table or the image is missing.
    ValueError
        If the image can't be used; if ``max_shift_um``, ``grid`` or ``mpp`` are out of range; if no tile has enough
        cells on the image.

    Examples
    --------
    >>> import nichekd as nk
    >>> sdata = nk.datasets.simulate(1000, K=2)
    >>> table = nk.pp.alignment_qc(sdata)
    >>> bool(table.set_index("tile").loc["global", "shift"] < 1)
    True
    """
    start = time.perf_counter()
    adata = get_table(sdata, table_key)
    if max_shift_um <= 0 or min(grid) < 1 or not 0.2 <= mpp <= 4:
        raise ValueError(
            f"max_shift_um={max_shift_um}, grid={grid}, mpp={mpp}; a shift is above 0, a grid has at least one row and "
            "column, and nuclei are told apart at 0.2 to 4 µm per pixel."
        )
    image = get_image_loosely(sdata, adata, image_key=image_key)
    surfaces = tile_surfaces(image, max_shift_um, grid, mpp, TRANSFORMS if transforms else ("identity",))
    transform, peak = _best(surfaces, mpp)
    rows = [_row("global", image, surfaces[transform], peak, transform)]
    rows += [_row(s.name, image, [s], best_peak(s.rho, mpp), transform) for s in surfaces[transform]]
    table = pd.DataFrame(rows)
    record(
        adata,
        "alignment_qc",
        seconds=time.perf_counter() - start,
        image_key=image.key,
        max_shift_um=max_shift_um,
        transform=transform,
        tiles={name: column.to_numpy() for name, column in table.drop(columns="transform").items()},
    )
    log.info(
        "cells fit the image best by %s and a shift of (%.1f, %.1f) µm, confidence %.2f",
        transform,
        rows[0]["dx"],
        rows[0]["dy"],
        peak.confidence,
    )
    return table


def warn_if_misaligned(sdata: Any, *, image_key: str | None = None, table_key: str = "table") -> float | None:
    """Warn where cells sit more than 5 µm beside the nuclei of the image.

    Parameters
    ----------
    sdata
        Cells and their image; where there is no image, nothing is done.
    image_key
        Name of the image.
    table_key
        Name of the table.

    Returns
    -------
    The global shift in µm, or ``None`` where it can't be told.

    Raises
    ------
    KeyError
        If there is no such table, or no image ``image_key``.

    Warns
    -----
    UserWarning
        Of a shift that is too large, if the correlation is clear; it says what to do.
    """
    if not has_image(sdata):
        return None
    unseen = "the alignment of cells and image was not looked at: %s"
    adata = get_table(sdata, table_key)
    if image_key is not None and image_key not in sdata.images:
        raise KeyError(f"The SpatialData has no image {image_key!r}; it has {sorted(sdata.images)}. Name one of them.")
    try:
        get_image_loosely(sdata, adata, image_key=image_key)
    except (KeyError, TypeError, ValueError) as err:
        # several images and none named, none that is 8-bit RGB, or no way from the cells to it: with features at hand
        # the image may not be needed, and whoever needs it will say so
        log.info(unseen, err)
        return None
    try:
        table = alignment_qc(sdata, image_key=image_key, transforms=False, table_key=table_key)
        if not _is_sure(table):  # perhaps turned
            table = alignment_qc(sdata, image_key=image_key, table_key=table_key)
    except TooFewCellsError as err:  # a small section may be taught, and tells nothing of its place
        log.info(unseen, err)
        return None
    whole = table.iloc[0]
    if not _is_sure(table):
        log.warning(
            "Whether cells and image are aligned can't be told (confidence %.2f): look at both, nk.pl.alignment(sdata).",
            whole["confidence"],
        )
        return None
    advice = (
        "Look at nk.pp.alignment_qc(sdata) and nk.pl.alignment(sdata), then correct the image's transformation "
        "(affine= of nk.io.paired)."
    )
    if whole["transform"] != "identity":
        warnings.warn(
            f"The cells fit the nuclei of the image only when turned or mirrored, by {whole['transform']!r}. {advice}",
            UserWarning,
            stacklevel=3,
        )
    elif whole["shift"] > LARGEST_UM:
        warnings.warn(
            f"The cells sit {whole['shift']:.1f} µm beside the nuclei of the image: ({whole['dx']:.1f}, {whole['dy']:.1f}) "
            f"µm would have to be added to obsm['spatial']. {advice}",
            UserWarning,
            stacklevel=3,
        )
    return float(whole["shift"])


def _is_sure(table: pd.DataFrame) -> bool:
    """Whether the global shift is a finding, not an accident."""
    whole = table.iloc[0]
    return bool(whole["confidence"] >= SURE and whole["peak"] >= CLEAR and whole["n_cells"] >= ENOUGH)


def _best(surfaces: dict[str, list[Surface]], mpp: float) -> tuple[str, Peak]:
    """The transform with the highest correlation of all tiles together; as they are, where that is as good."""
    peaks = {name: best_peak(np.mean([s.rho for s in tiles], axis=0), mpp) for name, tiles in surfaces.items()}
    best = max(peaks, key=lambda name: peaks[name].rho * peaks[name].confidence)
    return best, peaks[best]


def _row(name: str, image: CellImage, surfaces: list[Surface], peak: Peak, transform: str) -> dict[str, Any]:
    to_um = np.linalg.inv(image.to_pixels)
    middle = np.mean([surface.middle for surface in surfaces], axis=0) * (surfaces[0].mpp / image.mpp)
    x, y = to_um[:2, :2] @ middle + to_um[:2, 2]
    dx, dy = to_um[:2, :2] @ (np.array([peak.dx, peak.dy]) / image.mpp)
    return {
        "tile": name,
        "x": float(x),
        "y": float(y),
        "dx": float(dx),
        "dy": float(dy),
        "shift": float(np.hypot(dx, dy)),
        "peak": peak.rho,
        "confidence": peak.confidence,
        "n_cells": sum(surface.n_cells for surface in surfaces),
        "transform": transform,
    }

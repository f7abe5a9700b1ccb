from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from nichekd._keys import Keys
from nichekd._labels import subset_mask
from nichekd._palette import MISSING
from nichekd._resolve import get_table, require
from nichekd.pl._figure import INK, Grid, finish, scale_bar, styled
from nichekd.pl._places import places
from nichekd.pl._tissue import Extent, dot_area, dots, frame, outline_test

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

#: title, label of the colour bar
WORDS: Final = {
    Keys.NICHE_ENTROPY: ("How unsure the student is", "entropy of the niche probabilities, in units of log K"),
    Keys.NICHE_OOD: ("How unlike the training tissue", "out-of-distribution score; above 1: unlike"),
    Keys.NICHE_OOD_STAIN: ("How unlike its stain", "out-of-distribution score; above 1: unlike"),
}
#: from where on tissue is out of distribution: a line in the colour bar
LIMITS: Final = {Keys.NICHE_OOD: 1.0, Keys.NICHE_OOD_STAIN: 1.0}
WIDE: Final = 0.6  # height over width of a map below which a colour bar at its side is too low for its label
#: least upper end of the colours: a slide with nothing out of distribution, which begins at 1, is not to look as if it had
LEAST_TOP: Final = {Keys.NICHE_ENTROPY: 0.5, Keys.NICHE_OOD: 2.0, Keys.NICHE_OOD_STAIN: 2.0}


def uncertainty(
    data: AnnData | SpatialData,
    *,
    keys: Sequence[str] | str | None = None,
    subset: str | None = None,
    split_key: str = Keys.SPLIT,
    table_key: str = "table",
    save: str | Path | None = None,
    dpi: float = 200,
) -> Figure:
    """Maps of how sure the student is of each cell's niche, and of how new the tissue is to it.

    Parameters
    ----------
    data
        Cells with a student's predictions.
    keys
        Numeric columns of ``obs`` to show. For ``None`` ``niche_entropy`` and, where it is, ``niche_ood``.
    subset
        Show the ``"train"``, ``"test"`` or ``"buffer"`` cells alone.
    split_key
        Column of ``obs`` with the split.
    table_key
        Table of a ``SpatialData``.
    save
        File to write.
    dpi
        Dots per inch of that file.

    Returns
    -------
    The figure. Colours run from 0, or the least value below it, to the 99.5th percentile, and at least to 0.5 of the
    entropy and to 2 of an out-of-distribution score, so that slides can be compared by eye.

    Raises
    ------
    KeyError
        If a column, or the split of a ``subset``, is missing.
    TypeError
        If a column is not numeric.
    ValueError
        If ``subset`` has no cell, or none of its cells has a value.
    """
    import matplotlib.pyplot as plt

    adata = get_table(data, table_key)
    if keys is None:
        shown = [Keys.NICHE_ENTROPY, *([Keys.NICHE_OOD] if Keys.NICHE_OOD in adata.obs else [])]
    else:
        shown = [keys] if isinstance(keys, str) else list(keys)
    mask = subset_mask(adata, subset, split_key=split_key)
    values = {key: _values(adata, key)[mask] for key in shown}
    for key, column in values.items():
        if not np.isfinite(column).any():
            raise ValueError(f"obs[{key!r}] has no value for any of the {mask.sum():,} cells shown. Run nk.tl.distill.")
    xy = places(data, adata, mask)
    split = adata.obs[split_key].astype(str).to_numpy()[mask] if split_key in adata.obs else None
    extent = Extent.of(xy)
    plan = Grid.of(len(shown), extent.aspect, n_entries=0)
    with styled():
        fig, axes = plt.subplots(
            plan.nrows,
            plan.ncols,
            figsize=(
                plan.ncols * (plan.width + 0.6),
                plan.nrows * (plan.height + (0.7 if extent.aspect < WIDE else 0.25)),
            ),
            layout="constrained",
            squeeze=False,
        )
        for ax in axes.flat[len(shown) :]:
            ax.set_axis_off()
        area = dot_area(xy, extent, plan.width)
        for ax, (key, column) in zip(axes.flat, values.items(), strict=False):
            title, label = WORDS.get(key, (key, key))
            frame(ax, extent, title=title)
            points = _map(ax, xy, column, area, least_top=LEAST_TOP.get(key, 0.0))
            _color_bar(ax, points, label, limit=LIMITS.get(key), below=extent.aspect < WIDE)
            if split is not None:
                outline_test(ax, xy, split, label=ax is axes.flat[0])
        scale_bar(axes.flat[0])
        return finish(fig, save, dpi)


def _color_bar(ax: Axes, points: Any, label: str, *, limit: float | None, below: bool) -> None:
    """Beside a map, or below one that is too low for the label; with a line at ``limit``."""
    where: dict[str, Any] = {"aspect": 40, "pad": 0.03, "location": "bottom"} if below else {"aspect": 25, "pad": 0.01}
    bar = ax.figure.colorbar(points, ax=ax, label=label, shrink=0.6, **where)
    bar.outline.set_visible(False)
    if limit is not None and points.norm.vmin < limit < points.norm.vmax:
        line = bar.ax.axvline if below else bar.ax.axhline
        line(limit, color=INK, linewidth=1.0)


def _map(ax: Axes, xy: NDArray[np.float64], values: NDArray[np.float64], area: float, *, least_top: float) -> Any:
    from matplotlib import colormaps

    cmap = colormaps["magma_r"].with_extremes(bad=MISSING)
    top = max(float(np.nanpercentile(values, 99.5)), np.finfo(np.float32).tiny, least_top)
    bottom = min(0.0, float(np.nanmin(values)))
    order = np.argsort(np.nan_to_num(values, nan=-np.inf))  # the unsure on top
    return dots(ax, xy[order], values[order], area, cmap=cmap, vmin=bottom, vmax=top, plotnonfinite=True)


def _values(adata: AnnData, key: str) -> NDArray[np.float64]:
    column = require(adata, "obs", key, run="nk.tl.distill or nk.tl.predict_niches")
    if not pd.api.types.is_numeric_dtype(column):
        raise TypeError(f"obs[{key!r}] is {column.dtype}; it has to be numeric. To show labels, use nk.pl.niches.")
    return column.to_numpy(dtype=np.float64)

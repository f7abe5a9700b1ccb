from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from nichekd._keys import Keys
from nichekd._labels import subset_mask
from nichekd._palette import MISSING
from nichekd._resolve import require
from nichekd.pl._figure import BAR_IN, INK, Grid, check_save, finish, scale_bar, styled
from nichekd.pl._places import places, sections, table_to_draw
from nichekd.pl._tissue import Extent, dot_area, dots, frame, frames_of_test, outline_test

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
#: how the names of out-of-distribution scores end, and where their colours turn and end, on all slides alike
OOD: Final = (Keys.NICHE_OOD.removeprefix(Keys.NICHE), Keys.NICHE_OOD_STAIN.removeprefix(Keys.NICHE))
OOD_LIMIT, OOD_TOP = 1.0, 4.0
WIDE: Final = 0.6  # height over width of a map below which a colour bar at its side is too low for its label
LEAST_TOP: Final = {
    Keys.NICHE_ENTROPY: 0.5
}  # of the colours: a slide of sure niches is not to look as if it had others


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
        File to write, in a folder that there is. Its ending names the format, such as ``.png`` or ``.pdf``; a path
        without one is refused.
    dpi
        Dots per inch of that file.

    Returns
    -------
    The figure. Colours run from 0, or the least value below it, to the 99.5th percentile, and of the entropy at least to
    0.5. Those of an out-of-distribution score are the same for every slide: blue below 1, where tissue is like that of
    the training, from yellow at 1 to red at 4, and purple above.

    Raises
    ------
    KeyError
        If a column, or the split of a ``subset``, is missing.
    TypeError
        If a column is not numeric.
    FileNotFoundError
        If the folder of ``save`` is missing.
    ValueError
        If there is no cell, or none in ``subset``, or none of them has a value; if ``save`` is a folder or ends in no
        format of figures.
    """
    import matplotlib.pyplot as plt

    check_save(save)
    adata = table_to_draw(data, table_key)
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
    frames = [] if split is None else frames_of_test(xy, split, sections(adata, mask))
    extent = Extent.of(xy)
    plan = Grid.of(len(shown), extent.aspect, n_entries=0)
    with styled():
        fig, axes = plt.subplots(
            plan.nrows,
            plan.ncols,
            figsize=(
                plan.ncols * (plan.width + 0.6),
                plan.nrows * (plan.height + (0.7 if extent.aspect < WIDE else 0.25)) + BAR_IN,
            ),
            layout="compressed",
            squeeze=False,
        )
        for ax in axes.flat[len(shown) :]:
            ax.set_axis_off()
        area = dot_area(xy, extent, plan.width)
        for ax, (key, column) in zip(axes.flat, values.items(), strict=False):
            title, label = WORDS.get(key, (key, key))
            frame(ax, extent, title=title)
            is_ood = key.endswith(OOD)
            colors = _ood_colors() if is_ood else _colors(column, least_top=LEAST_TOP.get(key, 0.0))
            order = np.argsort(np.nan_to_num(column, nan=-np.inf))  # the unsure on top
            points = dots(ax, xy[order], column[order], area, plotnonfinite=True, **colors)
            _color_bar(ax, points, label, is_ood=is_ood, below=extent.aspect < WIDE)
            outline_test(ax, frames, label=ax is axes.flat[0])
        scale_bar(axes.flat[0])
        return finish(fig, save, dpi)


def _color_bar(ax: Axes, points: Any, label: str, *, is_ood: bool, below: bool) -> None:
    """Beside a map, or below one that is too low for the label; with a line where tissue begins to be unlike."""
    where: dict[str, Any] = {"aspect": 40, "pad": 0.03, "location": "bottom"} if below else {"aspect": 25, "pad": 0.01}
    ends: dict[str, Any] = {"extend": "max", "ticks": [0, 0.5, 1, 2, 3, 4], "format": "%g"} if is_ood else {}
    bar = ax.figure.colorbar(points, ax=ax, label=label, shrink=0.6, **where, **ends)
    bar.outline.set_visible(False)
    if is_ood:
        line = bar.ax.axvline if below else bar.ax.axhline
        line(OOD_LIMIT, color=INK, linewidth=1.0)


def _colors(values: NDArray[np.float64], *, least_top: float) -> dict[str, Any]:
    from matplotlib import colormaps

    top = max(float(np.nanpercentile(values, 99.5)), np.finfo(np.float32).tiny, least_top)
    bottom = min(0.0, float(np.nanmin(values)))
    return {"cmap": colormaps["magma_r"].with_extremes(bad=MISSING), "vmin": bottom, "vmax": top}


def _ood_colors() -> dict[str, Any]:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, TwoSlopeNorm

    like, unlike = colormaps["Blues"](np.linspace(0.25, 0.7, 128)), colormaps["YlOrRd"](np.linspace(0.2, 0.9, 128))
    cmap = ListedColormap(np.vstack([like, unlike])).with_extremes(bad=MISSING, over="#54278f")
    return {"cmap": cmap, "norm": TwoSlopeNorm(OOD_LIMIT, vmin=0.0, vmax=OOD_TOP)}


def _values(adata: AnnData, key: str) -> NDArray[np.float64]:
    column = require(adata, "obs", key, run="nk.tl.distill or nk.tl.predict_niches")
    if not pd.api.types.is_numeric_dtype(column):
        raise TypeError(f"obs[{key!r}] is {column.dtype}; it has to be numeric. To show labels, use nk.pl.niches.")
    return column.to_numpy(dtype=np.float64)

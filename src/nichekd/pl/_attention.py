from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nichekd._keys import Keys
from nichekd._palette import MISSING
from nichekd._resolve import centres_um, require
from nichekd._sections import cells_of_libraries
from nichekd.pl._figure import BAR_IN, Grid, check_save, finish, scale_bar, styled
from nichekd.pl._places import table_to_draw
from nichekd.pl._slide import draw_slide, slide_of
from nichekd.pl._tissue import Extent, dot_area, dots, frame

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

FAINT = 1.0  # attention of the slide's mean; what has less is drawn fainter


def attention(
    data: AnnData | SpatialData,
    *,
    key: str = Keys.ATTENTION,
    library_key: str | None = None,
    libraries: Sequence[str] | str | None = None,
    image_key: str | None = None,
    table_key: str = "table",
    save: str | Path | None = None,
    dpi: float = 200,
) -> Figure:
    """Maps of which cells a slide's class was told by.

    Parameters
    ----------
    data
        Cells, or tiles, with the attention that :func:`nichekd.tl.predict_slides` wrote.
    key
        Column of ``obs`` with it.
    library_key
        Column of ``obs`` that tells slides apart, a panel each; default one slide.
    libraries
        Slides to show; default all.
    image_key
        Image of a ``SpatialData``, drawn beneath a single slide; may be left out where there is one.
    table_key
        Table of a ``SpatialData``.
    save
        File to write, in a folder that there is. Its ending names the format, such as ``.png`` or ``.pdf``; a path
        without one is refused.
    dpi
        Dots per inch of that file.

    Returns
    -------
    The figure. Colours are the weight of a cell as a multiple of its slide's mean, on a logarithmic scale that all
    panels share.

    Raises
    ------
    KeyError
        If a column or a slide is missing.
    TypeError
        If the column is not numeric.
    FileNotFoundError
        If the folder of ``save`` is missing.
    ValueError
        If no cell shown has a value above 0, or a value is negative; if ``libraries`` is empty; if ``save`` is a folder
        or ends in no format of figures.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    check_save(save)
    adata = table_to_draw(data, table_key)
    values = _values(adata, key)
    slides = _slides(adata, library_key, libraries)
    shown = np.concatenate([values[cells] for cells in slides.values()])
    positive = shown[np.isfinite(shown) & (shown > 0)]
    if not len(positive) or (shown < 0).any():
        raise ValueError(
            f"obs[{key!r}] has {len(positive):,} values above 0 and {(shown < 0).sum():,} below, of {len(shown):,}; "
            "attention is above 0. Run nk.tl.predict_slides."
        )
    top = max(float(np.quantile(positive, 0.998)), 1.05)
    norm = LogNorm(vmin=min(max(float(np.quantile(positive, 0.02)), top / 1000), 1 / top), vmax=top)
    image = slide_of(data, adata, image_key=image_key, figure="pl.attention") if len(slides) == 1 else None
    extents = {name: Extent.of(_centres(adata, cells)) for name, cells in slides.items()}
    plan = Grid.of(len(slides), float(np.median([extent.aspect for extent in extents.values()])), n_entries=0)
    with styled():
        fig, axes = plt.subplots(
            plan.nrows, plan.ncols, figsize=(plan.ncols * plan.width + 1.0, plan.nrows * (plan.height + 0.25 + BAR_IN)),
            layout="compressed", squeeze=False,
        )  # fmt: skip
        for ax in axes.flat[len(slides) :]:
            ax.set_axis_off()
        points: Any = None
        for ax, (name, cells) in zip(axes.flat, slides.items(), strict=False):
            extent = extents[name]
            frame(ax, extent, title=name or "Attention")
            if image is not None:
                draw_slide(ax, data, image, extent)
            order = cells[np.argsort(np.nan_to_num(values[cells], nan=-1))]  # what counts most on top
            xy = _centres(adata, order)
            points = _map(
                ax,
                xy,
                values[order],
                dot_area(xy, extent, min(plan.width, plan.height / extent.aspect)),
                norm,
                over=image is not None,
            )
            scale_bar(ax)
        bar = fig.colorbar(points, ax=axes, label="attention, multiples of the slide's mean", shrink=0.6, aspect=25)
        bar.outline.set_visible(False)
        _ticks(bar, norm)
        return finish(fig, save, dpi)


def _ticks(bar: Any, norm: Any) -> None:
    """At 1, 2 and 5 times the powers of ten, as plain numbers."""
    from matplotlib.ticker import FixedLocator, NullLocator

    steps = [digit * 10.0**power for power in range(-4, 5) for digit in (1, 2, 5)]
    shown = [step for step in steps if norm.vmin <= step <= norm.vmax]
    bar.ax.yaxis.set_major_locator(FixedLocator(shown))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _map(ax: Any, xy: NDArray[np.float64], values: NDArray[np.float64], area: float, norm: Any, *, over: bool) -> Any:
    from matplotlib import colormaps

    cmap = colormaps["magma_r"].with_extremes(bad=MISSING)
    alpha = np.where(values < FAINT, 0.25, 0.9) if over else None
    return dots(ax, xy, np.maximum(values, norm.vmin), area, cmap=cmap, norm=norm, alpha=alpha, plotnonfinite=True)


def _centres(adata: AnnData, cells: NDArray[np.intp]) -> NDArray[np.float64]:
    return centres_um(adata[cells])


def _values(adata: AnnData, key: str) -> NDArray[np.float64]:
    column = require(adata, "obs", key, run="nk.tl.predict_slides")
    if not pd.api.types.is_numeric_dtype(column):
        raise TypeError(f"obs[{key!r}] is {column.dtype}; it has to be numeric. To show labels, use nk.pl.niches.")
    return column.to_numpy(dtype=np.float64)


def _slides(
    adata: AnnData, library_key: str | None, libraries: Sequence[str] | str | None
) -> dict[str, NDArray[np.intp]]:
    if library_key is None:
        if libraries is not None:
            raise KeyError(f"libraries={libraries!r} without a library_key=; name the column that tells slides apart.")
        return {"": np.arange(adata.n_obs)}
    found = cells_of_libraries(adata, library_key)
    there = list(found)
    wanted = there if libraries is None else [libraries] if isinstance(libraries, str) else list(libraries)
    if not wanted:
        raise ValueError(
            f"libraries={libraries!r} names no slide. Name some of {there}, or leave it out for all of them."
        )
    if unknown := [name for name in wanted if name not in there]:
        raise KeyError(f"obs[{library_key!r}] has no slides {unknown}; it has {there}.")
    return {name: found[name] for name in wanted}

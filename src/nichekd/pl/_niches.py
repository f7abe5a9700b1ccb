from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from nichekd._keys import Keys, Split
from nichekd._labels import REFERENCE, labels_of, natural_order, niche_keys, subset_mask
from nichekd._palette import MISSING, shared_colors
from nichekd.pl._figure import Grid, check_save, finish, legend_handles, place_legend, scale_bar, styled
from nichekd.pl._places import places, sections, table_to_draw
from nichekd.pl._slide import draw_slide, slide_of
from nichekd.pl._tissue import Extent, dot_area, dots, frame, frames_of_test, label_colors, outline_test
from nichekd.pl._titles import image_title, short_titles, title_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

log = logging.getLogger(__name__)


def niches(
    data: AnnData | SpatialData,
    *,
    keys: Sequence[str] | str | None = None,
    subset: str | None = None,
    reference: str = REFERENCE,
    image_key: str | None = None,
    titles: Mapping[str, str] | None = None,
    ncols: int | None = None,
    split_key: str = Keys.SPLIT,
    table_key: str = "table",
    save: str | Path | None = None,
    dpi: float = 200,
) -> Figure:
    """The slide and the niches of each method side by side, matched niches in one colour.

    The test cells are framed where a strip or a box holds them; where none does, the other cells are drawn paler.
    Sections of a table without an image that lie on top of each other, told apart by the ``library_key`` of
    :func:`nichekd.pp.neighborhoods` or :func:`nichekd.pp.split`, are drawn side by side.

    Parameters
    ----------
    data
        Cells with labels; the slide is shown where a ``SpatialData`` has one.
    keys
        Columns of ``obs`` to show, in this order. For ``None`` the reference first, where there is one, then
        ``niche``, the baselines, and all other categorical ``niche_*`` columns.
    subset
        Show the ``"train"``, ``"test"`` or ``"buffer"`` cells alone.
    reference
        Column of ``obs`` whose names and colours the others take on. The student's niches are the teacher's by name;
        those of other methods are matched by the overlap of all cells, unless :func:`nichekd.tl.match_niches` has
        done so already.
    image_key
        Image of the ``SpatialData``; may be left out where there is one.
    titles
        Titles of panels, by key; ``"H&E"`` for the slide's.
    ncols
        Panels in a row, at least 1.
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
    The figure. Writes ``uns["<key>_colors"]`` of the columns shown.

    Raises
    ------
    KeyError
        If a column, or the split of a ``subset``, is missing, or no method has been run.
    FileNotFoundError
        If the folder of ``save`` is missing.
    ValueError
        If there is no cell, or none in ``subset``, ``obsm["spatial"]`` is malformed, or ``ncols`` is no whole number
        from 1 on; if ``save`` is a folder or ends in no format of figures.
    """
    import matplotlib.pyplot as plt

    check_save(save)
    adata = table_to_draw(data, table_key)
    shown = niche_keys(adata, keys, reference=reference, with_reference=True)
    reference = reference if reference in adata.obs else shown[0]
    mask = subset_mask(adata, subset, split_key=split_key)
    xy = places(data, adata, mask)
    colors = shared_colors(adata, shown, reference=reference)
    image = slide_of(data, adata, image_key=image_key, figure="pl.niches")
    split = adata.obs[split_key].astype(str).to_numpy()[mask] if split_key in adata.obs else None
    names = {key: title_of(key) for key in shown} | {"H&E": image_title(adata)} | dict(titles or {})

    entries = _entries({key: labels_of(adata, key)[mask] for key in shown}, colors, reference, short_titles(names))
    extent = Extent.of(xy)
    n_panels = len(shown) + (image is not None)
    plan = Grid.of(n_panels, extent.aspect, n_entries=len(entries), ncols=ncols)
    with styled():
        fig, axes = plt.subplots(plan.nrows, plan.ncols, figsize=plan.figsize(), layout="compressed", squeeze=False)
        panels = list(axes.flat)
        for ax in panels[n_panels:]:
            ax.set_axis_off()
        maps = panels[n_panels - len(shown) : n_panels]
        if image is not None:
            draw_slide(panels[0], data, image, extent)
            frame(panels[0], extent, title=names["H&E"])
        area = dot_area(xy, extent, plan.width)
        for ax, key in zip(maps, shown, strict=True):
            frame(ax, extent, title=names[key])
            dots(ax, xy, label_colors(labels_of(adata, key)[mask], colors[key]), area)
        scale_bar(panels[0])
        if split is not None:
            frames = frames_of_test(xy, split, sections(adata, mask))
            for ax in panels[:n_panels]:
                outline_test(ax, frames, label=ax is panels[0])
            if not frames:
                _fade(maps, split)
        place_legend(fig, legend_handles(entries), title="Niche", spare=panels[-1], columns=plan.legend_columns)
        return finish(fig, save, dpi)


def _entries(
    labels: Mapping[str, pd.Categorical],
    colors: Mapping[str, Mapping[str, str]],
    reference: str,
    titles: Mapping[str, str],
) -> dict[str, str]:
    """Name and colour of each niche that is seen: under the reference's name, the unmatched ones under their own."""
    names = {color: name for name, color in colors[reference].items()}
    common, own = {}, {}
    for key, values in labels.items():
        for name in natural_order(values.remove_unused_categories().categories):
            color = colors[key][name]
            if key == reference or color in names:
                common[name if key == reference else names[color]] = color
            else:
                own[f"{titles[key]} {name}"] = color
    entries = {name: common[name] for name in natural_order(common)} | own
    if any((values.codes < 0).any() for values in labels.values()):
        entries["no label"] = MISSING
    return entries


def _fade(panels: Sequence[Axes], split: NDArray[np.str_]) -> None:
    """Draw the cells outside the test part paler, where there are both."""
    test = split == Split.TEST
    if test.any() and not test.all():
        for ax in panels:
            ax.collections[0].set_alpha(np.where(test, 1.0, 0.25).tolist())

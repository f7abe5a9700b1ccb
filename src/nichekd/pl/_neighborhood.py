from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._keys import Keys, Split
from nichekd._labels import labels_of
from nichekd._palette import colors_of
from nichekd._resolve import centres_um
from nichekd.pl._figure import BAR_IN, INK, check_save, count_of, finish, legend_handles, scale_bar, styled
from nichekd.pl._one_cell import neighbors_of, position_of, radius_of
from nichekd.pl._places import sections, table_to_draw
from nichekd.pl._slide import crops_at, draw_slide, slide_of
from nichekd.pl._split import COLORS
from nichekd.pl._tissue import Extent, dot_area, dots, frame, frames_of_test, label_colors, outline_test
from nichekd.pl._titles import image_title

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd._image import CellImage

CENTRE = "#e31a1c"


def neighborhood(
    data: AnnData | SpatialData,
    *,
    cell: str | int,
    color_key: str | None = None,
    crop_px: int = 224,
    image_key: str | None = None,
    split_key: str = Keys.SPLIT,
    table_key: str = "table",
    save: str | Path | None = None,
    dpi: float = 200,
) -> Figure:
    """What the method sees of one cell: its place on the slide, its neighborhood, its crop.

    On the slide the test cells are framed, and the cells of the buffer between training and test are marked. In the
    neighborhood, a circle of the radius holds the cells that are its tokens; paler ones don't count, be it that they
    are too far or on the other side of the split; the dashed square is the crop.

    Parameters
    ----------
    data
        Cells with a radius, ``uns["nichekd"]["radius"]``. The graph of :func:`nichekd.pp.neighborhoods` says who
        neighbors whom; without it, all cells of the same side of the split within the radius do.
    cell
        Name of the cell in ``obs_names``, or its position, from the end where it is negative.
    color_key
        Column of ``obs`` to colour the neighbors by, such as a cell type or a niche.
    crop_px
        Side of the crop in pixels of the image.
    image_key
        Image of the ``SpatialData``; may be left out where there is one.
    split_key
        Column of ``obs`` with the split, if there is one.
    table_key
        Table of a ``SpatialData``.
    save
        File to write, in a folder that there is. Its ending names the format, such as ``.png`` or ``.pdf``; a path
        without one is refused.
    dpi
        Dots per inch of that file.

    Returns
    -------
    The figure; of two panels without a slide, and of three with one. Writes ``uns["<color_key>_colors"]``.

    Raises
    ------
    KeyError
        If there is no such cell or column, or no radius.
    TypeError
        If ``cell`` is neither a name nor a position.
    FileNotFoundError
        If the folder of ``save`` is missing.
    ValueError
        If there is no cell, none at that position, or several of that name; if ``crop_px`` is no whole number from 1
        on, or the crop takes more than 1 GiB; if ``obsm["spatial"]`` is malformed; if ``save`` is a folder or ends in
        no format of figures.
    """
    import matplotlib.pyplot as plt

    check_save(save)
    crop_px = count_of(crop_px, "crop_px")
    adata = table_to_draw(data, table_key)
    index = position_of(adata, cell)
    radius = radius_of(adata)
    xy = centres_um(adata)
    split = adata.obs[split_key].astype(str).to_numpy() if split_key in adata.obs else None
    near = neighbors_of(adata, xy, split, index, radius)
    colors = {} if color_key is None else colors_of(adata, color_key)
    painted = None if color_key is None else label_colors(labels_of(adata, color_key), colors)
    image = slide_of(data, adata, image_key=image_key, figure="pl.neighborhood")
    whole = Extent.of(xy)
    crop = None if image is None else crops_at(image, np.array([index]), crop_px)[0]
    n_panels = 2 if image is None else 3
    with styled():
        height = 3.2
        first = float(np.clip(height / whole.aspect, 1.6, 6.4))
        legend = 1.2 if colors else 0.0
        size = (first + height * (n_panels - 1) + legend, max(height, first * whole.aspect) + 0.3 + BAR_IN)
        fig, axes = plt.subplots(
            1, n_panels, figsize=size, layout="constrained", width_ratios=[first, *[height] * (n_panels - 1)]
        )
        _whole(axes[0], data, adata, image, xy, split, whole, first)
        _mark(axes[0], xy[index], radius)
        close = Extent.of(xy[[index]] + 1.3 * radius * np.array([[-1, -1], [1, 1]]), pad=0)
        _close(axes[1], data, image, xy, close, near, index, painted, radius, height)
        if image is not None:
            _outline_crop(axes[1], image, index, crop_px)
            axes[2].imshow(crop)
            axes[2].set(xticks=[], yticks=[], title=f"Crop: {crop_px} px = {crop_px * image.mpp:.0f} µm")
            scale_bar(axes[2], um_per_unit=image.mpp)
        if color_key is not None:
            seen = set(labels_of(adata, color_key)[near].dropna())
            handles = legend_handles({name: color for name, color in colors.items() if name in seen})
            fig.legend(handles=handles, title=color_key, loc="outside right center", frameon=False, alignment="left")
        return finish(fig, save, dpi)


def _whole(
    ax: Axes,
    data: Any,
    adata: AnnData,
    image: CellImage | None,
    xy: NDArray[np.float64],
    split: NDArray[np.str_] | None,
    extent: Extent,
    width: float,
) -> None:
    frame(ax, extent, title=image_title(adata) if image is not None else "Tissue")
    area = dot_area(xy, extent, width)
    if image is not None:
        draw_slide(ax, data, image, extent)
    elif split is None:
        dots(ax, xy, COLORS[Split.TRAIN], area)
    else:
        dots(ax, xy, [COLORS[word] for word in split], area)
    scale_bar(ax)
    if split is None:
        return
    if image is not None:
        dots(ax, xy[split == Split.BUFFER], COLORS[Split.BUFFER], area, alpha=0.45)
    outline_test(ax, frames_of_test(xy, split, sections(adata, np.ones(adata.n_obs, dtype=bool))), label=True)
    if (split == Split.BUFFER).any():
        handles = legend_handles({"buffer": COLORS[Split.BUFFER]})
        ax.legend(handles=handles, loc="lower right", framealpha=0.75, edgecolor="none", fontsize=7, handletextpad=0.1)


def _mark(ax: Axes, centre: NDArray[np.float64], radius: float) -> None:
    """The neighborhood's place."""
    from matplotlib.patches import Circle
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3, foreground="white")]
    ax.add_patch(
        Circle((centre[0], centre[1]), radius, fill=False, edgecolor=CENTRE, linewidth=1.6, zorder=7, path_effects=halo)
    )


def _close(
    ax: Axes,
    data: Any,
    image: CellImage | None,
    xy: NDArray[np.float64],
    extent: Extent,
    near: NDArray[np.intp],
    index: int,
    painted: NDArray[np.float64] | None,
    radius: float,
    width: float,
) -> None:
    from matplotlib.patches import Circle

    frame(ax, extent, title=f"Neighborhood: {len(near)} neighbors within {radius:.0f} µm")
    if image is not None:
        draw_slide(ax, data, image, extent)
    inside = np.flatnonzero(
        (xy > (extent.left, extent.top)).all(axis=1) & (xy < (extent.right, extent.bottom)).all(axis=1)
    )
    others = np.setdiff1d(inside, [*near, index])
    area = float(np.clip(0.4 * dot_area(xy[inside], extent, width), 16, 40))
    ax.scatter(
        xy[others, 0], xy[others, 1], s=area * 0.6, c="#bdbdbd", edgecolors="white", linewidths=0.4, alpha=0.9, zorder=3
    )
    color = painted[near] if painted is not None else "#ff9f1c"
    ax.scatter(xy[near, 0], xy[near, 1], s=area, c=color, edgecolors="white", linewidths=0.6, zorder=4)
    x, y = xy[index]
    ax.scatter(x, y, s=max(3.5 * area, 90), c=CENTRE, marker="*", edgecolors="white", linewidths=0.7, zorder=6)
    ax.add_patch(Circle((x, y), radius, fill=False, edgecolor=INK, linewidth=1.3, zorder=5))
    scale_bar(ax)


def _outline_crop(ax: Axes, image: CellImage, index: int, crop_px: int) -> None:
    """The crop's border in µm, turned as the image lies."""
    corner = image.centre_px[index] - crop_px // 2
    square = corner + crop_px * np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])  # (5, 2), px
    border = np.c_[square, np.ones(5)] @ np.linalg.inv(image.to_pixels).T
    ax.plot(border[:, 0], border[:, 1], color=INK, linewidth=1.1, linestyle="--", zorder=5)

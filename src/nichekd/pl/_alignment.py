from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from nichekd._keys import Keys
from nichekd._loose_image import get_image_loosely
from nichekd._resolve import centres_um, require
from nichekd.pl._figure import BAR_IN, INK, check_save, finish, scale_bar, styled
from nichekd.pl._places import table_to_draw
from nichekd.pl._slide import thumbnail
from nichekd.pl._tissue import Extent, frame

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd._image import CellImage

AS_THEY_ARE: Final = "#e66100"
MOVED: Final = "#1a7f37"
ZOOM_UM: Final = 120.0  # side of the close-up
TITLE_IN: Final = 2.3  # the map's title is that wide, also over a map that is not
MAP_PX, ZOOM_PX = 1200, 600


def alignment(
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    table_key: str = "table",
    save: str | Path | None = None,
    dpi: float = 200,
) -> Figure:
    """Where the cells sit beside the nuclei, as ``nk.pp.alignment_qc`` found.

    Left, the shift of each tile as an arrow over the haematoxylin, paler where it is less certain. Right, a close-up of
    the tile that is most certain: the cells' centres as they are, and moved by the tile's shift.

    Parameters
    ----------
    sdata
        Cells and their image.
    image_key
        Name of the image; that of ``alignment_qc`` if left out.
    table_key
        Name of the table.
    save
        File to write, in a folder that there is. Its ending names the format, such as ``.png`` or ``.pdf``; a path
        without one is refused.
    dpi
        Dots per inch of that file.

    Returns
    -------
    The figure.

    Raises
    ------
    KeyError
        If ``nk.pp.alignment_qc`` has not run.
    FileNotFoundError
        If the folder of ``save`` is missing.
    ValueError
        If the table has no cell; if ``save`` is a folder or ends in no format of figures.
    """
    import matplotlib.pyplot as plt

    check_save(save)
    adata = table_to_draw(sdata, table_key)
    found = require(adata, "uns", Keys.UNS, run="nk.pp.alignment_qc").get("alignment_qc")
    if found is None:
        raise KeyError("uns['nichekd']['alignment_qc'] is missing. Run nk.pp.alignment_qc first.")
    tiles = {name: np.asarray(column) for name, column in found["tiles"].items()}
    image = get_image_loosely(sdata, adata, image_key=image_key or str(found["image_key"]))
    xy = centres_um(adata)
    with styled():
        extent = Extent.of(xy)
        width = _width_in(extent)
        column = max(width, TITLE_IN)
        size = (column + 4.4, max(width * extent.aspect, 4.0) + 0.9)
        fig, axes = plt.subplots(1, 2, figsize=size, width_ratios=(column, 4.0), layout="constrained")
        _draw_map(axes[0], sdata, image, extent, tiles, str(found["transform"]))
        _draw_close_up(axes[1], sdata, image, xy, tiles, str(found["transform"]))
        return finish(fig, save, dpi)


def _width_in(extent: Extent) -> float:
    """Of the map, inches."""
    return min(5.5, 5.0 / extent.aspect)


def _draw_map(
    ax: Axes, sdata: SpatialData, image: CellImage, extent: Extent, tiles: dict[str, NDArray[Any]], transform: str
) -> None:
    whole = {name: column[0] for name, column in tiles.items()}
    turned = "" if transform == "identity" else f" after {transform!r}"
    found = f"{_shift(whole['dx'], whole['dy'])}, confidence {whole['confidence']:.2f}"
    frame(ax, extent, title=f"Cells to nuclei{turned}\n{found}")
    _draw_haematoxylin(ax, sdata, image, extent, MAP_PX)
    x, y, dx, dy, certain = (tiles[name][1:] for name in ("x", "y", "dx", "dy", "confidence"))
    longest = max(float(np.hypot(dx, dy).max(initial=0)), 1.0)
    magnified = 0.12 * min(extent.width, extent.height) / longest
    colors = np.tile((0.9, 0.38, 0.0, 1.0), (len(x), 1))
    colors[:, 3] = np.clip(certain / 0.5, 0.25, 1)
    arrows = ax.quiver(
        x,
        y,
        dx,
        dy,
        color=colors,
        angles="xy",
        scale_units="xy",
        scale=1 / magnified,
        width=0.006,
        zorder=4,
        gid="shifts",
    )
    ax.scatter(x, y, s=5, c=colors, zorder=4, linewidths=0)
    length = float(f"{longest:.1g}")
    # beside the scale bar, for which the layout keeps room below the map; it would keep none for the key
    key_y = -BAR_IN / 2 / (_width_in(extent) * extent.aspect)
    ax.quiverkey(arrows, 0.86, key_y, length, f"{length:g} µm", labelpos="W", color=AS_THEY_ARE, zorder=7)
    scale_bar(ax)


def _draw_close_up(
    ax: Axes,
    sdata: SpatialData,
    image: CellImage,
    xy: NDArray[np.float64],
    tiles: dict[str, NDArray[Any]],
    transform: str,
) -> None:
    n_tiles = len(tiles["x"])
    best = (
        int(np.argmax(np.where(np.arange(n_tiles) > 0, tiles["confidence"] * tiles["peak"], -1))) if n_tiles > 1 else 0
    )
    middle = np.array([tiles["x"][best], tiles["y"][best]])
    shift = np.array([tiles["dx"][best], tiles["dy"][best]])
    low, high = middle - ZOOM_UM / 2, middle + ZOOM_UM / 2
    extent = Extent(low[0], high[0], low[1], high[1])
    frame(ax, extent, title=f"Tile {tiles['tile'][best]}: {_shift(*shift)}")
    _draw_haematoxylin(ax, sdata, image, extent, ZOOM_PX)
    rings: dict[str, Any] = {"s": 55, "facecolors": "none", "edgecolors": AS_THEY_ARE, "linewidths": 1.3}
    points: dict[str, Any] = {"s": 14, "c": MOVED, "edgecolors": "white", "linewidths": 0.5}
    places = {"cells as they are": (xy, rings)}
    if transform == "identity":
        places["moved"] = (xy + shift, points)  # within its ring where it was hardly moved
    for label, (at, style) in places.items():
        near = ((at >= low) & (at <= high)).all(axis=1)
        ax.scatter(at[near, 0], at[near, 1], label=label, zorder=4, **style)
    scale_bar(ax)
    ax.legend(loc="upper right", bbox_to_anchor=(1, 0), ncols=2, frameon=False, labelcolor=INK)


def _shift(dx: float, dy: float) -> str:
    return f"({dx:z.1f}, {dy:z.1f}) µm"  # z: without the sign of a zero


def _draw_haematoxylin(ax: Axes, sdata: SpatialData, image: CellImage, extent: Extent, max_px: int) -> None:
    """Grey, darker where there is more; white where the extent leaves the image."""
    from matplotlib.transforms import Affine2D
    from skimage.color import rgb2hed

    found = thumbnail(sdata, image, extent, max_px)
    if found is None:
        return
    pixels, to_um = found
    amount = rgb2hed(pixels)[..., 0]
    ax.imshow(
        amount,
        extent=(0, amount.shape[1], amount.shape[0], 0),
        transform=Affine2D(to_um) + ax.transData,
        cmap="gray_r",
        vmin=0,
        vmax=float(np.quantile(amount, 0.995)) or 1.0,
        interpolation="antialiased",
        zorder=0,
    )

"""Parts of the slide for panels: thumbnails in their place in µm, and crops around cells."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd._image import CellImage
    from nichekd.pl._tissue import Extent

log = logging.getLogger(__name__)

THUMBNAIL_PX = 1400
MOST_BYTES = 2**30  # of crops, which are held in memory all at once
WHITE = 255  # beyond the slide, as in pp.histology_features


def slide_of(data: AnnData | SpatialData, adata: AnnData, *, image_key: str | None, figure: str) -> CellImage | None:
    """The slide under the cells; none, and a line in the log, where ``data`` has no image."""
    from nichekd._image import get_image, has_image

    if isinstance(data, AnnData) or (image_key is None and not has_image(data)):
        log.info("%s: there is no image, so the H&E is left out", figure)
        return None
    return get_image(data, adata, image_key=image_key)


def draw_slide(ax: Axes, sdata: SpatialData, image: CellImage, extent: Extent, *, max_px: int = THUMBNAIL_PX) -> None:
    """The part of the slide in ``extent``, in its place in µm, turned or mirrored as it lies there."""
    from matplotlib.transforms import Affine2D

    found = thumbnail(sdata, image, extent, max_px)
    if found is None:
        return
    pixels, to_um = found
    height, width = pixels.shape[:2]
    ax.imshow(
        pixels,
        extent=(0, width, height, 0),
        transform=Affine2D(to_um) + ax.transData,
        interpolation="antialiased",
        zorder=0,
    )


def thumbnail(
    sdata: SpatialData, image: CellImage, extent: Extent, max_px: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]] | None:
    """Pixels (y, x, 3) of the slide in ``extent``, at most about ``max_px`` long, and their map to µm, (3, 3).

    Reads the coarsest level of a pyramid that is fine enough, and averages what it reads chunk by chunk, so that the
    full resolution is never held in memory.
    """
    import dask.array as da

    corners = np.array(
        [(x, y, 1.0) for x in (extent.left, extent.right) for y in (extent.top, extent.bottom)]
    )  # (4, 3)
    xy = (corners @ image.to_pixels.T)[:, :2]
    full_width, full_height = image.size_px
    x0, y0 = np.clip(np.floor(xy.min(axis=0)), 0, (full_width, full_height)).astype(int)
    x1, y1 = np.clip(np.ceil(xy.max(axis=0)), 0, (full_width, full_height)).astype(int)
    if x1 <= x0 or y1 <= y0:
        return None
    wanted = max(x1 - x0, y1 - y0) / max_px  # full-resolution pixels per pixel of the thumbnail
    level = _level(sdata, image, wanted)
    fx, fy = full_width / level.shape[2], full_height / level.shape[1]
    columns = slice(int(x0 / fx), int(np.ceil(x1 / fx)))
    rows = slice(int(y0 / fy), int(np.ceil(y1 / fy)))
    part = level[:, rows, columns]
    step = max(1, round(wanted / max(fx, fy)))
    step = min(step, *part.shape[1:])
    if step > 1:
        part = da.coarsen(np.mean, part, {1: step, 2: step}, trim_excess=True)
    pixels = np.asarray(part.transpose(1, 2, 0).round().astype(np.uint8).compute())
    to_pixels = np.array([[fx * step, 0, columns.start * fx], [0, fy * step, rows.start * fy], [0, 0, 1]])
    return pixels, np.linalg.inv(image.to_pixels) @ to_pixels


def _level(sdata: SpatialData, image: CellImage, wanted: float) -> Any:
    """The coarsest level, (3, y, x), that is no coarser than ``wanted`` pixels per pixel."""
    import dask.array as da

    best = image.pixels
    element = sdata.images[image.key]
    for node in getattr(element, "children", {}).values():
        array = next(iter(node.data_vars.values()))
        if array.dims != ("c", "y", "x") or array.shape[0] < 3 or array.dtype != np.uint8:
            continue  # the full resolution was brought into this form for us
        ratio = image.pixels.shape[2] / array.shape[2]
        if best.shape[2] > array.shape[2] and ratio <= wanted:
            best = da.asarray(array.data)[:3]
    return best


def crops_at(image: CellImage, cells: NDArray[np.intp], crop_px: int) -> NDArray[np.uint8]:
    """Full-resolution crops centred on ``cells``, (n, crop_px, crop_px, 3); white beyond the slide's edge.

    Raises
    ------
    ValueError
        If they take more memory than a figure is worth.
    """
    import dask

    n_bytes = 3 * len(cells) * crop_px**2
    if n_bytes > MOST_BYTES:
        raise ValueError(
            f"crop_px={crop_px}: the crops take {n_bytes / 2**30:,.1f} GiB, and those of a figure may take "
            f"{MOST_BYTES / 2**30:g}. Choose a smaller crop_px=, such as 224, or fewer crops."
        )
    width, height = image.size_px
    crops = np.full((len(cells), crop_px, crop_px, 3), WHITE, dtype=np.uint8)
    corners = image.centre_px[cells] - crop_px // 2  # (n, 2), x and y
    boxes = [(max(x, 0), min(x + crop_px, width), max(y, 0), min(y + crop_px, height)) for x, y in corners]
    # in one go, so that a chunk that several crops touch is decoded once
    parts = dask.compute(*(image.pixels[:, y0:y1, x0:x1] for x0, x1, y0, y1 in boxes))
    for crop, part, (x, y), (x0, x1, y0, y1) in zip(crops, parts, corners, boxes, strict=True):
        crop[y0 - y : y1 - y, x0 - x : x1 - x] = np.moveaxis(np.asarray(part), 0, -1)
    return crops

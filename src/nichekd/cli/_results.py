"""What a prediction leaves besides its figures."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from nichekd._keys import Keys
from nichekd._record import notes

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from nichekd._image import CellImage

log = logging.getLogger(__name__)

MOST_PX = 100_000_000  # pixels of an image that is copied unasked; a whole slide has some thousand million
OVERVIEW_UM = 2.0  # µm per pixel of what stands for a larger one


def cell_frame(adata: AnnData, key: str = Keys.NICHE) -> pd.DataFrame:
    """What was predicted of each cell, a row each.

    Returns
    -------
    ``cell_id``; ``x_um``, ``y_um``; ``niche``; ``max_probability``; ``entropy``, in units of log K; ``ood``, over 1 out
    of distribution, and ``area_um2``, where they are known; and ``probability_<niche>``.
    """
    import pandas as pd

    from nichekd._labels import labels_of
    from nichekd._resolve import centres_um

    _, proba_key, entropy_key = Keys.student(key)
    labels, proba, xy = labels_of(adata, key), np.asarray(adata.obsm[proba_key]), centres_um(adata)
    columns = {
        "cell_id": adata.obs_names.astype(str),
        "x_um": xy[:, 0],
        "y_um": xy[:, 1],
        "niche": labels,
        "max_probability": proba.max(axis=1),
        "entropy": adata.obs[entropy_key].to_numpy(),
    }
    for column, name in ((Keys.ood(key), "ood"), (Keys.AREA, "area_um2")):
        if column in adata.obs:
            columns[name] = adata.obs[column].to_numpy()
    columns |= {f"probability_{name}": proba[:, k] for k, name in enumerate(labels.categories)}
    return pd.DataFrame(columns)


def result_object(cells: SpatialData, image: CellImage, *, full_image: bool | None) -> SpatialData:
    """``cells`` to be written, with an overview in place of a large image.

    Parameters
    ----------
    cells
        The slide, and what was predicted.
    image
        Its H&E.
    full_image
        Copy the H&E's pixels whatever their number, or none but an overview; ``None`` goes by their number.
    """
    from spatialdata import SpatialData

    for found in (notes(table).get(Keys.FEATURES, {}) for table in cells.tables.values()):
        for about in found.values():
            about.pop("store", None)  # it ends with the run
    width, height = image.size_px
    if full_image or (full_image is None and width * height <= MOST_PX) or image.mpp >= OVERVIEW_UM:
        return cells
    images = {name: element for name, element in cells.images.items() if name != image.key}
    result = SpatialData(
        images=images, labels=dict(cells.labels), points=dict(cells.points), shapes=dict(cells.shapes),
        tables=dict(cells.tables), attrs=cells.attrs,
    )  # fmt: skip
    _add_overview(result, cells, image)
    return result


def _add_overview(result: SpatialData, cells: SpatialData, image: CellImage) -> None:
    """The image at about ``OVERVIEW_UM``, under a name of its own: features can't be made of it."""
    import dask.array as da

    from nichekd._frames import affine_to, systems_of
    from nichekd._image_notes import note_image
    from nichekd.io._slide import image_element
    from nichekd.pp._tissue_mask import _level

    level = _level(cells, image, OVERVIEW_UM / image.mpp)
    y_step, x_step = (full / size for full, size in zip(image.pixels.shape[1:], level.shape[1:], strict=True))
    factor = max(1, int(OVERVIEW_UM / (image.mpp * max(x_step, y_step))))
    # to whole pixels of the overview: trimmed, it would leave cells at the slide's edge outside
    rest = [(0, 0), *((0, -size % factor) for size in level.shape[1:])]
    chunk = max(1, 1024 // factor) * factor
    padded = da.pad(level, rest, mode="edge").rechunk({1: chunk, 2: chunk})
    pixels = da.coarsen(np.mean, padded, {1: factor, 2: factor}).round().astype(np.uint8)
    system = systems_of(cells.images[image.key])[0]
    to_system = affine_to(cells.images[image.key], system, f"image {image.key!r}")
    name = f"{image.key}_overview"
    result.images[name] = image_element([pixels], to_system @ np.diag([factor * x_step, factor * y_step, 1.0]), system)
    mpp = image.mpp * factor * float(np.sqrt(x_step * y_step))
    note_image(result, name, mpp=mpp, source=f"image {image.key!r} at {image.mpp:.4g} µm per pixel", like=image.key)
    log.info("%s: an overview at %.2g µm/px stands for the slide's %d × %d px", name, mpp, *image.size_px)

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from nichekd._files import written
from nichekd._frames import annotated, apply, element_to_pixels
from nichekd._image import get_image
from nichekd._image_notes import to_slide
from nichekd._keys import Keys
from nichekd._labels import labels_of
from nichekd._palette import colors_of
from nichekd._record import record
from nichekd._resolve import centres_um, get_table
from nichekd._units import check_mpp

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from numpy.typing import NDArray
    from spatialdata import SpatialData

log = logging.getLogger(__name__)

POLYGONS = (3, 6)  # shapely's numbers of Polygon and MultiPolygon
DECIMALS = 2  # of a pixel's coordinates; a hundredth of a pixel is finer than any outline


def write_geojson(
    data: AnnData | SpatialData,
    path: str | Path,
    *,
    key: str = Keys.NICHE,
    shapes_key: str | None = None,
    image_key: str | None = None,
    mpp: float | None = None,
    table_key: str = "table",
) -> Path:
    """Write cells and their niches as GeoJSON that QuPath opens on the slide, in the niches' colours.

    In QuPath, open the slide and drop the file on it. Cells with an outline become cells, others detections at their
    centre; their class is the niche, and its colour the one of ``uns["<key>_colors"]``. Cells without a niche have no
    class.

    Parameters
    ----------
    data
        Cells with niches.
    path
        File to write, ``.geojson``.
    key
        Column of ``obs`` with the niches.
    shapes_key
        Shapes with the cells' outlines; default: those that the table annotates. Circles stand for no outline.
    image_key
        Image whose pixels coordinates are in; may be left out where there is one.
    mpp
        µm per pixel of the slide, for an ``AnnData``, whose centres are then taken to be from the slide's top-left
        corner.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    The path. The file is a FeatureCollection, a feature a cell, in pixels of the slide's full resolution, of the whole
    slide where the image was cut out of one that ``nk.io`` read, with the properties ``objectType``, ``name`` (of the
    cell), ``classification`` and, as far as they were written, ``measurements``: probability of each niche, entropy,
    out-of-distribution score.
    Writes ``uns["nichekd"]["write_geojson"]``, and ``uns["<key>_colors"]`` where it is missing.

    Raises
    ------
    KeyError
        If the table, ``key``, ``shapes_key`` or ``image_key`` is missing.
    ValueError
        If none of the cells is in the shapes; if pixels are not known: an ``AnnData`` without ``mpp``; a
        ``SpatialData`` with it, or whose image can't be used.
    """
    import shapely

    start = time.perf_counter()
    adata = get_table(data, table_key)
    labels = labels_of(adata, key)
    colors = {name: _rgb(color) for name, color in colors_of(adata, key).items()}
    places, has_outline = _places(data, adata, shapes_key, image_key, mpp)
    geometries = shapely.to_geojson(shapely.transform(places, lambda xy: np.round(xy, DECIMALS)))
    properties = _properties(adata, key, labels, colors, has_outline)
    path = Path(path)
    with written(path) as new, new.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for i, (geometry, about) in enumerate(zip(geometries, properties, strict=True)):
            file.write(",\n" if i else "\n")
            file.write(f'{{"type": "Feature", "geometry": {geometry}, "properties": {json.dumps(about)}}}')
        file.write("\n]}\n")
    parameters = {"path": str(path), "key": key, "n_outlines": int(has_outline.sum())}
    record(adata, "write_geojson", seconds=time.perf_counter() - start, **parameters)
    log.info("%d cells, %d of them with outlines → %s", adata.n_obs, has_outline.sum(), path)
    return path


def _places(
    data: AnnData | SpatialData, adata: AnnData, shapes_key: str | None, image_key: str | None, mpp: float | None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Outline or centre of each cell in pixels, (n,), and which of them are outlines."""
    import shapely

    if isinstance(data, AnnData):
        if mpp is None:
            raise ValueError(
                "data is an AnnData, so the slide's pixels are not known. Hand in mpp=, its µm per pixel, or the "
                "SpatialData with the image."
            )
        return shapely.points(centres_um(adata) / check_mpp(mpp, "mpp=")), np.zeros(adata.n_obs, dtype=bool)
    if mpp is not None:
        raise ValueError("mpp= goes with an AnnData; a SpatialData has an image, and its transformation to µm.")
    image = get_image(data, adata, image_key=image_key)
    slide = to_slide(data, image)
    places, has_outline = shapely.points(apply(slide, image.xy_px)), np.zeros(adata.n_obs, dtype=bool)
    region, instances = annotated(data, adata)
    if shapes_key is not None and shapes_key not in data.shapes:
        raise KeyError(f"The SpatialData has no shapes {shapes_key!r}; it has {sorted(data.shapes)}. Name one of them.")
    if shapes_key is None and region not in data.shapes:  # cells of a label image
        return places, has_outline
    shapes = data.shapes[shapes_key or region]
    rows = shapes.index.get_indexer(instances)
    cells = np.flatnonzero(rows >= 0)
    if not len(cells):
        raise ValueError(
            f"None of the table's cells ({instances[0]!r}, ...) is in the index of shapes {shapes_key or region!r} "
            f"({shapes.index[:1].tolist()}, ...). Name the shapes of these cells by shapes_key=."
        )
    outlines = shapes.geometry.to_numpy()[rows[cells]]
    is_polygon = np.isin(shapely.get_type_id(outlines), POLYGONS)
    cells, outlines = cells[is_polygon], outlines[is_polygon]
    matrix = slide @ element_to_pixels(data, shapes_key or region, image.key)
    places[cells] = shapely.transform(outlines, lambda xy: apply(matrix, xy))
    has_outline[cells] = True
    return places, has_outline


def _properties(
    adata: AnnData, key: str, labels: pd.Categorical, colors: dict[str, list[int]], has_outline: NDArray[np.bool_]
) -> Iterator[dict[str, Any]]:
    """What QuPath is told of each cell."""
    classes = [{"name": name, "color": colors[name]} for name in labels.categories]
    measured = _measurements(adata, key, list(labels.categories))
    for i, cell in enumerate(adata.obs_names.astype(str)):
        about: dict[str, Any] = {"objectType": "cell" if has_outline[i] else "detection", "name": cell}
        if labels.codes[i] >= 0:
            about["classification"] = classes[labels.codes[i]]
        # JSON has no NaN
        values = {what: round(float(v[i]), 5) for what, v in measured.items() if np.isfinite(v[i])}
        if values:
            about["measurements"] = values
        yield about


def _measurements(adata: AnnData, key: str, names: list[str]) -> dict[str, NDArray[np.floating]]:
    """Numbers of each cell by their name, (n,) each."""
    measured: dict[str, NDArray[np.floating]] = {}
    _, proba_key, entropy_key = Keys.student(key)
    if proba_key in adata.obsm:
        proba = np.asarray(adata.obsm[proba_key])
        if proba.shape[1] == len(names):
            measured |= {f"probability {name}": proba[:, i] for i, name in enumerate(names)}
    for column, what in ((entropy_key, "entropy"), (Keys.ood(key), "out-of-distribution score")):
        if column in adata.obs:
            measured[what] = adata.obs[column].to_numpy(dtype=np.float64)
    return measured


def _rgb(color: str) -> list[int]:
    from matplotlib.colors import to_rgb

    return [round(255 * part) for part in to_rgb(color)]

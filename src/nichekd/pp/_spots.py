"""Spots of a hexagonal grid over cells: what a coarser assay would have measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, vstack

from nichekd._keys import Keys
from nichekd.pp._counts import raw_counts

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

SPOTS = "spots"  # name of the shapes


def make_spots(
    data: AnnData | SpatialData,
    adata: AnnData,
    xy: NDArray[np.float64],
    library: NDArray[np.int64],
    *,
    radius: float,
    distance: float,
    layer: str | None,
    library_key: str | None,
    count: Callable[[csr_matrix], pd.DataFrame],
    image_key: str | None,
    key_added: str,
    table_key: str,
) -> AnnData | SpatialData:
    """Spots that hold a cell, as the kind of object that ``data`` is.

    Parameters
    ----------
    data, adata, xy, library
        Cells; their centres (n, 2), µm; the number of each one's library (n,).
    radius, distance
        Of a spot, and between the centres of two, µm.
    layer, library_key
        Of the counts, and column of the library.
    count
        From which cells are in which spot, (n_spots, n), to the abundances.
    image_key
        The image on which the spots lie.
    key_added, table_key
        Where they go.

    Raises
    ------
    KeyError
        If there is no image ``image_key``.
    ValueError
        If no spot holds a cell, the genes are not raw counts, or there are several images and none is named.
    """
    from anndata import AnnData

    grids, members, first = [], [], []
    for code in range(int(library.max(initial=0)) + 1):
        here = np.flatnonzero(library == code)
        centres, place = hexagonal_grid(xy[here], distance)
        inside = _inside(centres, xy[here], radius)
        held = np.flatnonzero(np.diff(inside.indptr))
        grids.append(np.column_stack([centres, place])[held])
        columns = csr_matrix((inside.data, here[inside.indices], inside.indptr), shape=(len(centres), len(xy)))
        members.append(columns[held])
        first.append(np.full(len(held), here[0]))
    grid, within, example = np.concatenate(grids), csr_matrix(vstack(members)), np.concatenate(first)
    if not len(grid):
        raise ValueError(
            f"None of the spots of radius {radius:g} µm, {distance:g} µm apart, holds one of the {len(xy):,} cells. "
            "Raise radius= or lower spot_distance=; are the centres in µm?"
        )
    obs = pd.DataFrame(
        {
            "n_cells": np.diff(within.indptr).astype(np.int32),
            "array_row": grid[:, 2].astype(np.int32),
            "array_col": grid[:, 3].astype(np.int32),
        },
        index=[f"spot_{i}" for i in range(len(grid))],
    )
    if library_key is not None:
        obs[library_key] = pd.Categorical(adata.obs[library_key].astype(str).to_numpy()[example])
    has_genes = adata.n_vars > 0 and (layer is not None or adata.X is not None)
    counts = csr_matrix(within @ raw_counts(adata, layer).astype(np.float32)) if has_genes else None
    spots = AnnData(X=counts, obs=obs, var=adata.var.copy() if has_genes else None)
    spots.obsm[Keys.SPATIAL] = grid[:, :2].copy()
    abundance = count(within)
    abundance.index = spots.obs_names
    spots.obsm[key_added] = abundance
    return spots if isinstance(data, AnnData) else _on_slide(data, adata, spots, radius, image_key, table_key)


def hexagonal_grid(xy: NDArray[np.float64], distance: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Centres of a hexagonal grid over the box of some points, (m, 2), and row and column as Visium counts them, (m, 2).

    Columns count half steps: neighbors in a row are two columns apart, those in the next row one.
    """
    low, high = xy.min(axis=0), xy.max(axis=0)
    height = distance * np.sqrt(3) / 2
    n_rows = int((high[1] - low[1]) // height) + 1
    n_columns = int((high[0] - low[0]) // (distance / 2)) + 1
    row, column = (it.ravel() for it in np.meshgrid(np.arange(n_rows), np.arange(n_columns), indexing="ij"))
    there = (row + column) % 2 == 0
    place = np.column_stack([row, column])[there]
    # what is left over beyond the last row and column is shared by both sides
    rest = (high - low - np.array([(n_columns - 1) * distance / 2, (n_rows - 1) * height])) / 2
    centres = low + rest + np.column_stack([place[:, 1] * distance / 2, place[:, 0] * height])
    return centres, place


def _inside(centres: NDArray[np.float64], xy: NDArray[np.float64], radius: float) -> csr_matrix:
    """Which points lie within ``radius`` of which centre, (m, n), ones."""
    from scipy.spatial import cKDTree

    found = cKDTree(xy).query_ball_point(centres, radius, return_sorted=True)
    indptr = np.append(0, np.cumsum([len(points) for points in found]))
    indices = np.concatenate([np.asarray(points, dtype=np.int64) for points in found])
    return csr_matrix((np.ones(len(indices), dtype=np.float32), indices, indptr), shape=(len(centres), len(xy)))


def _on_slide(
    sdata: SpatialData, cells: AnnData, spots: AnnData, radius: float, image_key: str | None, table_key: str
) -> SpatialData:
    """Spots as circles on the images of the cells."""
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Affine, Identity

    transformations: dict[str, Any] = {"global": Identity()}
    images = dict(sdata.images)
    if images or image_key is not None:
        from nichekd._image import get_image

        # the cells' frame may be another than the element's they annotate; the image leads back to it
        image = get_image(sdata, cells, image_key=image_key)
        transformations = _systems_of(sdata.images[image.key], image.to_pixels, Affine)
    circles = ShapesModel.parse(
        spots.obsm[Keys.SPATIAL], geometry=0, radius=radius, index=spots.obs_names, transformations=transformations
    )
    spots.obs["region"] = pd.Categorical([SPOTS] * spots.n_obs)
    spots.obs["instance_id"] = spots.obs_names.to_numpy()
    table = TableModel.parse(spots, region=SPOTS, region_key="region", instance_key="instance_id")
    return SpatialData(images=images, shapes={SPOTS: circles}, tables={table_key: table}, attrs=dict(sdata.attrs))


def _systems_of(image: Any, to_pixels: NDArray[np.floating], affine: Any) -> dict[str, Any]:
    """The spots' transformation to each coordinate system of the image: to its pixels, and on from there."""
    from spatialdata.transformations import get_transformation

    axes = ("x", "y")
    found = {}
    for name, transformation in get_transformation(image, get_all=True).items():
        onwards = transformation.to_affine_matrix(input_axes=axes, output_axes=axes)
        found[name] = affine(onwards @ to_pixels, input_axes=axes, output_axes=axes)
    return found

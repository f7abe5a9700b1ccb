from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from nichekd._image import get_image
from nichekd._image_notes import note_image
from nichekd._record import record
from nichekd._resolve import centres_um
from nichekd._units import check_mpp, nearest_distances, same_mpp
from nichekd.io._names import check_names

if TYPE_CHECKING:
    import dask.array as da
    import pandas as pd
    from geopandas import GeoDataFrame
    from numpy.typing import ArrayLike, NDArray
    from spatialdata import SpatialData
    from xarray import DataArray

log = logging.getLogger(__name__)

CELLS = "cells"  # the element that holds the cells' shapes
SYSTEM = "global"  # its coordinate system, in µm
APART_UM = 25.0  # median distance of a cell's polygon from its centre: more is another order, unit or origin
LONE_RADIUS_UM = 5.0  # of a cell that has no other to take its size from


def paired(
    adata: AnnData,
    image: str | Path | NDArray[np.uint8] | da.Array | DataArray,
    *,
    mpp: float | None = None,
    affine: ArrayLike | None = None,
    shapes: GeoDataFrame | None = None,
    image_key: str = "he",
    table_key: str = "table",
) -> SpatialData:
    """Put a cell table and the H&E image of the same section into one ``SpatialData``.

    Parameters
    ----------
    adata
        Cells, with their centres in µm in ``obsm["spatial"]``, (n, 2): x to the right, y down. It is copied.
    image
        Path of an OME-TIFF, TIFF, .svs or another slide that OpenSlide reads, of an OME-Zarr folder, or of a JPEG or
        PNG; or an array of uint8, (y, x, 3) or (3, y, x), an alpha channel being dropped. A file stays on disk.
    mpp
        µm per pixel of the image, where the origin of the centres is the image's top-left corner. ``None``: as
        ``affine`` or the file's metadata say. Given, it overrules the metadata.
    affine
        Takes pixels (x, y) to µm, (2, 3) or (3, 3): for an image that is turned, mirrored or shifted.
    shapes
        Cell outlines in µm, a row a cell: indexed by ``obs_names``, or else in the table's order. ``None`` draws
        circles.
    image_key
        Name of the image.
    table_key
        Name of the table.

    Returns
    -------
    With image ``image_key``, shapes ``"cells"``, table ``table_key`` (which annotates the shapes; ``uns`` and the
    rest are kept, and ``uns["nichekd"]["paired"]`` added), all in the coordinate system ``"global"``, in µm.

    Raises
    ------
    TypeError
        If ``adata`` is no ``AnnData``, ``image`` neither path nor 8-bit array, ``affine`` no matrix of numbers, ``mpp``
        no number, or a key no text.
    FileNotFoundError
        If there is no such file.
    KeyError
        If ``obsm["spatial"]`` is missing.
    ValueError
        If there are no cells; if the image has no pixels, or is not RGB; if its µm per pixel is unknown, outside 0.05
        to 5, or other by ``mpp`` than by ``affine``; if ``affine`` can't be inverted; if centres are NaN, duplicate, in
        pixels or outside the image; if names of cells repeat; if ``shapes`` don't fit the cells; if ``image_key`` or
        ``table_key`` can't be names of elements, or are the same.

    Warns
    -----
    UserWarning
        If ``mpp`` or ``affine`` contradict the file's metadata by more than 2 %.

    Examples
    --------
    >>> import numpy as np
    >>> import nichekd as nk
    >>> from anndata import AnnData
    >>> cells = AnnData(obs={"cell": ["a", "b"]}, obsm={"spatial": np.array([[10.0, 10.0], [20.0, 30.0]])})
    >>> white = np.full((100, 100, 3), 255, dtype=np.uint8)
    >>> sdata = nk.io.paired(cells, white, mpp=0.5)
    >>> sdata["he"].shape
    (3, 100, 100)
    """
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Affine, Identity

    start = time.perf_counter()
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata is a {type(adata).__name__}; it has to be an AnnData with the cells.")
    if not adata.n_obs:
        raise ValueError("adata has no cells. Hand in those of the image, or open the image alone: nk.io.slide(path).")
    check_names(image_key=image_key, table_key=table_key, shapes=CELLS)
    xy = centres_um(adata, together=True)
    if not adata.obs_names.is_unique:
        raise ValueError("obs_names repeat, so cells can't be told apart. Run adata.obs_names_make_unique() first.")
    pixels, metadata_mpp, source = _open(image)
    to_um = _to_um(mpp, affine, metadata_mpp)
    found = float(np.sqrt(abs(np.linalg.det(to_um[:2, :2]))))

    sdata = SpatialData(
        images={
            image_key: Image2DModel.parse(
                pixels,
                dims=("c", "y", "x"),
                c_coords=["r", "g", "b"],
                transformations={SYSTEM: Affine(to_um, input_axes=("x", "y"), output_axes=("x", "y"))},
            )
        },
        shapes={CELLS: _cells(adata.obs_names, xy, shapes, {SYSTEM: Identity()})},
        tables={table_key: _table(adata)},
    )
    note_image(sdata, image_key, mpp=found, source=source)
    table = sdata.tables[table_key]
    get_image(sdata, table, image_key=image_key)  # all that can be wrong with the pair is said here, not later
    record(table, "paired", seconds=time.perf_counter() - start, image=source, image_key=image_key, mpp=found)
    log.info(
        "%d cells on image %r, %d × %d px at %.4g µm/px", len(xy), image_key, pixels.shape[2], pixels.shape[1], found
    )
    return sdata


def _open(image: Any) -> tuple[da.Array, float | None, str]:
    """Pixels (3, y, x), µm per px by the file's metadata, and where the image comes from."""
    from nichekd.io._read_image import as_rgb, read_image

    if isinstance(image, (str, Path)):
        return *read_image(image), str(image)
    return as_rgb(image, "image"), None, "array"


def _to_um(mpp: float | None, affine: ArrayLike | None, metadata_mpp: float | None) -> NDArray[np.float64]:
    """(3, 3) affine of pixels to µm, from what was said about it."""
    import warnings

    if affine is None:
        mpp, what = (metadata_mpp, "By its metadata, the image") if mpp is None else (mpp, "mpp=")
        if mpp is None:
            raise ValueError(
                "The image's µm per pixel is not known: its file does not say it. Hand it in: "
                "nk.io.paired(adata, image, mpp=...), or affine= from pixels to µm."
            )
        found = check_mpp(mpp, what)
        matrix = np.diag([found, found, 1.0])
    else:
        matrix = _affine(affine)
        found = check_mpp(float(np.sqrt(abs(np.linalg.det(matrix[:2, :2])))), "By affine=, the image")
        if mpp is not None and not same_mpp(found, check_mpp(mpp, "mpp=")):
            raise ValueError(
                f"mpp= says {mpp:.4g} µm per pixel, affine= {found:.4g}. Leave mpp= out if affine= is right; it takes "
                "pixels (x, y) to µm, not back."
            )
    if metadata_mpp is not None and not same_mpp(found, metadata_mpp):
        warnings.warn(
            f"The image has {metadata_mpp:.4g} µm per pixel by its metadata; {found:.4g} is taken, as asked for.",
            UserWarning,
            stacklevel=3,
        )
    return matrix


def _affine(affine: ArrayLike) -> NDArray[np.float64]:
    try:
        matrix = np.asarray(affine, dtype=np.float64)
    except (TypeError, ValueError) as err:
        raise TypeError(
            f"affine={affine!r} is no matrix of numbers ({err}); it has to be (2, 3) or (3, 3), and take pixels (x, y) "
            "to µm."
        ) from err
    if matrix.shape == (2, 3):
        matrix = np.vstack([matrix, [0.0, 0.0, 1.0]])
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not np.allclose(matrix[2], (0, 0, 1)):
        raise ValueError(
            f"affine= is {matrix.tolist()}; it has to be (2, 3), or (3, 3) with a last row of 0, 0, 1, and take pixels "
            "(x, y) to µm."
        )
    if abs(np.linalg.det(matrix[:2, :2])) < 1e-12:
        raise ValueError(f"affine= {matrix.tolist()} can't be inverted: it puts the whole image on a line.")
    return matrix


def _cells(
    names: pd.Index, xy: NDArray[np.float64], shapes: GeoDataFrame | None, transformations: dict[str, Any]
) -> GeoDataFrame:
    """The shapes element, indexed by the cells' names."""
    from spatialdata.models import ShapesModel

    if shapes is None:
        circles = ShapesModel.parse(xy, geometry=0, radius=_radius(xy), index=names, transformations=transformations)
        return circles
    if len(shapes) != len(names):
        raise ValueError(f"shapes= has {len(shapes):,} rows for {len(names):,} cells; hand in one outline a cell.")
    outlines = shapes[["geometry"]].copy()
    outlines.attrs.clear()  # another object's transformations
    if set(outlines.index) == set(names):
        outlines = outlines.loc[names]
    outlines.index = names
    centroid = outlines.geometry.centroid
    apart = float(np.median(np.hypot(centroid.x - xy[:, 0], centroid.y - xy[:, 1])))
    if not apart <= APART_UM:
        raise ValueError(
            f"shapes= lie a median {apart:,.0f} µm from the cells' centres. They have to be in µm from the same origin, "
            "indexed by obs_names or in the table's order."
        )
    return ShapesModel.parse(outlines, transformations=transformations)


def _radius(xy: NDArray[np.float64]) -> float:
    """Half the median distance to the nearest cell, so that circles touch, µm."""
    return float(np.median(nearest_distances(xy))) / 2 if len(xy) > 1 else LONE_RADIUS_UM


def _table(adata: AnnData) -> AnnData:
    """A copy of the table that annotates the shapes."""
    from spatialdata.models import TableModel

    table = adata.to_memory() if adata.isbacked else adata.copy()
    table.uns.pop("spatialdata_attrs", None)  # the object that the table was taken out of
    region_key = _free(table, "region")
    instance_key = _free(table, "instance_id")
    table.obs[region_key] = CELLS
    table.obs[region_key] = table.obs[region_key].astype("category")
    table.obs[instance_key] = table.obs_names.to_numpy()
    return TableModel.parse(table, region=CELLS, region_key=region_key, instance_key=instance_key)


def _free(table: AnnData, name: str) -> str:
    """``name``, or something like it that is no column of the user's."""
    while name in table.obs:
        name += "_"
    return name

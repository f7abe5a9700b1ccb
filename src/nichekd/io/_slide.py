from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._image_notes import note_image
from nichekd._units import check_mpp, same_mpp
from nichekd.io._names import check_names
from nichekd.io._paired import SYSTEM

if TYPE_CHECKING:
    import dask.array as da
    from spatialdata import SpatialData
    from xarray import DataArray, DataTree

log = logging.getLogger(__name__)


def slide(path: str | Path, *, mpp: float | None = None, image_key: str = "he") -> SpatialData:
    """Open a slide that has nothing but its H&E, lazily.

    Parameters
    ----------
    path
        Aperio .svs, .ndpi, .mrxs or another slide that OpenSlide reads, OME-TIFF, tiled TIFF, the folder of an
        OME-Zarr, JPEG or PNG. It stays on disk.
    mpp
        µm per pixel of the full resolution. ``None``: as the file's metadata say. Given, it overrules them.
    image_key
        Name of the image.

    Returns
    -------
    With image ``image_key``, uint8, (3, y, x), of several scales where the file has several, in the coordinate system
    ``"global"``: µm from its top-left corner, x to the right, y down. It has no cells yet:
    :func:`nichekd.pp.segment_nuclei` finds them, :func:`nichekd.io.paired` takes a table that there is.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    TypeError
        If its pixels are not 8-bit, or ``image_key`` is no text.
    ValueError
        If the file is no image, is cut off, or not RGB; if its µm per pixel is said neither by the file nor by ``mpp``,
        or is outside 0.05 to 5; if ``image_key`` can't name an image.

    Warns
    -----
    UserWarning
        If ``mpp`` contradicts the file's metadata by more than 2 %.

    Examples
    --------
    >>> import nichekd as nk
    >>> sdata = nk.io.slide("slide.svs")  # doctest: +SKIP
    >>> sdata = nk.io.slide("photograph.tif", mpp=0.5)  # doctest: +SKIP
    """
    from spatialdata import SpatialData

    from nichekd.io._read_image import read_pyramid

    check_names(image_key=image_key)
    if mpp is not None:
        check_mpp(mpp, "mpp=")
    levels, by_metadata = read_pyramid(path)
    found = _mpp(Path(path), mpp, by_metadata)
    sdata = SpatialData(images={image_key: image_element(levels, np.diag([found, found, 1.0]))})
    note_image(sdata, image_key, mpp=found, source=str(path))
    _, height, width = levels[0].shape
    log.info("%s: %d × %d px at %.4g µm/px, %d scales", path, width, height, found, len(levels))
    return sdata


def image_element(levels: list[da.Array], to_system: Any, system: str = SYSTEM) -> DataArray | DataTree:
    """An image of a ``SpatialData``.

    Parameters
    ----------
    levels
        (3, y, x) each, the full resolution first.
    to_system
        (3, 3) affine of its pixels to the coordinate system.
    system
        Name of the coordinate system.
    """
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Affine, set_transformation
    from xarray import DataArray, Dataset, DataTree

    colors = ["r", "g", "b"]
    transformation = Affine(to_system, input_axes=("x", "y"), output_axes=("x", "y"))
    if len(levels) == 1:
        return Image2DModel.parse(
            levels[0], dims=("c", "y", "x"), c_coords=colors, transformations={system: transformation}
        )
    scales = {}
    for i, level in enumerate(levels):
        centres = {  # of its pixels, in pixels of the full resolution
            axis: (np.arange(n) + 0.5) * (full / n)
            for axis, n, full in zip("yx", level.shape[1:], levels[0].shape[1:], strict=True)
        }
        pixels = DataArray(level, dims=("c", "y", "x"), coords={"c": colors, **centres}, name="image")
        scales[f"scale{i}"] = Dataset({"image": pixels})
    tree = DataTree.from_dict(scales)
    set_transformation(tree, {system: transformation}, set_all=True)
    Image2DModel().validate(tree)
    return tree


def _mpp(path: Path, asked: float | None, by_metadata: float | None) -> float:
    """µm per pixel of the full resolution."""
    if asked is None:
        if by_metadata is not None:
            return check_mpp(by_metadata, f"By its metadata, {path}")
        raise ValueError(
            f"{path} does not say its µm per pixel. Hand it in: nk.io.slide(path, mpp=...). It is often near 0.25 for a "
            "40× objective and near 0.5 for 20×, but the scanner's record knows."
        )
    if by_metadata is not None and not same_mpp(asked, by_metadata):
        warnings.warn(
            f"{path} has {by_metadata:.4g} µm per pixel by its metadata; {asked:.4g} is taken, as asked for.",
            UserWarning,
            stacklevel=3,
        )
    return float(asked)

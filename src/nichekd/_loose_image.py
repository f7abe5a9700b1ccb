"""An image and cells that may not fit it, for what tells how badly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nichekd._frames import apply, find_frame, full_resolution
from nichekd._image import CellImage, _image_key, _mpp, _rgb
from nichekd._resolve import centres_um

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def get_image_loosely(sdata: SpatialData, adata: AnnData, *, image_key: str | None = None) -> CellImage:
    """As :func:`nichekd._image.get_image`, for cells that may lie outside the image or far from their shapes.

    Raises
    ------
    TypeError
        If ``sdata`` is no ``SpatialData``, or the image not 8-bit.
    KeyError
        If there is no image ``image_key``, or the annotated element is missing.
    ValueError
        If there is no image, or several and none named; if it is no RGB; if no usable transformation leads to it.
    """
    key = _image_key(sdata, image_key)
    pixels = _rgb(full_resolution(sdata.images[key]), key)
    xy = centres_um(adata)
    to_pixels = find_frame(sdata, adata, key, xy).to_pixels
    return CellImage(key=key, pixels=pixels, to_pixels=to_pixels, mpp=_mpp(to_pixels, key), xy_px=apply(to_pixels, xy))

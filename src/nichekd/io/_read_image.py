"""An H&E file or array as a lazy uint8 (3, y, x) image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import dask.array as da
    from numpy.typing import NDArray

    from nichekd.io._tile_readers import TileReader

SLIDE_SUFFIXES = frozenset({".ndpi", ".mrxs", ".vms", ".vmu", ".scn", ".bif", ".svslide", ".dcm"})
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
CHUNK = 1024  # px, of images that have no tiles of their own
SAME_SHAPE = 1.1  # how much two levels may differ in their proportions; the smallest are a few pixels wide


def read_image(path: str | Path) -> tuple[da.Array, float | None]:
    """Open an H&E image lazily.

    Nothing but the header is read (a JPEG or PNG, which can't be read in parts, is decoded whole). Chunks are whole
    tiles of the file; reading is thread-safe, and the array can be sent to worker processes.

    Parameters
    ----------
    path
        OME-TIFF, TIFF, Aperio .svs and whatever else tifffile or OpenSlide read; the folder of an OME-Zarr; JPEG; PNG.

    Returns
    -------
    The full resolution, uint8, (3, y, x), an alpha channel dropped; and µm per px by the file's metadata, or ``None``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not an image, or none with three colours.
    TypeError
        If it is not of 8 bits.
    """
    levels, mpp = _read(path, n_levels=1)
    return levels[0], mpp


def read_pyramid(path: str | Path) -> tuple[list[da.Array], float | None]:
    """Open an H&E image lazily, at all the resolutions that its file has.

    Parameters
    ----------
    path
        As of :func:`read_image`.

    Returns
    -------
    Levels, each like the image of :func:`read_image`, the full resolution first, each smaller than the one before and
    of its proportions; and µm per px of the first.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not an image, is cut off, or has not three 8-bit colours.
    """
    levels, mpp = _read(path, n_levels=None)
    kept = levels[:1]
    for level in levels[1:]:
        ratios = [big / small for big, small in zip(kept[-1].shape[1:], level.shape[1:], strict=True)]
        if min(ratios) > 1 and max(ratios) <= SAME_SHAPE * min(ratios):
            kept.append(level)
    return kept, mpp


def _read(path: str | Path, *, n_levels: int | None) -> tuple[list[da.Array], float | None]:
    """The first ``n_levels``, or all, and µm per px."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no image {path} (looked in {path.absolute().parent}).")
    if path.is_dir():
        return _open_ome_zarr(path, n_levels)
    if path.suffix.lower() in PHOTO_SUFFIXES:
        return [_decode_photo(path)], None
    reader = _open_slide(path)
    others = [type(reader)(path, level) for level in range(1, n_levels or reader.n_levels)]
    return [as_rgb(_lazy(level), str(path)) for level in (reader, *others)], reader.mpp


def as_rgb(image: Any, what: str = "The image") -> da.Array:
    """An image of any layout as a dask array of uint8, (3, y, x).

    Parameters
    ----------
    image
        numpy, dask or xarray array: (y, x, c) or (c, y, x), or named dimensions in any order; c is 3, or 4 with alpha.
    what
        Its name in error messages.

    Returns
    -------
    (3, y, x), alpha dropped and transparent black made white, all colours in one chunk.

    Raises
    ------
    TypeError
        If it is no array, or not of uint8.
    ValueError
        If it has no colour axis of 3 or 4, or two axes that could be it, or no pixels.
    """
    import dask.array as da
    from xarray import DataArray

    dims = None
    if isinstance(image, DataArray):
        dims, image = tuple(map(str, image.dims)), image.data
    if not isinstance(image, (np.ndarray, da.Array)):
        raise TypeError(
            f"{what} is a {type(image).__name__}; hand in a path, or a numpy, dask or xarray array of uint8 RGB."
        )
    if image.dtype != np.uint8:
        raise TypeError(
            f"{what} is of {image.dtype}; an H&E image is 8-bit RGB, uint8. Convert it first: "
            "(image * 255).astype('uint8') for values in 0...1, (image // 256).astype('uint8') for uint16."
        )
    axis = _colour_axis(image.shape, dims, what)
    if 0 in image.shape:
        raise ValueError(f"{what} has shape {image.shape}, and no pixels. Hand in the whole image.")
    spatial = [dims.index("y"), dims.index("x")] if dims else [i for i in range(3) if i != axis]
    lazy = image if isinstance(image, da.Array) else da.from_array(image, chunks=_chunks(image.shape, axis))
    lazy = lazy.transpose((axis, *spatial))
    if lazy.shape[0] == 4:
        lazy = lazy.rechunk({0: 4}).map_blocks(on_white, chunks=((3,), *lazy.chunks[1:]), dtype=np.uint8)
    return lazy if lazy.numblocks[0] == 1 else lazy.rechunk({0: 3})


def on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(4, y, x) → (3, y, x): black that is transparent is glass; elsewhere alpha says nothing of an H&E."""
    glass = ~rgba.any(axis=0)
    return np.where(glass, np.uint8(255), rgba[:3])


def _colour_axis(shape: tuple[int, ...], dims: tuple[str, ...] | None, what: str) -> int:
    if dims is not None and set(dims) != {"c", "y", "x"}:
        raise ValueError(f"{what} has dimensions {dims}; name them 'c', 'y' and 'x': image.rename({{...}}).")
    candidates = [dims.index("c")] if dims else [i for i in (2, 0) if len(shape) == 3 and shape[i] in {3, 4}]
    if not candidates or shape[candidates[0]] not in {3, 4}:
        raise ValueError(
            f"{what} has shape {shape}; an H&E image has three colours, (y, x, 3) or (3, y, x), perhaps with an alpha "
            "channel. A grey one tells no haematoxylin from eosin: hand in the colour image."
        )
    if len(candidates) == 2:
        raise ValueError(
            f"{what} has shape {shape}, in which the first or the last axis may be colour. Name them: "
            "xarray.DataArray(image, dims=('y', 'x', 'c'))."
        )
    return candidates[0]


def _chunks(shape: tuple[int, ...], colour_axis: int) -> tuple[int, ...]:
    return tuple(size if i == colour_axis else CHUNK for i, size in enumerate(shape))


def _open_slide(path: Path) -> TileReader:
    """Tifffile first, for it reads and decodes in parallel; OpenSlide for what tifffile doesn't know."""
    from openslide import OpenSlide, OpenSlideError
    from tifffile import TiffFileError

    from nichekd.io._tile_readers import OpenSlideReader, TiffReader

    if path.suffix.lower() not in SLIDE_SUFFIXES:
        try:
            return TiffReader(path)
        except TiffFileError as error:
            if OpenSlide.detect_format(path) is None:
                raise ValueError(
                    f"{path} is no image that tifffile or OpenSlide can read ({error}). Convert it to a tiled "
                    "OME-TIFF, with QuPath or bfconvert."
                ) from error
    try:
        return OpenSlideReader(path)
    except OpenSlideError as error:
        raise ValueError(f"OpenSlide can't read {path}: {error}. Convert it to a tiled OME-TIFF.") from error


def _lazy(reader: TileReader) -> da.Array:
    import dask.array as da
    from dask.base import tokenize

    status = reader.path.stat()
    token = tokenize(str(reader.path.absolute()), status.st_mtime_ns, status.st_size, reader.level)
    name = f"{type(reader).__name__}-{token}"
    meta = np.empty((0, 0, 0), dtype=reader.dtype)
    array = da.from_array(reader, chunks=reader.chunks, name=name, meta=meta)
    # named axes would be the tidier way to tell a grey plane, (1, y, x), from a colour image; a lone plane is enough
    return array[0] if array.shape[0] == 1 else array


def _decode_photo(path: Path) -> da.Array:
    from imagecodecs import imread

    return as_rgb(np.asarray(imread(path)), str(path))


def _open_ome_zarr(path: Path, n_levels: int | None) -> tuple[list[da.Array], float | None]:
    import zarr

    from nichekd.io._image_metadata import ome_zarr_mpp

    try:
        attributes: dict[str, Any] = dict(zarr.open_group(path, mode="r").attrs)
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is a folder, but no OME-Zarr image. Name the image file itself.") from error
    if "spatialdata_attrs" in attributes:
        raise ValueError(f"{path} is a SpatialData. Read it: spatialdata.read_zarr({str(path)!r}).")
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        raise ValueError(
            f"{path} is a zarr group with attributes {sorted(attributes)}, but no 'multiscales', so it is no OME-Zarr "
            "image. Name the folder that holds them."
        )
    dims = [axis["name"] for axis in multiscales[0]["axes"]]
    names = [dataset["path"] for dataset in multiscales[0]["datasets"][:n_levels]]
    return [_zarr_level(path / name, dims) for name in names], ome_zarr_mpp(multiscales[0])


def _zarr_level(path: Path, dims: list[str]) -> da.Array:
    import dask.array as da
    from xarray import DataArray

    array = da.from_zarr(str(path))
    single = tuple(
        0 if name not in {"c", "y", "x"} and size == 1 else slice(None)
        for name, size in zip(dims, array.shape, strict=True)
    )
    dims = [name for name, key in zip(dims, single, strict=True) if isinstance(key, slice)]
    return as_rgb(DataArray(array[single], dims=dims), str(path))

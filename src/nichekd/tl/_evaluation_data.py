"""The data sets of an evaluation, read when their turn comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nichekd._keys import Keys

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

Datasets = Mapping[str, Any] | Sequence[Any] | str | Path
KINDS = "an AnnData, a SpatialData or a path"
MEAN = "mean"  # the rows of all data sets together
GROUP = ("zarr.json", ".zgroup", ".zmetadata")  # what a zarr of format 3, or 2, has at its top
NO_FEATURES = frozenset({Keys.SPATIAL, Keys.SCVI})  # of obsm
IMAGES = (".ome.tif", ".ome.tiff", ".tif", ".tiff", ".svs", ".ndpi", ".mrxs")


def as_datasets(data: Any, *, image_features: bool = True) -> dict[str, Callable[[], AnnData | SpatialData]] | None:
    """Names and what reads each; ``None`` if ``data`` is a data set itself.

    Paths are looked at before any is read: a damaged one is found now, and not when its turn comes; and, where
    ``image_features`` are wanted, a table that has neither these nor an image.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    TypeError
        If ``data``, or an entry, is no data set and no path.
    ValueError
        If there is none, two have the same name, or a file is not what its name says.
    """
    if isinstance(data, (str, Path)):
        path = Path(data)
        if path.suffix in (".zarr", ".h5ad"):
            return {_name(path): _loader(path, image_features)}
        return _in_folder(path, image_features)
    if isinstance(data, Mapping):
        found = {str(name): _loader(one, image_features) for name, one in data.items()}
    elif isinstance(data, Sequence):
        names = [_name(Path(one)) if isinstance(one, (str, Path)) else str(i) for i, one in enumerate(data)]
        if len(set(names)) < len(names):
            raise ValueError(f"Two data sets have the same name: {names}. Hand in a mapping from names to them.")
        found = {name: _loader(one, image_features) for name, one in zip(names, data, strict=True)}
    elif _is_one(data):
        return None
    else:
        raise TypeError(
            f"data is a {type(data).__name__}; it has to be {KINDS}, or many of these: a mapping from names to them, a "
            "sequence, or a folder."
        )
    if not found:
        raise ValueError("There is no data set to evaluate.")
    if len(found) < len(data):
        raise ValueError(f"Two data sets have the same name as text: {list(data)}. Name each otherwise.")
    if unfit := [name for name in found if name in ("", ".", "..", MEAN) or "/" in name or "\\" in name]:
        raise ValueError(
            f"Data sets are named {unfit}. A name is that of a folder of results, and {MEAN!r} that of their mean; name "
            "each otherwise."
        )
    return found


def _in_folder(folder: Path, image_features: bool) -> dict[str, Callable[[], AnnData | SpatialData]]:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder} (looked in {Path.cwd()}).")
    # hidden ones are of the system's, or of a writer that was killed
    there = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    paths = [path for path in there if path.suffix in (".zarr", ".h5ad")]
    if not paths:
        raise ValueError(
            f"{folder} holds no .zarr and no .h5ad, but {[path.name for path in there[:5]]}. Name a folder of data sets."
        )
    return as_datasets(paths, image_features=image_features) or {}


def _loader(one: Any, image_features: bool) -> Callable[[], AnnData | SpatialData]:
    if isinstance(one, (str, Path)):
        path = Path(one)
        _check_path(path)
        if image_features and path.suffix == ".h5ad" and _image_beside(path) is None:
            _check_features(path)
        return partial(_read, path)
    if callable(one):
        return one
    if not _is_one(one):
        raise TypeError(f"A data set is a {type(one).__name__}; it has to be {KINDS}.")
    return lambda: one


def _is_one(data: Any) -> bool:
    return hasattr(data, "obs") or hasattr(data, "tables")


def _check_path(path: Path) -> None:
    """Refuse what can't be a data set, by the first bytes of the file, or the top of the folder."""
    if not path.exists():
        raise FileNotFoundError(f"There is no {path} (looked in {Path.cwd()}).")
    if path.suffix == ".zarr":
        if not any((path / name).is_file() for name in GROUP):
            raise ValueError(f"{path} is no SpatialData folder: it has none of {', '.join(GROUP)}.")
        return
    if path.suffix != ".h5ad":
        raise ValueError(f"{path} is neither a SpatialData folder (.zarr) nor an AnnData file (.h5ad).")
    import h5py

    if not path.is_file() or not h5py.is_hdf5(path):
        raise ValueError(f"{path} is no AnnData file: it is {'no HDF5' if path.is_file() else 'a folder'}.")
    try:
        with h5py.File(path) as file:
            parts = sorted(file)
    except OSError as err:
        raise _damaged(path, err) from err
    if "obs" not in parts:
        raise ValueError(f"{path} is no AnnData file: it holds {parts}, no 'obs'.")


def _check_features(path: Path) -> None:
    """Refuse a table without an image that has nothing in ``obsm`` that may be features of one."""
    import h5py

    with h5py.File(path) as file:
        keys = sorted(file.get("obsm", ()))
    if not set(keys) - NO_FEATURES:
        raise ValueError(
            f"{path} has no image beside it, {_name(path)} with one of {', '.join(IMAGES)}, and no image features: its "
            f"obsm has {keys}. Put its image there, or features in obsm, or leave it out."
        )


def _read(path: Path) -> AnnData | SpatialData:
    if path.suffix == ".zarr":
        from spatialdata import read_zarr

        return read_zarr(path)
    import anndata

    from nichekd import io

    try:
        adata = anndata.read_h5ad(path)
    except OSError as err:
        raise _damaged(path, err) from err
    image = _image_beside(path)
    return adata if image is None else io.paired(adata, image)


def _image_beside(path: Path) -> Path | None:
    images = (path.with_name(_name(path) + suffix) for suffix in IMAGES)
    return next((file for file in images if file.exists()), None)


def _damaged(path: Path, err: OSError) -> ValueError:
    return ValueError(f"{path} is no AnnData file, or a damaged one ({err}).")


def _name(path: Path) -> str:
    return path.name.removesuffix(path.suffix)

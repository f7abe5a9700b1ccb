"""The data sets of an evaluation, read when their turn comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

Datasets = Mapping[str, Any] | Sequence[Any] | str | Path
MEAN = "mean"  # the rows of all data sets together
IMAGES = (".ome.tif", ".ome.tiff", ".tif", ".tiff", ".svs", ".ndpi", ".mrxs")


def as_datasets(data: Any) -> dict[str, Callable[[], AnnData | SpatialData]] | None:
    """Names and what reads each; ``None`` if ``data`` is a data set itself.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    TypeError
        If an entry is no data set and no path.
    ValueError
        If there is none, or two have the same name.
    """
    if isinstance(data, (str, Path)):
        path = Path(data)
        if path.suffix in (".zarr", ".h5ad"):
            return {_name(path): _loader(path)}
        return _in_folder(path)
    if isinstance(data, Mapping):
        found = {str(name): _loader(one) for name, one in data.items()}
    elif isinstance(data, Sequence):
        names = [_name(Path(one)) if isinstance(one, (str, Path)) else str(i) for i, one in enumerate(data)]
        if len(set(names)) < len(names):
            raise ValueError(f"Two data sets have the same name: {names}. Hand in a mapping from names to them.")
        found = {name: _loader(one) for name, one in zip(names, data, strict=True)}
    else:
        return None
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


def _in_folder(folder: Path) -> dict[str, Callable[[], AnnData | SpatialData]]:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder} (looked in {Path.cwd()}).")
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".zarr", ".h5ad"))
    if not paths:
        there = sorted(path.name for path in folder.iterdir())[:5]
        raise ValueError(f"{folder} holds no .zarr and no .h5ad, but {there}. Name a folder of data sets.")
    return as_datasets(paths) or {}


def _loader(one: Any) -> Callable[[], AnnData | SpatialData]:
    if isinstance(one, (str, Path)):
        path = Path(one)
        if not path.exists():
            raise FileNotFoundError(f"There is no {path} (looked in {Path.cwd()}).")
        return partial(_read, path)
    if callable(one):
        return one
    if not hasattr(one, "obs") and not hasattr(one, "tables"):
        raise TypeError(f"A data set is a {type(one).__name__}; it has to be an AnnData, a SpatialData or a path.")
    return lambda: one


def _read(path: Path) -> AnnData | SpatialData:
    if path.suffix == ".zarr":
        from spatialdata import read_zarr

        return read_zarr(path)
    if path.suffix != ".h5ad":
        raise ValueError(f"{path} is neither a SpatialData folder (.zarr) nor an AnnData file (.h5ad).")
    import anndata

    from nichekd import io

    adata = anndata.read_h5ad(path)
    images = [path.with_name(_name(path) + suffix) for suffix in IMAGES]
    image = next((file for file in images if file.exists()), None)
    return adata if image is None else io.paired(adata, image)


def _name(path: Path) -> str:
    return path.name.removesuffix(path.suffix)

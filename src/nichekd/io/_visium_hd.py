from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._record import record
from nichekd._units import check_mpp
from nichekd.io._cells_inside import inside
from nichekd.io._paired import paired

if TYPE_CHECKING:
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from numpy.typing import NDArray
    from spatialdata import SpatialData

log = logging.getLogger(__name__)

BINNED = "binned_outputs"
IMAGES = (".tif", ".tiff", ".btf", ".jpg", ".jpeg", ".png", ".svs", ".ndpi", ".zarr")
COUNTS, POSITIONS, SCALES = "filtered_feature_bc_matrix.h5", "tissue_positions.parquet", "scalefactors_json.json"
PLACE = ["pxl_col_in_fullres", "pxl_row_in_fullres"]


def visium_hd(
    path: str | Path,
    *,
    bin_um: int = 8,
    he_image: str | Path | None = None,
    image_key: str = "he",
) -> SpatialData:
    """Read a Visium HD output folder, its bins taken for cells, and the H&E that it was aligned to.

    Parameters
    ----------
    path
        Output folder of Space Ranger, with ``binned_outputs``.
    bin_um
        Side of the bins, µm: of one of the folders ``square_<bin_um>um``. At 8 µm, a bin is about a cell.
    he_image
        The microscope's image, at full resolution, that Space Ranger was given; it stays on disk. ``None``: the file in
        ``microscope_image``, or ``*tissue_image.*``, if it is there.
    image_key
        Name of the image.

    Returns
    -------
    As of :func:`nichekd.io.paired`: image ``image_key``, shapes ``"cells"`` (the bins, squares), table ``"table"`` of
    the bins under tissue, with ``obs["array_row"]``, ``obs["array_col"]``, centres in µm from the image's top-left
    corner in ``obsm["spatial"]``, and ``uns["nichekd"]["visium_hd"]``. Bins outside the image are left out.

    Raises
    ------
    FileNotFoundError
        If the folder, a file of it, or the image is missing.
    ValueError
        If there are no bins of this size; if most of them lie outside the image; or whatever is wrong with it.

    Warns
    -----
    UserWarning
        If bins lie outside the image, or its µm per pixel by Space Ranger and by its metadata differ by more than 2 %.
    """
    start = time.perf_counter()
    root = Path(path)
    folder = _bins(root, bin_um)
    he = _image(root) if he_image is None else Path(he_image)
    adata = _counts(folder / COUNTS)
    xy_px = _positions(folder / "spatial" / POSITIONS, adata)
    scales = json.loads(_existing(folder / "spatial" / SCALES).read_text(encoding="utf-8"))
    mpp = check_mpp(float(scales["microns_per_pixel"]), f"By {SCALES}, the image")
    width, height = _size(he)
    kept = inside(xy_px, width, height, "Hand in the image that Space Ranger was given, by he_image=.")
    adata, xy_px = adata[kept].copy(), xy_px[kept]
    adata.obsm["spatial"] = xy_px * mpp
    squares = _squares(adata.obsm["spatial"], bin_um, adata.obs_names)
    sdata = paired(adata, he, mpp=mpp, shapes=squares, image_key=image_key)
    about = {"bin_um": bin_um, "he_image": str(he), "mpp": mpp}
    record(sdata.tables["table"], "visium_hd", seconds=time.perf_counter() - start, path=str(root), **about)
    return sdata


def _bins(root: Path, bin_um: int) -> Path:
    """Folder of the bins of this size."""
    holder = root / BINNED if (root / BINNED).is_dir() else root
    there = sorted(p.name for p in holder.glob("square_*um") if p.is_dir())
    if not there:
        found = sorted(p.name for p in root.iterdir())[:8] if root.is_dir() else "no folder"
        raise FileNotFoundError(f"{root} is no Visium HD output: it has no {BINNED}/square_*um (found {found}).")
    name = f"square_{bin_um:03d}um"
    if name not in there:
        sizes = [int(folder.removeprefix("square_").removesuffix("um")) for folder in there]
        raise ValueError(f"bin_um={bin_um}: {holder} has bins of {sizes} µm. Choose one of them.")
    return holder / name


def _image(root: Path) -> Path:
    """The image at full resolution, if it is where Space Ranger's examples have it."""
    there = [*root.glob("microscope_image/*.*"), *root.glob("*tissue_image.*")]
    found = sorted(path for path in there if path.suffix.lower() in IMAGES and not path.name.startswith("."))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{root} has {len(found)} images at full resolution (microscope_image/*, *tissue_image.*). Hand in the one "
            "that Space Ranger was given, by he_image=."
        )
    return found[0]


def _existing(path: Path) -> Path:
    if not path.is_file():
        there = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else "no folder"
        raise FileNotFoundError(f"There is no {path} (found {there}). Is it a complete Visium HD output?")
    return path


def _counts(path: Path) -> AnnData:
    import scanpy as sc

    adata = sc.read_10x_h5(_existing(path), gex_only=True)
    adata.var_names_make_unique()
    return adata


def _positions(path: Path, adata: AnnData) -> NDArray[np.float64]:
    """Centres of the table's bins in pixels, (n, 2); their places in the array go to ``obs``."""
    import pandas as pd

    places = pd.read_parquet(_existing(path)).set_index("barcode")
    unknown = ~adata.obs_names.isin(places.index)
    if unknown.any():
        raise ValueError(
            f"{path} lacks {unknown.sum():,} of {adata.n_obs:,} bins of {COUNTS}, as {adata.obs_names[unknown][0]!r}: "
            "they are not of the same run."
        )
    places = places.loc[adata.obs_names]
    for column in ("array_row", "array_col"):
        adata.obs[column] = places[column].to_numpy()
    return places[PLACE].to_numpy(dtype=np.float64)


def _size(image: Path) -> tuple[int, int]:
    """Width and height in pixels, by the file's header."""
    from nichekd.io._read_image import read_image

    _, height, width = read_image(image)[0].shape
    return width, height


def _squares(xy: NDArray[np.float64], side: float, names: Any) -> GeoDataFrame:
    import geopandas
    import shapely

    half = side / 2
    boxes = shapely.box(xy[:, 0] - half, xy[:, 1] - half, xy[:, 0] + half, xy[:, 1] + half)
    return geopandas.GeoDataFrame(geometry=boxes, index=names)

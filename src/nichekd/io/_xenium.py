from __future__ import annotations

import json
import logging
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._image import get_image
from nichekd._image_notes import note_image
from nichekd._record import record
from nichekd._units import check_mpp, same_mpp
from nichekd.io._cells_inside import keep_cells_inside
from nichekd.io._slide import image_element

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

log = logging.getLogger(__name__)

SPECS = "experiment.xenium"
HE_SUFFIX, ALIGNMENT_SUFFIX = "he_image.ome.tif", "he_imagealignment.csv"
CELLS = "cell_boundaries"  # spatialdata_io's name of the cells' outlines
TABLE, SYSTEM = "table", "global"


def xenium(
    path: str | Path,
    *,
    he_image: str | Path | None = None,
    he_alignment: str | Path | None = None,
    image_key: str = "he",
    **options: Any,
) -> SpatialData:
    """Read a Xenium output folder and the H&E of the same section.

    The folder is read by ``spatialdata_io.xenium``, of its elements the table and the cells' outlines.

    Parameters
    ----------
    path
        Output folder of the instrument, with ``experiment.xenium``.
    he_image
        H&E of the section, of any format that :func:`nichekd.io.slide` opens; it stays on disk. ``None``: the file
        ``*he_image.ome.tif`` of the folder, if there is one.
    he_alignment
        CSV with the 3 × 3 matrix that Xenium Explorer exports, which takes pixels of the H&E to pixels of the
        morphology image. ``None``: the file ``*he_imagealignment.csv`` beside the H&E; if there is none either, the H&E
        is aligned already, which is to say that its top-left corner is the morphology image's, and its µm per pixel
        those of its metadata, or else the morphology image's.
    image_key
        Name of the H&E.
    **options
        Of ``spatialdata_io.xenium``, as ``transcripts=True``, for more of the folder.

    Returns
    -------
    With image ``image_key``, of several scales where the file has several; shapes ``"cell_boundaries"``; table
    ``"table"``, which annotates them, with centres in µm in ``obsm["spatial"]`` and ``uns["nichekd"]["xenium"]``. The
    coordinate system ``"global"`` is spatialdata_io's: pixels of the morphology image. Cells outside the H&E are left
    out.

    Raises
    ------
    FileNotFoundError
        If the folder, a file of it, the H&E or the matrix is missing.
    ValueError
        If the matrix is none, or the wrong way round; if most cells lie outside the H&E; or whatever is wrong with it.

    Warns
    -----
    UserWarning
        If cells lie outside the H&E, or its µm per pixel by the matrix and by its metadata differ by more than 2 %.
    """
    start = time.perf_counter()
    folder = Path(path)
    pixel_size = _pixel_size(folder)
    he, alignment = _find(folder, he_image, he_alignment)
    sdata = _read(folder, options)
    table = sdata.tables[TABLE]
    mpp = None
    if he is None:
        log.warning("%s has no H&E (*%s): hand it in by he_image=", folder, HE_SUFFIX)
    else:
        mpp = _add_image(sdata, he, alignment, pixel_size, image_key)
        table = keep_cells_inside(sdata, TABLE, CELLS, image_key)
        get_image(sdata, table, image_key=image_key)  # what else can be wrong with the pair is said here
    about = {"he_image": he and str(he), "he_alignment": alignment and str(alignment), "mpp": mpp}
    record(table, "xenium", seconds=time.perf_counter() - start, path=str(folder), image_key=image_key, **about)
    log.info("%d cells of %s", table.n_obs, folder)
    return sdata


def _pixel_size(folder: Path) -> float:
    """µm per pixel of the morphology image."""
    if not (folder / SPECS).is_file():
        there = sorted(p.name for p in folder.iterdir())[:8] if folder.is_dir() else "no folder"
        raise FileNotFoundError(f"{folder} is no Xenium output: it has no {SPECS} (found {there}).")
    specs = json.loads((folder / SPECS).read_text(encoding="utf-8"))
    return check_mpp(float(specs["pixel_size"]), f"By {SPECS}, the morphology image")


def _find(
    folder: Path, he_image: str | Path | None, he_alignment: str | Path | None
) -> tuple[Path | None, Path | None]:
    """H&E and its matrix, those given or those there are."""
    he = _one(folder, HE_SUFFIX) if he_image is None else Path(he_image)
    if he is None:
        if he_alignment is not None:
            raise ValueError(f"he_alignment={str(he_alignment)!r} without an H&E: hand it in by he_image=.")
        return None, None
    alignment = _one(he.parent, ALIGNMENT_SUFFIX) if he_alignment is None else Path(he_alignment)
    if alignment is not None and not alignment.is_file():
        raise FileNotFoundError(f"There is no he_alignment {alignment} (looked in {alignment.absolute().parent}).")
    return he, alignment


def _one(folder: Path, suffix: str) -> Path | None:
    """The file whose name ends so, if there is one.

    Raises
    ------
    ValueError
        If there are several.
    """
    found = sorted(folder.glob(f"*{suffix}"))
    if len(found) > 1:
        raise ValueError(
            f"{folder} has {len(found)} files *{suffix}: {[p.name for p in found]}. Name the H&E by he_image= and its "
            "matrix by he_alignment=."
        )
    return found[0] if found else None


def _read(folder: Path, options: dict[str, Any]) -> SpatialData:
    """The folder's table and outlines, and the elements asked for; the table annotates the outlines."""
    import spatialdata_io

    unasked = dict.fromkeys(
        ("nucleus_boundaries", "cells_labels", "nucleus_labels", "transcripts", "morphology_mip", "morphology_focus"),
        False,
    )
    with warnings.catch_warnings():
        # it annotates the label image, which is not read: set right below
        warnings.filterwarnings("ignore", "The table is annotating", UserWarning)
        sdata = spatialdata_io.xenium(folder, **(unasked | {"aligned_images": False} | options))
        table = sdata.tables[TABLE]
        table.obs["region"] = CELLS
        table.obs["region"] = table.obs["region"].astype("category")
        sdata.set_table_annotates_spatialelement(TABLE, region=CELLS, region_key="region", instance_key="cell_id")
    return sdata


def _add_image(sdata: SpatialData, he: Path, alignment: Path | None, pixel_size: float, image_key: str) -> float:
    """Put the H&E into ``sdata``; returns its µm per pixel."""
    from nichekd.io._read_image import read_pyramid

    levels, by_metadata = read_pyramid(he)
    if alignment is None:
        scale = (by_metadata or pixel_size) / pixel_size
        matrix = np.diag([scale, scale, 1.0])
        log.warning("no alignment of %s: its top-left corner is taken for that of the morphology image", he.name)
    else:
        matrix = read_matrix(alignment)
        _check_direction(matrix, alignment, pixel_size, by_metadata)
    mpp = check_mpp(pixel_size * float(np.sqrt(abs(np.linalg.det(matrix[:2, :2])))), f"By {alignment or he}, the H&E")
    sdata.images[image_key] = image_element(levels, matrix, SYSTEM)
    note_image(sdata, image_key, mpp=mpp, source=str(he))
    return mpp


def read_matrix(path: Path) -> NDArray[np.float64]:
    """(3, 3) affine of a CSV of Xenium Explorer.

    Raises
    ------
    ValueError
        If it holds anything else, or a matrix that can't be inverted.
    """
    try:
        matrix = np.loadtxt(path, delimiter=",", dtype=np.float64, ndmin=2, encoding="utf-8-sig")
    except ValueError as err:
        raise ValueError(
            f"{path} holds no matrix of numbers ({err}). In Xenium Explorer, export the transformation matrix of the "
            "aligned image, not its keypoints."
        ) from err
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not np.allclose(matrix[2], (0, 0, 1)):
        raise ValueError(
            f"{path} holds {matrix.tolist()}; it has to be a 3 × 3 matrix with a last row of 0, 0, 1, as Xenium Explorer "
            "exports it."
        )
    if abs(np.linalg.det(matrix[:2, :2])) < 1e-12:
        raise ValueError(f"The matrix of {path} can't be inverted: it puts the whole image on a line.")
    return matrix


def _check_direction(matrix: NDArray[np.float64], path: Path, pixel_size: float, by_metadata: float | None) -> None:
    """Refuse a matrix from the morphology image to the H&E; say where it contradicts the metadata."""
    if by_metadata is None:
        return
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    if same_mpp(pixel_size * scale, by_metadata):
        return
    if same_mpp(pixel_size / scale, by_metadata):
        raise ValueError(
            f"The matrix of {path} takes pixels of the morphology image to the H&E; the other direction is needed. "
            "Invert it: numpy.linalg.inv."
        )
    warnings.warn(
        f"The H&E has {by_metadata:.4g} µm per pixel by its metadata, {pixel_size * scale:.4g} by {path.name}; the "
        "latter is taken.",
        UserWarning,
        stacklevel=4,
    )

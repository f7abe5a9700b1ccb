"""Slides that have nothing but their H&E, and their nuclei."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from nichekd.cli import _data
from nichekd.cli._words import words_of_the_shell

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

log = logging.getLogger(__name__)


def zarr_attributes(path: Path) -> dict[str, Any] | None:
    """Attributes of the zarr group ``path``, of format 2 or 3; ``None`` if it is no group.

    Raises
    ------
    ValueError
        If they can't be read.
    """
    for name in ("zarr.json", ".zattrs"):
        if (path / name).is_file():
            try:
                found = json.loads((path / name).read_text(encoding="utf-8"))
            except (json.JSONDecodeError, UnicodeDecodeError) as err:
                raise ValueError(f"{path / name} is damaged ({err}). Copy the folder again.") from err
            found = found.get("attributes", {}) if name == "zarr.json" and isinstance(found, dict) else found
            return found if isinstance(found, dict) else {}
    return {} if (path / ".zgroup").is_file() else None


def is_slide(path: Path) -> bool:
    """Whether ``path`` is to be read as an image: an OME-Zarr, or any file that holds no cells."""
    if path.is_dir():
        found = zarr_attributes(path) or {}
        return "multiscales" in found.get("ome", found)
    return path.exists() and path.suffix not in (_data.ZARR, _data.H5AD)


def read_any(data: Path, image: Path | None, *, mpp: float | None) -> AnnData | SpatialData:
    """A slide without cells, or what :func:`nichekd.cli._data.read` reads.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    ValueError
        If what is there can't be used, is cut off, or image and kind of data don't go together.
    """
    if not is_slide(data):
        if data.is_dir() and data.suffix != _data.ZARR:
            raise ValueError(f"{data} is a folder, but neither an OME-Zarr image nor a SpatialData (.zarr).")
        return _data.read(data, image, mpp=mpp)
    if image is not None:
        raise ValueError(f"{data} is a slide itself; an IMAGE ({image}) goes with cells, an .h5ad. Leave it out.")
    from nichekd import io

    with words_of_the_shell():
        return io.slide(data, mpp=mpp)


def read_slide(path: Path, *, mpp: float | None) -> SpatialData:
    """A slide, or a ``SpatialData`` with an image.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is neither.
    """
    if path.suffix == _data.H5AD:
        raise ValueError(f"{path} is a table; nuclei are found in a slide. Name the slide.")
    found = read_any(path, None, mpp=mpp)
    if not getattr(found, "images", None):
        raise ValueError(f"{path} has no image. Name a slide, or a SpatialData with one.")
    return found  # type: ignore[return-value]


def find_nuclei(cells: AnnData | SpatialData, nuclei: Path | None, *, device: str | None, table_key: str) -> bool:
    """Segment nuclei, or take those brought, where there is an image and no table; whether it did.

    Raises
    ------
    FileNotFoundError
        If there is no file ``nuclei``.
    ValueError
        If there are cells, and nuclei are brought, too; if there is no tissue, no nucleus, or the file holds none.
    """
    from nichekd import pp

    if not needs_nuclei(cells):
        if nuclei is not None:
            raise ValueError(f"--nuclei {nuclei}: DATA has cells already. Leave it out, or name the slide alone.")
        return False
    with words_of_the_shell():
        pp.segment_nuclei(cells, shapes=nuclei, device=device, table_key=table_key)  # type: ignore[type-var]
    return True


def needs_nuclei(cells: AnnData | SpatialData) -> bool:
    """Whether there is an image, and no cell."""
    return bool(getattr(cells, "images", None)) and not cells.tables  # type: ignore[union-attr]

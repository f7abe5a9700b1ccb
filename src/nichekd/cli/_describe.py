"""What a file or folder is, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nichekd._keys import Keys
from nichekd.cli import _data
from nichekd.cli._run_folder import NUCLEI, RESULTS, RUN, WORK, read_run
from nichekd.cli._slide import is_slide, zarr_attributes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

    Facts = dict[str, str]


def describe(path: Path) -> Facts:
    """Facts by name, in the order to be read.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    ValueError
        If it is nothing that nichekd reads, or damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is no {path} (looked in {path.absolute().parent}).")
    if is_slide(path):
        return describe_slide(path)
    if path.is_file() or path.suffix == _data.H5AD:
        return _describe_h5ad(path)
    if (path / "student.safetensors").is_file():
        return describe_student(path)
    if (path / RUN).is_file() or (path / WORK / RUN).is_file():
        return describe_run(path)
    attributes = zarr_attributes(path)
    if attributes is not None and "made_of" in attributes.get("nichekd", {}):
        return describe_store(path)
    if attributes is not None and ("spatialdata_attrs" in attributes or path.suffix == _data.ZARR):
        return {"what": "SpatialData"} | _describe_spatialdata(_read_spatialdata(path))
    there = sorted(it.name for it in path.iterdir())
    raise ValueError(
        f"{path} is a folder, but none that nichekd knows: no OME-Zarr slide, student, SpatialData, feature store, or "
        f"result of nichekd predict. It holds {', '.join(there[:5]) or 'nothing'}{', …' if len(there) > 5 else ''}."
    )


def describe_slide(path: Path) -> Facts:
    """Format, size, µm per pixel and levels of an image."""
    from nichekd._units import MPP_RANGE
    from nichekd.io._read_image import read_pyramid

    levels, mpp = read_pyramid(path)
    _, height, width = levels[0].shape
    size = f"{width:,} × {height:,} px"
    if mpp is None:
        known = "not in its metadata; name it by --mpp (40×: often 0.25; 20×: 0.5)"
    elif not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
        known = f"{mpp:.4g} by its metadata, as no microscope has; name it by --mpp"
    else:
        known = f"{mpp:.4g}"
        size += f", {width * mpp / 1000:.2f} × {height * mpp / 1000:.2f} mm"
    sizes = [f"{level.shape[2]:,} × {level.shape[1]:,} (1:{width / level.shape[2]:.3g})" for level in levels[1:]]
    return {
        "what": f"slide, {_format_of(path)}",
        "size": size,
        "µm per pixel": known,
        "levels": "; ".join([f"{len(levels)}", *sizes]),
    }


def _format_of(path: Path) -> str:
    from openslide import OpenSlide
    from tifffile import COMPRESSION, TiffFile, TiffFileError

    from nichekd.io._read_image import PHOTO_SUFFIXES

    if path.is_dir():
        return "OME-Zarr"
    if path.suffix.lower() in PHOTO_SUFFIXES:
        return "a photograph, which is read whole"
    try:
        with TiffFile(path) as tiff:
            page = tiff.pages.first
            kind = "OME-TIFF" if tiff.is_ome else "Aperio TIFF" if tiff.is_svs else "TIFF"
            tiles = f"tiles of {page.tilewidth} × {page.tilelength} px" if page.is_tiled else "not tiled"
            packed = COMPRESSION(page.compression).name.lower()
            return f"{kind}, {tiles}, {'uncompressed' if packed == 'none' else packed}"
    except TiffFileError:
        return f"{OpenSlide.detect_format(path)}, read by OpenSlide"


def describe_student(path: Path) -> Facts:
    """What it finds, and in what."""
    from nichekd._report import student_facts
    from nichekd._report._student_facts import license_notice
    from nichekd.models import NicheStudent

    student = NicheStudent.load(path)
    n_parameters = sum(parameter.numel() for parameter in student.parameters())
    facts = {"what": f"student, {n_parameters:,} parameters"} | student_facts(student)
    notice = license_notice(student)
    return facts if notice is None else facts | {"note": notice}


def describe_store(path: Path) -> Facts:
    """Of what its features are, and how many are done."""
    from nichekd.pp._feature_store import FeatureStore

    manifest = FeatureStore(path).manifest or {}
    made_of, about = manifest["made_of"], manifest["about"]
    done, n = int(manifest["n_done"]), int(manifest["n"])
    state = "complete" if done == n else "unfinished; the call that made it goes on from there"
    return {
        "what": "feature store",
        "cells": f"{done:,} of {n:,}, {state}",
        "image encoder": f"{about.get('encoder', 'not recorded')}, licence {about.get('license', 'not recorded')}",
        "crop": f"{made_of['crop_px']} px at {float(made_of['mpp']):.4g} µm per pixel, {made_of['mode']}",
        "precision": str(made_of["precision"]),
    }


def describe_run(path: Path) -> Facts:
    """Whether it is finished, and of what."""
    finished = read_run(path)
    run = finished or read_run(path / WORK) or {}
    names = [name for name in RESULTS if (path / name).exists()]
    if finished:
        state = f"finished {run.get('finished', '')}"
    else:
        kept = "nuclei are found" if (path / WORK / NUCLEI).exists() else "nothing of it is done yet"
        state = f"unfinished ({kept}); the same call goes on"
    facts = {"what": f"folder of nichekd predict, {state}"}
    facts |= {name: str(pair[1]) for name, pair in run["made_of"].items()}
    facts["results"] = ", ".join(names) or "none yet"
    return facts | ({"command": str(run["command"])} if "command" in run else {})


def _read_spatialdata(path: Path) -> SpatialData:
    from spatialdata import read_zarr
    from zarr.errors import BaseZarrError

    try:
        return read_zarr(path)
    except (BaseZarrError, AttributeError, KeyError, OSError, TypeError) as err:  # as its parts happen to fail
        raise ValueError(f"{path} is no SpatialData, or a damaged one ({type(err).__name__}: {err}).") from err


def _describe_spatialdata(sdata: SpatialData) -> Facts:
    from nichekd._frames import full_resolution
    from nichekd._image_notes import noted_mpp

    facts: Facts = {}
    for name, element in sdata.images.items():
        sizes = full_resolution(element).sizes
        mpp = noted_mpp(sdata, name)
        n_levels = len(getattr(element, "children", {})) or 1
        noted = f", {mpp:.4g} µm per pixel" if mpp else ""
        facts[f"image {name}"] = f"{sizes['x']:,} × {sizes['y']:,} px{noted}, levels: {n_levels}"
    for name, shapes in sdata.shapes.items():
        facts[f"shapes {name}"] = f"{len(shapes):,}, {', '.join(sorted(set(shapes.geom_type)))}"
    for kind in ("labels", "points"):
        facts |= {f"{kind} {name}": "there" for name in getattr(sdata, kind)}
    for name, table in sdata.tables.items():
        facts |= {f"table {name}": _sizes(table)} | {f"  {k}": v for k, v in _describe_table(table).items()}
    return facts if sdata.tables else facts | {"tables": "none; nichekd segment or predict finds nuclei"}


def _describe_h5ad(path: Path) -> Facts:
    import anndata

    try:
        adata = anndata.read_h5ad(path, backed="r")
    except (OSError, KeyError, AttributeError, TypeError) as err:
        raise ValueError(f"{path} is no AnnData file, or a damaged one ({type(err).__name__}: {err}).") from err
    try:
        return {"what": "AnnData table", "cells": _sizes(adata)} | _describe_table(adata)
    finally:
        adata.file.close()


def _sizes(adata: AnnData) -> str:
    return f"{adata.n_obs:,} cells × {adata.n_vars:,} genes"


def _describe_table(adata: AnnData) -> Facts:
    """What nichekd has written to it, or needs of it."""
    from nichekd._record import notes

    facts: Facts = {}
    facts["centres"] = "in obsm['spatial']" if Keys.SPATIAL in adata.obsm else "none in obsm['spatial']"
    if Keys.SPLIT in adata.obs:
        facts["split"] = ", ".join(f"{n:,} {name}" for name, n in adata.obs[Keys.SPLIT].value_counts().items())
    known = notes(adata) if Keys.UNS in adata.uns else {}
    if Keys.RADIUS in known:
        facts["neighborhood radius"] = f"{float(known[Keys.RADIUS]):.2f} µm"
    for key, about in known.get(Keys.FEATURES, {}).items():
        facts[f"features {key}"] = _features(about) + ("" if key in adata.obsm else " (not kept)")
    if Keys.SCVI in adata.obsm:
        facts[f"features {Keys.SCVI}"] = f"{adata.obsm[Keys.SCVI].shape[1]}, of expression"
    for key in adata.obsm:
        if key.endswith("_logits"):
            facts[f"logits {key}"] = f"K = {adata.obsm[key].shape[1]}"
    for column in adata.obs:
        if (column == Keys.NICHE or column.startswith(f"{Keys.NICHE}_")) and adata.obs[column].dtype == "category":
            counts = adata.obs[column].value_counts(sort=False)
            facts[f"niches {column}"] = f"{len(counts)}: " + ", ".join(f"{name} {n:,}" for name, n in counts.items())
    written = known.get("predict_niches", {}).get("warnings")
    if written is not None and len(written):  # a list, or an array where it was read from a file
        facts["warnings"] = " ".join(map(str, written))
    return facts


def _features(about: Mapping[str, Any]) -> str:
    crop = (
        f", crops of {int(about['crop_px'])} px at {float(about['mpp']):.4g} µm per pixel" if "crop_px" in about else ""
    )
    return f"{about.get('encoder', 'unknown encoder')}, {int(about.get('n_features', 0))} features{crop}"

"""Folders of 10x instruments, small, in the real layout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr
from scipy.sparse import csc_matrix

if TYPE_CHECKING:
    from pathlib import Path

N_CELLS, N_GENES = 40, 5
PIXEL_SIZE = 0.2125  # µm per px of the morphology image


def write_counts(path: Path, barcodes: list[str], seed: int = 0) -> csc_matrix:
    """``cell_feature_matrix.h5`` or ``filtered_feature_bc_matrix.h5``: features × barcodes, column-compressed."""
    counts = csc_matrix(np.random.default_rng(seed).poisson(1.0, (N_GENES, len(barcodes))).astype(np.int32))
    names = [f"GENE{i}" for i in range(N_GENES)]
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(barcodes, dtype="S")
        matrix["data"], matrix["indices"], matrix["indptr"] = counts.data, counts.indices, counts.indptr
        matrix["shape"] = np.array(counts.shape, dtype=np.int32)
        features = matrix.create_group("features")
        features["id"] = np.array([f"ENSG{i:05d}" for i in range(N_GENES)], dtype="S")
        features["name"] = np.array(names, dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * N_GENES, dtype="S")
        features["genome"] = np.array(["GRCh38"] * N_GENES, dtype="S")
    return counts


def cell_name(prefix: int, suffix: int = 1) -> str:
    """10x's name of a cell: eight hexadecimal digits, written with a…p for 0…f."""
    return "".join(chr(ord("a") + int(digit, 16)) for digit in f"{prefix:08x}") + f"-{suffix}"


def write_xenium(folder: Path, xy: np.ndarray, *, version: str = "3.1.0.0") -> list[str]:
    """An output folder with cells at ``xy`` (n, 2), µm; returns their names."""
    folder.mkdir(exist_ok=True)
    n = len(xy)
    prefix = 7 + 16 * np.arange(n)
    names = [cell_name(int(p)) for p in prefix]
    specs = {"major_version": 5, "pixel_size": PIXEL_SIZE, "analysis_sw_version": f"xenium-{version}", "num_cells": n}
    (folder / "experiment.xenium").write_text(json.dumps(specs))
    write_counts(folder / "cell_feature_matrix.h5", names)
    columns: dict[str, Any] = {"cell_id": names, "x_centroid": xy[:, 0], "y_centroid": xy[:, 1]}
    columns |= {"transcript_counts": 5, "total_counts": 5, "cell_area": 50.0, "nucleus_area": 20.0}
    pd.DataFrame(columns).to_parquet(folder / "cells.parquet", index=False)
    _write_boundaries(folder, names, xy, labelled=version >= "2")
    _write_cells_zarr(folder, prefix, xy, labelled=version >= "2")
    return names


def _write_boundaries(folder: Path, names: list[str], xy: np.ndarray, *, labelled: bool) -> None:
    corners = np.array([[-3, -3], [3, -3], [3, 3], [-3, 3], [-3, -3]])
    vertices = (xy[:, None] + corners).reshape(-1, 2).astype(np.float32)
    frame = pd.DataFrame({"cell_id": np.repeat(names, 5), "vertex_x": vertices[:, 0], "vertex_y": vertices[:, 1]})
    if labelled:
        frame["label_id"] = np.repeat(np.arange(1, len(names) + 1, dtype=np.uint32), 5)
    for what in ("cell", "nucleus"):
        frame.to_parquet(folder / f"{what}_boundaries.parquet", index=False)


def _write_cells_zarr(folder: Path, prefix: np.ndarray, xy: np.ndarray, *, labelled: bool) -> None:
    n = len(xy)
    with zarr.storage.ZipStore(folder / "cells.zarr.zip", mode="w") as store:
        group = zarr.create_group(store, zarr_format=2)
        group.create_array("cell_id", data=np.column_stack([prefix, np.ones(n)]).astype(np.uint32))
        names = ["cell_centroid_x", "cell_centroid_y", "cell_area", "nucleus_centroid_x", "nucleus_centroid_y"]
        names += ["nucleus_area", "z_level", "nucleus_count"]
        summary = np.column_stack([xy, np.ones((n, 6))])
        group.create_array("cell_summary", data=summary, attributes={"column_names": names})
        masks = group.create_group("masks")
        for i in "01":
            masks.create_array(i, data=np.zeros((16, 16), dtype=np.uint32))
            if labelled:
                group.create_array(f"polygon_sets/{i}/cell_index", data=np.arange(n, dtype=np.uint32))
        if not labelled:
            group.create_array("seg_mask_value", data=np.arange(1, n + 1, dtype=np.uint32))


def write_he(path: Path, height: int, width: int, mpp: float = 0.25) -> np.ndarray:
    """An OME-TIFF of two levels; returns its pixels."""
    rgb = np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8)
    sides = {"PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(rgb, photometric="rgb", subifds=1, tile=(64, 64), metadata=sides)
        tiff.write(rgb[::2, ::2], photometric="rgb", subfiletype=1, tile=(64, 64))
    return rgb


@pytest.fixture
def xenium_writer():
    """:func:`write_xenium`, for a test to call; test modules can't import from here."""
    return write_xenium


@pytest.fixture
def he_writer():
    """:func:`write_he`."""
    return write_he


@pytest.fixture
def counts_writer():
    """:func:`write_counts`."""
    return write_counts


@pytest.fixture
def xy():
    """Cells within 60 × 40 µm."""
    return np.random.default_rng(0).uniform((4, 4), (56, 36), (N_CELLS, 2))


@pytest.fixture
def xenium_folder(tmp_path, xy):
    write_xenium(tmp_path / "outs", xy)
    return tmp_path / "outs"

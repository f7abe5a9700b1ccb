"""What CUCA is measured on: cells of a section, or spots on Visium's grid, with features, abundances and a split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

import nichekd as nk

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from spatialdata import SpatialData

TRUTH, AROUND = "cell_abundance", "around"
SPOT_GRAPH_UM = 105.0  # reaches the six next spots
KEPT = ("spatial", "X_scVI")


def load(table: Path | None, image: Path | None, *, mpp: float, encoder: str, use_rep: str) -> SpatialData:
    """Split cells with image features on their image; the bundled crop without ``table``."""
    if table is None:
        sdata = nk.datasets.pancreas()
    else:
        adata = ad.read_h5ad(table)
        for key in set(adata.obsm) - {use_rep, *KEPT}:
            del adata.obsm[key]
        sdata = nk.io.paired(adata, image, mpp=mpp)
    if "split" not in sdata["table"].obs:
        nk.pp.split(sdata)
    if use_rep not in sdata["table"].obsm:
        nk.pp.histology_features(sdata, encoder=encoder)
    return sdata


def with_kind(cells: ad.AnnData, key: str) -> None:
    """Cells without a type are counted as none."""
    cells.obs["kind"] = cells.obs[key].astype(str).where(cells.obs[key].notna() & (cells.obs[key] != "none"))


def cell_unit(cells: ad.AnnData, key: str, radius: float, *, around: bool = True) -> ad.AnnData:
    """Abundances within ``radius`` of each cell, a graph, and expression of the same area."""
    with_kind(cells, key)
    nk.pp.neighborhood_composition(cells, cell_type_key="kind", radius=radius)
    if "spatial_connectivities" not in cells.obsp:
        nk.pp.neighborhoods(cells)
    if around and AROUND not in cells.layers:
        cells.layers[AROUND] = surroundings(cells, radius)
    return cells


def spot_unit(sdata: SpatialData, key: str, radius: float, *, encoder: str, cache: Path | None = None) -> ad.AnnData:
    """The same of spots, in the strips of the cells; their features are made once where ``cache`` is given."""
    cells = sdata["table"]
    with_kind(cells, key)
    spots = nk.pp.neighborhood_composition(sdata, cell_type_key="kind", spots=True, radius=radius)
    table = spots["table"]
    table.obs["split"] = sides(table.obsm["spatial"][:, 1], cells)
    stored = None if cache is None else cache / f"spots_{encoder}.npy"
    if stored is not None and stored.exists() and len(found := np.load(stored)) == table.n_obs:
        table.obsm[f"X_{encoder}"] = found
    else:
        nk.pp.histology_features(spots, encoder=encoder)
        if stored is not None:
            np.save(stored, np.asarray(table.obsm[f"X_{encoder}"]))
    nk.pp.neighborhoods(spots, radius=SPOT_GRAPH_UM)
    return table


def sides(y: NDArray[np.floating], cells: ad.AnnData) -> NDArray[np.str_]:
    """Split by the strips that the cells were split by."""
    record = cells.uns["nichekd"]["split"]
    boundaries, buffer = np.asarray(record["boundaries_um"], dtype=float), float(record["buffer_um"])
    near = np.abs(y[:, None] - boundaries).min(axis=1) <= buffer
    of_cells = cells.obs["split"].astype(str).to_numpy()
    where = np.digitize(cells.obsm["spatial"][:, 1], boundaries)
    is_test = [bool((of_cells[where == strip] == "test").any()) for strip in range(len(boundaries) + 1)]
    return np.where(near, "buffer", np.where(np.asarray(is_test)[np.digitize(y, boundaries)], "test", "train"))


def surroundings(cells: ad.AnnData, radius: float) -> sparse.csr_matrix:
    """Counts summed up over what the types are counted in, on the cell's side of the split."""
    side = cells.obs["split"].astype(str).to_numpy()
    near = cKDTree(cells.obsm["spatial"]).query_pairs(radius, output_type="ndarray")
    near = near[side[near[:, 0]] == side[near[:, 1]]]
    ones = np.ones(len(near), dtype=np.float32)
    pairs = sparse.csr_matrix((ones, near.T), shape=(cells.n_obs, cells.n_obs))
    whole = pairs + pairs.T + sparse.eye_array(cells.n_obs, dtype=np.float32)
    return sparse.csr_matrix(whole @ sparse.csr_matrix(cells.X).astype(np.float32))


def training_only(
    adata: ad.AnnData, boundaries: Sequence[float], fold: str, *, every: int, margin: float
) -> ad.AnnData:
    """Training cells alone, one of their strips in place of the test strip: nothing of the test strip is in it.

    Parameters
    ----------
    adata
        Cells or spots with a split.
    boundaries
        Of the test strip, µm.
    fold
        Hold out the training strip that is ``"first"``, or the ``"last"``, from the top of the image.
    every
        Train on one cell of so many.
    margin
        µm beside the strip that do neither.
    """
    part = adata[(adata.obs["split"] == "train").to_numpy()].copy()
    y = part.obsm["spatial"][:, 1]
    edge = min(boundaries) if fold == "first" else float(np.median(y[y > max(boundaries)]))
    held = y < edge if fold == "first" else y > edge
    split = np.where(held, "test", np.where(np.abs(y - edge) < 2 * margin, "buffer", "train"))
    part.obs["split"] = split
    chosen = np.flatnonzero(split != "train"), np.flatnonzero(split == "train")[::every]
    return part[np.sort(np.concatenate(chosen))].copy()

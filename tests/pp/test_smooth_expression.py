from __future__ import annotations

import anndata
import numpy as np
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix, issparse

import nichekd as nk


@pytest.fixture
def line() -> AnnData:
    """Cells 0-1-2 in a row, 3 alone; values that are no counts."""
    adata = AnnData(
        np.array([[0.5, 1], [1.5, 0], [4, 3], [9, 9.5]]),
        obsm={"spatial": np.array([[0.0, 0], [4, 0], [8, 0], [99, 0]])},
    )
    nk.pp.neighborhoods(adata, radius=5)
    return adata


def test_by_hand(line):
    nk.pp.smooth_expression(line)
    expected = [[1, 0.5], [2, 4 / 3], [2.75, 1.5], [9, 9.5]]
    assert line.layers["smoothed"] == pytest.approx(np.array(expected), rel=1e-6)


def test_counts_are_normalised_first_over_all_genes():
    adata = AnnData(csr_matrix(np.array([[1, 3], [0, 10]])), obsm={"spatial": np.array([[0.0, 0], [1, 0]])})
    nk.pp.neighborhoods(adata, radius=2)
    nk.pp.smooth_expression(adata)
    each = np.log1p([[2500, 7500], [0, 10000]])
    assert issparse(adata.layers["smoothed"])
    assert adata.layers["smoothed"].toarray() == pytest.approx(np.tile(each.mean(0), (2, 1)), rel=1e-5)
    assert adata.X.toarray().tolist() == [[1, 3], [0, 10]], "X is left alone"


def test_a_graph_that_has_the_cell_itself_counts_it_once(line):
    graph = line.obsp["spatial_connectivities"].tolil()
    graph.setdiag(1)
    with_self = line.copy()
    with_self.obsp["spatial_connectivities"] = graph.tocsr()
    nk.pp.smooth_expression(line)
    nk.pp.smooth_expression(with_self)
    assert np.array_equal(line.layers["smoothed"], with_self.layers["smoothed"])


def test_all_six_neighbors_of_a_hexagonal_lattice():
    """Where the eight nearest of a square lattice would find four."""
    row, column = np.divmod(np.arange(49), 7)
    xy = np.column_stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2]) * 100
    adata = AnnData(np.eye(49) + 0.5, obsm={"spatial": xy})
    nk.pp.neighborhoods(adata, radius=105)
    nk.pp.smooth_expression(adata)
    centre = adata.layers["smoothed"][24] - 0.5
    assert np.count_nonzero(centre > 1e-6) == 7
    assert centre[centre > 1e-6] == pytest.approx(np.full(7, 1 / 7), rel=1e-5)


def test_nothing_crosses_the_split():
    adata = nk.datasets.simulate(300, K=2, image=False)["table"]
    nk.pp.split(adata, mpp=0.25, crop_px=32)
    nk.pp.neighborhoods(adata, radius=40)
    nk.pp.smooth_expression(adata)
    before = adata.layers["smoothed"].copy()
    test = (adata.obs["split"] == "test").to_numpy()
    changed = adata.X.tolil()
    changed[np.flatnonzero(test)] = 7
    adata.X = changed.tocsr()
    nk.pp.smooth_expression(adata)
    assert (before != adata.layers["smoothed"])[~test].nnz == 0
    assert (before != adata.layers["smoothed"])[test].nnz > 0


def test_copy_and_reload(line, tmp_path):
    other = nk.pp.smooth_expression(line, copy=True, key_added="mean")
    assert "mean" in other.layers
    assert "mean" not in line.layers
    other.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert np.array_equal(again.layers["mean"], other.layers["mean"])
    assert again.uns["nichekd"]["smooth_expression"]["key_added"] == "mean"


def test_no_graph_names_the_next_call(line):
    del line.obsp["spatial_connectivities"]
    with pytest.raises(KeyError, match=r"spatial_connectivities.*nk\.pp\.neighborhoods"):
        nk.pp.smooth_expression(line)


def test_bad_layers(line):
    with pytest.raises(KeyError, match=r"layers\['raw'\] is missing"):
        nk.pp.smooth_expression(line, layer="raw")
    line.X[0, 0] = np.nan
    with pytest.raises(ValueError, match="X holds 1 values that are NaN"):
        nk.pp.smooth_expression(line)
    genes = AnnData(obsm={"spatial": np.array([[0.0, 0], [1, 0]])})
    nk.pp.neighborhoods(genes, radius=2)
    with pytest.raises(ValueError, match="no genes in X"):
        nk.pp.smooth_expression(genes)

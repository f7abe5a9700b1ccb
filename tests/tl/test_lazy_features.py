"""Features that don't fit into memory are read in parts, and lead to the same results."""

from __future__ import annotations

import numpy as np
import pytest

import nichekd as nk
from nichekd.models import Whiten
from nichekd.pp._feature_store import FeatureStore
from nichekd.pp._table_order import TableOrder

BLOCK = 256  # rows


@pytest.fixture
def lazy_cells(taught_cells, tmp_path, monkeypatch):
    """The same table, its image features in a store in an order of their own; and the sizes of what is read of it."""
    monkeypatch.setattr("nichekd.pp._feature_store.LAZY_ROWS", BLOCK)
    plain = taught_cells.obsm["X_image"]
    store = FeatureStore(tmp_path / "features")
    order = np.random.default_rng(0).permutation(len(plain))
    with store.writing({"precision": "32"}, order=order, n_features=plain.shape[1], about={}):
        store.append(plain[order])
    lazy = taught_cells.copy()
    lazy.obsm["X_image"] = store.array()

    monkeypatch.setattr("nichekd.tl._inputs.IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("nichekd.tl._distill_setup.WHITEN_CELLS", BLOCK)
    monkeypatch.setattr("nichekd.tl._nolan_fit.FIT_CELLS", BLOCK)
    monkeypatch.setitem(Whiten.rows.__wrapped__.__kwdefaults__, "block", BLOCK)  # type: ignore[attr-defined]
    take, lazy.uns["read"] = TableOrder.take, []

    def noted(self, rows):
        lazy.uns["read"].append(len(rows))
        return take(self, rows)

    monkeypatch.setattr(TableOrder, "take", noted)
    return lazy


def largest_read(adata) -> int:
    return max(adata.uns["read"])


def test_distill_and_predict(taught_cells, lazy_cells, quick_fit):
    for adata in (taught_cells, lazy_cells):
        student = nk.tl.distill(adata, use_rep="X_image", fit=quick_fit)
        adata.obsm["taught"] = adata.obsm["student_logits"]
        nk.tl.predict_niches(adata, student, use_rep="X_image")
        np.testing.assert_allclose(adata.obsm["student_logits"], adata.obsm["taught"], atol=1e-4)
    np.testing.assert_allclose(lazy_cells.obsm["taught"], taught_cells.obsm["taught"], atol=1e-4)
    assert sum(lazy_cells.uns["read"]) == 3 * lazy_cells.n_obs  # by PCA, by the student that is taught, by prediction
    assert largest_read(lazy_cells) <= BLOCK


def test_nolan(taught_cells, lazy_cells, quick_nolan):
    for adata in (taught_cells, lazy_cells):
        nk.tl.nolan(adata, 3, use_rep="X_image", fit=quick_nolan, key_added="again")
    np.testing.assert_allclose(lazy_cells.obsm["again_logits"], taught_cells.obsm["again_logits"], atol=1e-4)
    assert largest_read(lazy_cells) <= BLOCK


def test_leiden(taught_cells, lazy_cells):
    for adata in (taught_cells, lazy_cells):
        nk.tl.histology_leiden(adata, 3, use_rep="X_image")
    key = "niche_histology_leiden"
    assert (lazy_cells.obs[key] == taught_cells.obs[key]).all()

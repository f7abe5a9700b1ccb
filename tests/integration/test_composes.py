"""A result goes on through squidpy, scanpy and SpatialData, as any other table does."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import squidpy as sq
from anndata import read_h5ad
from spatialdata import SpatialData, read_zarr

import nichekd as nk
from nichekd.models import NolanSettings
from nichekd.tl import FitSettings

NICHES = ["niche", "niche_teacher", "niche_histology_nolan", "niche_histology_leiden"]


@pytest.fixture(scope="module")
def result() -> SpatialData:
    """400 simulated cells through all methods, with image features that cost nothing."""
    mpl.use("Agg")
    sdata = nk.datasets.simulate(400, K=3, seed=0)
    adata = sdata["table"]
    adata.obsm["X_types"] = pd.get_dummies(adata.obs["cell_type"]).to_numpy(np.float32)
    nk.pp.split(sdata, crop_px=48)
    nk.pp.histology_features(sdata, encoder="color", crop_px=48)
    nolan = NolanSettings(n_steps=10, n_warm_start=20, batch_size=64)
    nk.tl.nolan(sdata, K=3, use_rep="X_types", fit=nolan)
    nk.tl.distill(sdata, K=3, fit=FitSettings(max_epochs=3, min_steps=0, batch_size=64, n_components=8))
    nk.tl.histology_nolan(sdata, K=3, fit=nolan)
    nk.tl.histology_leiden(sdata, K=3)
    for key in NICHES[2:]:
        nk.tl.match_niches(sdata, key=key)
    return sdata


@pytest.fixture
def cells(result):
    return result["table"].copy()


@pytest.mark.parametrize("key", NICHES)
def test_squidpy_nhood_enrichment(cells, key):
    sq.gr.nhood_enrichment(cells, cluster_key=key, n_perms=20, seed=0, show_progress_bar=False)
    zscore = cells.uns[f"{key}_nhood_enrichment"]["zscore"]
    assert zscore.shape == (3, 3)
    if key in {"niche", "niche_teacher"}:  # each its own neighbor more often than chance has it
        assert np.nanmin(np.diag(zscore)) > 0


def test_squidpy_co_occurrence(cells):
    sq.gr.co_occurrence(cells, cluster_key="niche", interval=5)
    found = cells.uns["niche_co_occurrence"]["occ"]
    n_live = cells.obs["niche"].nunique()
    assert found.shape == (n_live, n_live, 4)
    assert np.isfinite(found).all()


@pytest.mark.filterwarnings(  # squidpy's calls
    "ignore:The set_bad function", "ignore:No data for colormapping", "ignore:The method obs_vector:FutureWarning"
)
def test_squidpy_spatial_scatter(cells, tmp_path):
    sq.pl.spatial_scatter(cells, color=["niche", "niche_entropy"], shape=None, save=tmp_path / "niches.png")
    assert (tmp_path / "niches.png").stat().st_size > 10_000
    assert list(cells.uns["niche_colors"]) == list(cells.uns["niche_teacher_colors"])  # squidpy keeps ours


def test_scanpy_rank_genes_groups(cells):
    sc.pp.normalize_total(cells)
    sc.pp.log1p(cells)
    sc.tl.rank_genes_groups(cells, groupby="niche", method="wilcoxon")
    table = sc.get.rank_genes_groups_df(cells, group=None)
    assert set(table["group"]) == set(cells.obs["niche"].unique())
    assert table["names"].isin(cells.var_names).all()
    assert np.isfinite(table["scores"]).all()


def check_same(back, adata):
    for key in (*NICHES, "split", "niche_entropy"):
        pd.testing.assert_series_equal(back.obs[key], adata.obs[key], check_index_type=False)
    for key in ("teacher_logits", "student_logits", "student_proba", "histology_nolan_logits", "X_color"):
        np.testing.assert_array_equal(back.obsm[key], adata.obsm[key])
        assert back.obsm[key].dtype == adata.obsm[key].dtype
    assert (back.obsp["spatial_connectivities"] != adata.obsp["spatial_connectivities"]).nnz == 0
    for key in NICHES:
        assert list(back.uns[f"{key}_colors"]) == list(adata.uns[f"{key}_colors"])
    assert back.uns["nichekd"]["radius"] == adata.uns["nichekd"]["radius"]
    assert set(back.uns["nichekd"]) == set(adata.uns["nichekd"])


def test_h5ad_and_back(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    back = read_h5ad(tmp_path / "cells.h5ad")
    check_same(back, cells)
    before = nk.tl.agreement(cells, keys=NICHES)
    pd.testing.assert_frame_equal(nk.tl.agreement(back, keys=NICHES), before)


def test_spatialdata_and_back(result, tmp_path):
    result.write(tmp_path / "result.zarr")
    back = read_zarr(tmp_path / "result.zarr")
    check_same(back["table"], result["table"])
    pd.testing.assert_frame_equal(nk.tl.agreement(back, keys=NICHES), nk.tl.agreement(result, keys=NICHES))
    nk.tl.histology_leiden(back, K=3, key_added="again")  # and the chain goes on
    assert nk.tl.agreement(back, keys=["niche_again"], reference="niche_histology_leiden")["ARI"].item() == 1

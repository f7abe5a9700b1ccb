from __future__ import annotations

import anndata
import numpy as np
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

import nichekd as nk


def cells(n: int = 60, seed: int = 0, **more) -> AnnData:
    rng = np.random.default_rng(seed)
    return AnnData(obsm={"X_a": rng.normal(size=(n, 4)), "X_b": rng.normal(size=(n, 3)), **more})


def agreement(adata, a="X_a", b="X_b", **kwargs) -> float:
    return nk.tl.rank_agreement(adata, a=a, b=b, **kwargs)["agreement"].item()


def test_by_hand():
    """Four cells on a circle, seen from their mean: the only orders are those of angles."""
    square = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    rotated = square[[0, 2, 1, 3]]  # who was opposite is beside
    adata = AnnData(obsm={"X_a": rotated, "X_b": square})
    # from any cell: b puts the two beside before the one opposite; a makes one of the two the opposite one.
    # pairs (beside, opposite): one of two reversed, the other a tie
    table = nk.tl.rank_agreement(adata, a="X_a", b="X_b", n_triplets=20_000)
    assert table["agreement"].item() == pytest.approx((0 + 0.5) / 2, abs=0.02)
    assert table["n_triplets"].item() == pytest.approx(20_000 * 2 / 3, rel=0.05), "pairs that b ties ask nothing"
    assert table["n_cells"].item() == 4


def test_is_kendalls_tau_of_the_anchors():
    adata = cells(40)
    x, y = ((v - v.mean(0)) / np.linalg.norm(v - v.mean(0), axis=1, keepdims=True) for v in adata.obsm.values())
    taus = [kendalltau(np.delete(x @ x[k], k), np.delete(y @ y[k], k)).statistic for k in range(40)]
    assert agreement(adata, n_triplets=200_000) == pytest.approx((1 + np.mean(taus)) / 2, abs=0.005)


@given(
    scale=st.floats(0.01, 100),
    shift=st.floats(-5, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_scale_shift_and_rotation_change_nothing(scale, shift, seed):
    adata = cells(30)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))[0]
    adata.obsm["X_other"] = scale * adata.obsm["X_a"] @ turn + shift
    table = nk.tl.rank_agreement(adata, a=["X_a", "X_other"], b="X_b", n_triplets=2000)
    assert table["agreement"].iloc[0] == pytest.approx(table["agreement"].iloc[1], abs=2e-3)


def test_itself_its_noise_and_nothing():
    adata = cells(200)
    adata.obsm["X_noisy"] = adata.obsm["X_b"] + np.random.default_rng(1).normal(size=(200, 3))
    adata.obsm["X_same"] = np.ones((200, 2))
    assert agreement(adata, a="X_b") == 1
    assert 0.65 < agreement(adata, a="X_noisy") < 0.95
    assert agreement(adata, a="X_a") == pytest.approx(0.5, abs=0.03)
    assert agreement(adata, a="X_same") == 0.5


def test_slides_scales_and_subset():
    adata = cells(90, spatial=np.random.default_rng(0).uniform(0, 100, (90, 2)))
    adata.obs["slide"] = np.repeat(["s2", "s1", "s3"], 30)
    nk.pp.neighborhoods(adata, radius=30, library_key="slide")
    table = nk.tl.rank_agreement(
        adata,
        a=["X_a", "X_b"],
        b="X_b",
        library_key="slide",
        scales=["neighborhood", "slide", "across"],
        n_triplets=500,
    )
    assert table.columns.tolist() == ["a", "b", "scale", "library", "agreement", "n_triplets", "n_cells"]
    assert len(table) == 2 * (3 + 3 + 1)
    assert table.loc[table["a"] == "X_b", "agreement"].tolist() == [1] * 7
    assert table.loc[table["scale"] == "slide", "library"].tolist() == ["s1", "s1", "s2", "s2", "s3", "s3"]
    adata.obs["split"] = ["test"] * 30 + ["train"] * 60
    auto = nk.tl.rank_agreement(adata, a="X_a", b="X_b")
    assert auto["n_cells"].item() == 30
    assert nk.tl.rank_agreement(adata, a="X_a", b="X_b", subset=None)["n_cells"].item() == 90


def test_triplets_of_a_neighborhood_are_neighbors():
    """Two far clusters: b tells clusters apart and nothing else; among neighbors there is nothing to order."""
    rng = np.random.default_rng(0)
    xy = np.r_[rng.uniform(0, 10, (20, 2)), rng.uniform(500, 510, (20, 2))]
    b = np.repeat([[1.0, 0], [0, 1.0]], 20, axis=0)
    adata = AnnData(obsm={"spatial": xy, "X_a": rng.normal(size=(40, 3)), "X_b": b})
    nk.pp.neighborhoods(adata, radius=50)
    table = nk.tl.rank_agreement(adata, a="X_a", b="X_b", scales=["slide", "neighborhood"], n_triplets=2000)
    assert table["n_triplets"].tolist()[1] == 0
    assert np.isnan(table["agreement"].tolist()[1])
    assert table["n_triplets"].tolist()[0] > 0


def test_expression_layers_and_same_seed():
    adata = nk.datasets.simulate(300, K=2, image=False)["table"]
    adata.obsm["X_a"] = np.random.default_rng(0).normal(size=(300, 3))
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    nk.pp.neighborhoods(adata, radius=40)
    nk.pp.smooth_expression(adata)
    one = nk.tl.rank_agreement(adata, a=["X", "X_a"], n_triplets=3000)
    assert one["agreement"].iloc[0] > 0.52, "a cell's own counts are part of its neighborhood's mean"
    assert one["agreement"].iloc[1] == pytest.approx(0.5, abs=0.05)
    assert one.equals(nk.tl.rank_agreement(adata, a=["X", "X_a"], n_triplets=3000))
    assert not one.equals(nk.tl.rank_agreement(adata, a=["X", "X_a"], n_triplets=3000, seed=1))


def test_record_survives(tmp_path):
    adata = cells()
    agreement(adata, n_triplets=100)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert anndata.read_h5ad(tmp_path / "cells.h5ad").uns["nichekd"]["rank_agreement"]["n_triplets"] == 100


def test_bad_input():
    adata = cells()
    adata.obs["slide"] = ["one"] * 57 + ["two"] * 3
    for kwargs, error, message in [
        ({"a": "X_none"}, KeyError, r"no 'X_none': obsm has \['X_a', 'X_b'\].*nk\.tl\.embed_histology"),
        ({"b": "smoothed"}, KeyError, r"no 'smoothed'"),
        ({"n_triplets": 0}, ValueError, "n_triplets=0"),
        ({"scales": "organ"}, ValueError, r"scales=\['organ'\]; name one or more of"),
        ({"library_key": "slide"}, ValueError, r"Too few cells to put in order: \{'two': 3\}"),
        ({"library_key": "nope"}, KeyError, r"obs\['nope'\]"),
        ({"scales": "neighborhood"}, KeyError, r"nk\.pp\.neighborhoods"),
        ({"subset": "test"}, KeyError, r"nk\.pp\.split"),
    ]:
        with pytest.raises(error, match=message):
            nk.tl.rank_agreement(adata, **{"a": "X_a", "b": "X_b", **kwargs})
    adata.obs.loc[adata.obs_names[0], "slide"] = None
    with pytest.raises(ValueError, match="missing for 1 cells"):
        nk.tl.rank_agreement(adata, a="X_a", b="X_b", library_key="slide")


@pytest.mark.parametrize("side", ["X_a", "X_b"])
def test_rows_without_direction(side):
    adata = cells()
    adata.obsm[side][3] = 0
    with pytest.raises(ValueError, match=rf"'{side}' is 0 throughout for 1 of 60 cells"):
        agreement(adata)
    adata.obsm[side][3] = np.nan
    with pytest.raises(ValueError, match=rf"'{side}' is NaN or infinite for 1 of 60"):
        agreement(adata)

from __future__ import annotations

import anndata
import numpy as np
import pytest
from anndata import AnnData
from scipy.stats import pearsonr

import nichekd as nk
from nichekd.tl._ridge import GroupedRidge, pearson


def cells(n: int = 300, noise: float = 0.3, seed: int = 0) -> AnnData:
    """Five genes that are linear in three of six features; two slides, one with another offset."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6))
    slide = np.where(np.arange(n) % 3 == 0, "b", "a")
    genes = x[:, :3] @ rng.normal(size=(3, 5)) + noise * rng.normal(size=(n, 5)) + 5 * (slide == "b")[:, None]
    adata = AnnData(genes, obsm={"X_image": x.astype(np.float32), "spatial": rng.uniform(0, 100, (n, 2))})
    adata.obs["slide"] = slide
    return adata


def predict(adata, **kwargs):
    return nk.tl.predict_expression(adata, **{"use_rep": "X_image", **kwargs})


def test_ridge_is_the_textbooks():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)), rng.normal(size=(60, 2))
    groups = np.repeat([0, 1, 2], 20)
    ridge = GroupedRidge(x, y, groups)
    scaled = (x - x.mean(0)) / x.std(0)
    # one group: its strength is fixed
    here = scaled[:20]
    z, t = here - here.mean(0), y[:20] - y[:20].mean(0)
    w = np.linalg.solve(z.T @ z + 0.01 * 20 * np.eye(4), z.T @ t)
    expected = (scaled[40:] - here.mean(0)) @ w + y[:20].mean(0)
    assert ridge.predict(np.arange(40, 60), [0]) == pytest.approx(expected, rel=1e-4)


def test_strength_follows_the_noise():
    """With nothing to learn the prediction is the mean; with all to learn it is exact."""
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(200, 50)), np.arange(200) % 4
    noise = rng.normal(size=(200, 1))
    flat = GroupedRidge(x, noise, groups).predict(np.arange(200), [0, 1, 2, 3])
    assert flat.std() < 0.4 * noise.std()
    signal = x @ rng.normal(size=(50, 1))
    assert pearson(GroupedRidge(x, signal, groups).predict(np.arange(200), [0, 1, 2, 3]), signal)[0] > 0.999


def test_pearson_is_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, 3))
    assert pearson(a, b) == pytest.approx([pearsonr(a[:, i], b[:, i]).statistic for i in range(3)])
    a[:, 1] = 2
    assert np.isnan(pearson(a, b)[1])


def test_planted_genes_are_found_within_slides():
    adata = cells()
    adata.obs["fold"] = (np.arange(300) // 60).astype(str)
    table = predict(adata, library_key="slide", group_key="fold")
    assert table.columns.tolist() == ["gene", "library", "pearson", "pearson_unsmoothed", "n_cells"]
    assert len(table) == 10
    assert (table["pearson"] > 0.8).all()
    assert table.groupby("library")["n_cells"].first().to_dict() == {"a": 200, "b": 100}
    assert adata.layers["predicted"].shape == (300, 5)
    one = table.iloc[0]
    a = (adata.obs["slide"] == "a").to_numpy()
    assert one["pearson"] == pytest.approx(pearsonr(adata.layers["predicted"][a, 0], adata.X[a, 0]).statistic, rel=1e-4)


def test_shuffled_features_predict_nothing():
    adata = cells()
    adata.obsm["X_image"] = adata.obsm["X_image"][np.random.default_rng(1).permutation(300)]
    assert predict(adata)["pearson"].abs().max() < 0.25


def test_no_cell_sees_its_own_group():
    """A feature that names the slide can't help: the slide's level is not known to the other ones."""
    adata = cells(noise=0.01)
    adata.obs["slide"] = np.repeat(["a", "b", "c"], 100)
    adata.X = np.random.default_rng(2).normal(size=(300, 5)) + np.repeat([0, 50, 300], 100)[:, None]
    adata.obsm["X_image"] = np.eye(3)[np.arange(300) // 100].astype(np.float32)
    predict(adata, library_key="slide")
    for group in range(3):
        here = slice(100 * group, 100 * group + 100)
        assert np.abs(adata.layers["predicted"][here].mean() - adata.X[here].mean()) > 20


def test_split_fits_on_training_cells_only():
    adata = cells()
    adata.obs["split"] = np.where(np.arange(300) < 200, "train", "test")
    table = predict(adata)
    assert (table["n_cells"] == 100).all()
    assert (table["pearson"] > 0.5).all()
    before = adata.layers["predicted"].copy()
    adata.X[200:] = 7
    predict(adata)
    assert np.array_equal(before, adata.layers["predicted"])


def test_smoothed_target_is_judged_unsmoothed_too(tmp_path):
    adata = nk.datasets.simulate(400, K=3, image=False)["table"]
    nk.pp.neighborhoods(adata, radius=45)
    nk.pp.smooth_expression(adata)
    x = adata.layers["smoothed"].toarray()
    adata.obsm["X_image"] = (x - x.mean(0)) @ np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:5].T
    panel = list(adata.var_names[:6])
    table = predict(adata, genes=panel)
    assert table["gene"].tolist() == panel
    assert table["pearson"].mean() > table["pearson_unsmoothed"].mean() + 0.1
    assert "predicted" not in adata.layers, "a layer has a column for every gene"
    predicted = adata.obsm["predicted"]
    assert predicted.columns.tolist() == panel
    assert predicted.index.equals(adata.obs_names)
    assert (predicted.dtypes == np.float32).all()
    assert np.isfinite(predicted.to_numpy()).all()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert again.obsm["predicted"].equals(predicted)


def test_a_panel_is_predicted_as_it_is_among_all_genes():
    adata = cells()
    adata.var_names = [f"g{i}" for i in range(5)]
    predict(adata)
    predict(adata, genes=["g3"], key_added="one")
    # the strength of the penalty is chosen for those asked for
    both = adata.obsm["one"]["g3"].to_numpy(), adata.layers["predicted"][:, 3]
    assert np.corrcoef(*both)[0, 1] > 0.99


def test_more_than_memory_holds_is_refused_first(monkeypatch):
    from nichekd.tl import _predict_expression as module

    adata = cells(30)
    monkeypatch.setattr(module, "MOST_BYTES", 4 * 30 * 4)
    with pytest.raises(ValueError, match=r"5 genes of 30 cells .*Name a panel by genes=, of up to 4"):
        predict(adata)
    predict(adata, genes=list(adata.var_names[:4]))


def test_bad_input():
    adata = cells(30)
    adata.obs["one"] = "same"
    for kwargs, error, message in [
        ({"use_rep": "X_none"}, KeyError, r"obsm\['X_none'\]"),
        ({"layer": "counts"}, KeyError, r"layers\['counts'\] is missing"),
        ({"genes": ["0", "nope"]}, KeyError, r"1 of 2 genes of the panel are missing: \['nope'\]"),
        ({"group_key": "patient"}, KeyError, r"obs\['patient'\]"),
        ({"group_key": "one"}, ValueError, r"All training cells are of one group in obs\['one'\]"),
        ({"n_folds": 1}, ValueError, "n_folds=1 for 30"),
        ({"n_folds": 31}, ValueError, "n_folds=31 for 30"),
        ({"n_folds": 2.5}, TypeError, "whole number"),
    ]:
        with pytest.raises(error, match=message):
            predict(adata, **kwargs)
    adata.obs.loc[adata.obs_names[0], "one"] = None
    with pytest.raises(ValueError, match="missing for 1 cells"):
        predict(adata, group_key="one")
    adata.obsm["X_image"][0] = np.inf
    with pytest.raises(ValueError, match="NaN or infinite"):
        predict(adata)


def test_parts_of_the_rows_make_no_difference(monkeypatch):
    """Sums over cells, part by part: features far from 0 keep their digits."""
    from nichekd.tl import _ridge

    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 6)) + 1000 * np.arange(6)
    targets = (features[:, :2] - features[:, :2].mean(0)) @ rng.normal(size=(2, 3)) + rng.normal(size=(300, 3))
    groups = np.arange(300) % 4 - 1
    found = []
    for block in (7, 10_000):
        monkeypatch.setattr(_ridge, "BLOCK", block)
        found.append(_ridge.GroupedRidge(features, targets, groups).predict(np.flatnonzero(groups < 0), [0, 1, 2]))
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)
    assert np.corrcoef(found[0][:, 0], targets[groups < 0, 0])[0, 1] > 0.5

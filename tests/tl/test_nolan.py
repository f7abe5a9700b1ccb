from functools import partial

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, read_h5ad
from sklearn.metrics import adjusted_rand_score

import nichekd as nk
from nichekd.models import NolanSettings
from nichekd.tl._nolan_fit import usage_entropy


@pytest.fixture
def nolan(quick_nolan):
    return partial(nk.tl.nolan, K=3, use_rep="X_pca", fit=quick_nolan)


def ari(adata: AnnData, key: str = "niche_teacher", subset: str | None = None) -> float:
    obs = adata.obs if subset is None else adata.obs[adata.obs["split"] == subset]
    return adjusted_rand_score(obs["niche_true"], obs[key])


def test_writes_logits_and_labels(taught_cells):
    logits, labels = taught_cells.obsm["teacher_logits"], taught_cells.obs["niche_teacher"]
    assert logits.dtype == np.float32
    assert logits.shape == (1500, 3)
    assert labels.cat.categories.tolist() == ["0", "1", "2"]
    assert (labels.cat.codes == logits.argmax(1)).all()  # buffer and test cells, too
    about = taught_cells.uns["nichekd"]["nolan"]
    assert about["K"] == about["n_live"] == 3
    assert about["use_rep"] == "X_pca"
    assert about["seed"] == 0
    assert about["usage_entropy"] > 0.8
    assert about["history"]["step"].tolist() == [0, 20]
    assert np.isfinite(about["history"]["train_loss"]).all()
    assert about["history"]["usage_entropy"].max() <= 1


def test_finds_planted_niches(taught_cells):
    assert ari(taught_cells) >= 0.6
    assert ari(taught_cells, subset="test") >= 0.6


@pytest.mark.slow
def test_finds_planted_niches_with_everything_at_its_default():
    sdata = nk.datasets.simulate(image=False)
    nk.tl.nolan(sdata, K=5)
    assert ari(sdata["table"]) >= 0.6


def test_same_seed_same_labels(cells, nolan, taught_cells):
    torch.manual_seed(3)  # what went on before does not matter
    nolan(cells)
    assert np.array_equal(cells.obsm["teacher_logits"], taught_cells.obsm["teacher_logits"])
    nolan(cells, seed=1)
    assert not np.array_equal(cells.obsm["teacher_logits"], taught_cells.obsm["teacher_logits"])


def test_leaves_the_random_state_alone(cells, nolan):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    nolan(cells)
    assert torch.rand(1) == expected


def test_nothing_is_learnt_from_test_and_buffer(cells, nolan, taught_cells):
    train = (cells.obs["split"] == "train").to_numpy()
    cells.obsm["X_pca"][~train] = 50 * np.random.default_rng(1).normal(size=(np.count_nonzero(~train), 8))
    nolan(cells)
    ours, theirs = cells.obsm["teacher_logits"], taught_cells.obsm["teacher_logits"]
    np.testing.assert_allclose(ours[train], theirs[train], atol=1e-4)
    assert np.abs(ours[~train] - theirs[~train]).max() > 0.1


def test_survives_h5ad(taught_cells, tmp_path):
    taught_cells.write_h5ad(tmp_path / "cells.h5ad")
    back = read_h5ad(tmp_path / "cells.h5ad")
    assert np.array_equal(back.obsm["teacher_logits"], taught_cells.obsm["teacher_logits"])
    pd.testing.assert_series_equal(back.obs["niche_teacher"], taught_cells.obs["niche_teacher"])
    assert back.uns["nichekd"]["nolan"]["n_live"] == 3


def test_copy_leaves_the_input(cells, nolan):
    other = nolan(cells, copy=True)
    assert "teacher_logits" in other.obsm
    assert "teacher_logits" not in cells.obsm
    assert "niche_teacher" not in cells.obs
    assert "nolan" not in cells.uns["nichekd"]


def test_key_added(cells, nolan):
    cells.uns["niche_mine_colors"] = ["#000000"] * 3
    nolan(cells, key_added="mine")
    assert "mine_logits" in cells.obsm
    assert "niche_mine" in cells.obs
    assert "niche_teacher" not in cells.obs
    assert "niche_mine_colors" not in cells.uns  # they were those of other niches


@pytest.mark.parametrize("method", [nk.tl.nolan, nk.tl.histology_nolan, nk.tl.histology_leiden])
@pytest.mark.parametrize(
    ("name", "message"),
    [("student", "kept for the default student of nk.tl.distill"), ("a/b", "slash as a folder")],
)
def test_names_that_are_anothers_or_no_files(cells, method, name, message):
    with pytest.raises(ValueError, match=message):
        method(cells, 3, use_rep="X_pca", key_added=name)


def test_a_baseline_does_not_replace_the_teacher(cells):
    with pytest.raises(ValueError, match=r"key_added='teacher' is kept for nk.tl.nolan"):
        nk.tl.histology_nolan(cells, 3, use_rep="X_pca", key_added="teacher")


def test_features_may_be_lazy(cells, nolan, taught_cells):
    cells.obsm["X_pca"] = da.from_array(cells.obsm["X_pca"], chunks=(400, 8))
    nolan(cells)
    np.testing.assert_allclose(cells.obsm["teacher_logits"], taught_cells.obsm["teacher_logits"], atol=1e-5)


def test_features_may_be_a_data_frame(cells, nolan, taught_cells):
    cells.obsm["X_pca"] = pd.DataFrame(cells.obsm["X_pca"], index=cells.obs_names)
    nolan(cells)
    np.testing.assert_allclose(cells.obsm["teacher_logits"], taught_cells.obsm["teacher_logits"], atol=1e-5)


def test_makes_neighborhoods_where_there_are_none(cells, nolan, taught_cells):
    for key in ("spatial_connectivities", "spatial_distances"):
        del cells.obsp[key]
    del cells.uns["nichekd"]["radius"]
    nolan(cells)
    assert cells.uns["nichekd"]["radius"] == taught_cells.uns["nichekd"]["radius"]
    assert np.array_equal(cells.obsm["teacher_logits"], taught_cells.obsm["teacher_logits"])


def test_makes_expression_features_where_there_are_none(cells, quick_nolan, monkeypatch):
    def expression_features(data, **options):
        data.obsm["X_scVI"] = data.obsm["X_pca"]

    monkeypatch.setattr(nk.pp, "expression_features", expression_features)
    nk.tl.nolan(cells, K=3, fit=quick_nolan)
    assert cells.uns["nichekd"]["nolan"]["use_rep"] == "X_scVI"


def test_no_split_trains_on_all(cells, nolan):
    del cells.obs["split"]
    nk.pp.neighborhoods(cells)
    nolan(cells)
    assert ari(cells) >= 0.6


def test_consensus_of_seeds(cells, nolan):
    nolan(cells, n_seeds=2)
    assert cells.uns["nichekd"]["nolan"]["n_seeds"] == 2
    assert ari(cells) >= 0.6


@pytest.mark.filterwarnings("ignore:Only 1 of K=2")
@pytest.mark.parametrize("preset", ["small", "base"])
def test_presets(cells, preset):
    few = cells[:150].copy()
    fit = NolanSettings(n_steps=2, n_warm_start=2, batch_size=16)
    nk.tl.nolan(few, 2, use_rep="X_pca", fit=fit, preset=preset)
    assert few.uns["nichekd"]["nolan"]["preset"] == preset
    assert few.obsm["teacher_logits"].shape == (150, 2)


@pytest.mark.parametrize("balance", ["centering", "sinkhorn"])
def test_every_niche_stays_alive(cells, balance):
    fit = NolanSettings(n_steps=40, n_warm_start=40, batch_size=64, balance=balance)
    nk.tl.nolan(cells, 6, use_rep="X_pca", fit=fit)
    assert cells.uns["nichekd"]["nolan"]["n_live"] == 6


def test_few_live_niches_are_told(cells):
    untrained = NolanSettings(n_steps=1, n_warm_start=0, batch_size=32)
    with pytest.warns(UserWarning, match=r"Only \d+ of K=40 niches have cells.*n_steps"):
        nk.tl.nolan(cells, 40, use_rep="X_pca", fit=untrained)
    assert len(cells.obs["niche_teacher"].cat.categories) == 40


def test_table_of_a_spatial_data(nolan, section):
    sdata = nk.datasets.simulate(1500, K=3, seed=0, image=False)
    sdata["table"].obsm["X_pca"] = section.obsm["X_pca"]
    sdata["cells_2"] = sdata["table"].copy()
    nolan(sdata, table_key="cells_2")
    assert "niche_teacher" in sdata["cells_2"].obs
    assert "niche_teacher" not in sdata["table"].obs
    with pytest.raises(KeyError, match=r"no table 'cells_3'; it has \['cells_2', 'table'\]"):
        nolan(sdata, table_key="cells_3")


@pytest.mark.parametrize(
    ("K", "error", "message"),
    [
        (1, ValueError, "K=1 niches for 999 training cells"),
        (-3, ValueError, "K=-3"),
        (1000, ValueError, "from 2 to their number"),
        (3.0, TypeError, r"K is 3\.0; it has to be a whole number"),
        (True, TypeError, "K is True"),
        ("3", TypeError, "K is '3'"),
    ],
)
def test_impossible_number_of_niches(cells, K, error, message):
    with pytest.raises(error, match=message):
        nk.tl.nolan(cells, K, use_rep="X_pca")


def test_missing_features(cells):
    with pytest.raises(KeyError, match=r"obsm\['X_other'\] is missing.*X_pca.*Run nk.pp.expression_features"):
        nk.tl.nolan(cells, 3, use_rep="X_other")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_no_numbers(cells, bad):
    cells.obsm["X_pca"][[3, 8], 2] = bad
    with pytest.raises(ValueError, match=r"obsm\['X_pca'\] is NaN or infinite for 2 of 1,500 cells"):
        nk.tl.nolan(cells, 3, use_rep="X_pca")


def test_features_that_are_no_matrix(cells):
    cells.obsm["X_cube"] = np.zeros((1500, 2, 2))
    with pytest.raises(ValueError, match=r"X_cube.* has shape \(1500, 2, 2\)"):
        nk.tl.nolan(cells, 3, use_rep="X_cube")


def test_neighborhoods_older_than_the_split(cells):
    del cells.obs["split"]
    nk.pp.neighborhoods(cells, radius=40.0)
    with pytest.warns(UserWarning, match="made before this split"):
        nk.pp.split(cells, mpp=0.25)
    with pytest.raises(ValueError, match=r"edges between parts of obs\['split'\].*Run nk.pp.neighborhoods again"):
        nk.tl.nolan(cells, 3, use_rep="X_pca")


def test_split_without_training_cells(cells):
    cells.obs["split"] = pd.Categorical(["buffer"] * 1500)
    with pytest.raises(ValueError, match=r"no 'train' cell.*nk.pp.split"):
        nk.tl.nolan(cells, 3, use_rep="X_pca")


def test_missing_split_key(cells):
    with pytest.raises(KeyError, match=r"obs\['fold'\] is missing"):
        nk.tl.nolan(cells, 3, use_rep="X_pca", split_key="fold")


def test_no_seeds(cells):
    with pytest.raises(ValueError, match="n_seeds=0; it has to be at least 1"):
        nk.tl.nolan(cells, 3, use_rep="X_pca", n_seeds=0)


def test_usage_entropy_by_hand():
    assert usage_entropy(np.array([0, 1, 2, 3]), 4) == pytest.approx(1)
    assert usage_entropy(np.array([2, 2]), 4) == 0
    assert usage_entropy(np.array([0, 0, 1, 1]), 4) == pytest.approx(0.5)

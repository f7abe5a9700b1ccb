from __future__ import annotations

import json

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import nichekd as nk
from nichekd.tl import SlideSettings

QUICK = SlideSettings(d_model=16, d_attention=8, max_epochs=25, learning_rate=5e-3)


def cohort(n_slides: int = 40, n_cells: int = 40, seed: int = 0, share: float = 0.15) -> AnnData:
    """Slides of two classes; in the second some of the cells, ``marked``, have a feature high. A third are test."""
    rng = np.random.default_rng(seed)
    slide = np.repeat(np.arange(n_slides), n_cells)
    sick = slide % 2 == 1
    marked = sick & (rng.random(len(slide)) < share)
    x = rng.normal(size=(len(slide), 8))
    x[marked, 0] += 4
    obs = pd.DataFrame(
        {
            "slide": [f"s{i:02d}" for i in slide],
            "grade": pd.Categorical(np.where(sick, "high", "low")),
            "marked": marked,
            "split": np.where(slide % 3 == 0, "test", "train"),
        },
        index=[f"c{i}" for i in range(len(slide))],
    )
    return AnnData(obs=obs, obsm={"X_image": x.astype(np.float32), "spatial": rng.uniform(0, 100, (len(slide), 2))})


def train(adata, **kwargs):
    return nk.tl.slide_classifier(
        adata, **{"label_key": "grade", "library_key": "slide", "use_rep": "X_image", "fit": QUICK, **kwargs}
    )


def accuracy(adata, table) -> float:
    truth = adata.obs.groupby("slide", observed=True)[["grade", "split"]].first()
    test = truth.index[truth["split"] == "test"]
    found = table.set_index("library").loc[test, "predicted"]
    return float((found == truth.loc[test, "grade"].astype(str)).mean())


@pytest.fixture(scope="module")
def trained():
    adata = cohort()
    model = train(adata)
    return adata, model, nk.tl.predict_slides(adata, model, library_key="slide")


def test_planted_class_is_found_on_slides_it_never_saw(trained):
    adata, model, table = trained
    assert table.columns.tolist() == ["library", "predicted", "n_cells", "proba_high", "proba_low"]
    assert table[["proba_high", "proba_low"]].sum(axis=1).to_numpy() == pytest.approx(np.ones(40), abs=1e-5)
    assert accuracy(adata, table) > 0.85
    assert len(model.history["train_loss"]) == 25


def test_attention_is_on_the_cells_that_tell(trained):
    adata, _, _ = trained
    attention = adata.obs["attention"]
    assert attention.groupby(adata.obs["slide"]).mean().to_numpy() == pytest.approx(np.ones(40), rel=1e-4)
    assert attention[adata.obs["marked"]].mean() > 1.3 * attention[~adata.obs["marked"]].mean()


def test_permuted_labels_teach_nothing():
    adata = cohort()
    names = adata.obs["slide"].unique()
    grades = dict(zip(names, np.random.default_rng(3).permutation(["high", "low"] * 20), strict=True))
    adata.obs["other"] = adata.obs["slide"].map(grades)
    model = train(adata, label_key="other")
    table = nk.tl.predict_slides(adata, model, library_key="slide")
    truth = adata.obs.groupby("slide")[["other", "split"]].first()
    test = truth.index[truth["split"] == "test"]
    right = (table.set_index("library").loc[test, "predicted"] == truth.loc[test, "other"]).mean()
    assert 0.1 < right < 0.85


def test_order_of_cells_plays_no_part(trained):
    adata, model, table = trained
    order = np.random.default_rng(0).permutation(adata.n_obs)
    shuffled = adata[order].copy()
    again = nk.tl.predict_slides(shuffled, model, library_key="slide")
    assert again["proba_high"].to_numpy() == pytest.approx(table["proba_high"].to_numpy(), abs=1e-5)
    assert shuffled.obs["attention"].loc[adata.obs_names].to_numpy() == pytest.approx(
        adata.obs["attention"].to_numpy(), rel=1e-3
    )


def test_attention_sums_to_one_and_the_pool_is_its_mean(trained):
    _, model, _ = trained
    x = torch.randn(7, 8)
    logits, attention = model(x)
    assert attention.sum().item() == pytest.approx(1, abs=1e-5)
    embedding = model.embed(model.standardize(x))
    assert torch.allclose(logits, model.head((attention[:, None] * embedding).sum(0)), atol=1e-5)


def test_same_seed_saved_and_reloaded(trained, tmp_path):
    adata, model, table = trained
    again = train(cohort())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    loaded = nk.models.SlideClassifier.load(model.save(tmp_path / "slides"))
    assert nk.tl.predict_slides(adata, loaded, library_key="slide").equals(table)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    kept = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert np.array_equal(kept.obs["attention"], adata.obs["attention"])
    assert len(kept.uns["nichekd"]["slide_classifier"]["history"]["train_loss"]) == 25


def test_one_slide_without_a_library(trained):
    adata, model, _ = trained
    one = adata[adata.obs["slide"] == "s01"].copy()
    table = nk.tl.predict_slides(one, model)
    assert table["predicted"].tolist() == ["high"]
    assert table["n_cells"].tolist() == [40]


def test_features_of_the_same_kind_are_found_by_another_key_or_made():
    sdata = nk.datasets.simulate(80, K=2, mpp=0.5)
    adata = sdata["table"]
    adata.obs["slide"] = np.where(np.arange(80) % 4 < 2, "a", "b")
    adata.obs["grade"] = np.where(np.arange(80) % 4 < 2, "low", "high")
    nk.pp.histology_features(sdata, encoder="color", crop_px=16)
    model = nk.tl.slide_classifier(sdata, label_key="grade", library_key="slide", use_rep="X_color", fit=QUICK)
    expected = nk.tl.predict_slides(sdata, model, library_key="slide")
    other = nk.datasets.simulate(80, K=2, mpp=0.5)
    other["table"].obs["slide"] = adata.obs["slide"].to_numpy()
    pd.testing.assert_frame_equal(nk.tl.predict_slides(other, model, library_key="slide"), expected)
    other["table"].obsm["X_mine"] = other["table"].obsm.pop("X_color")
    notes = other["table"].uns["nichekd"]["features"]
    notes["X_mine"] = notes.pop("X_color")
    pd.testing.assert_frame_equal(nk.tl.predict_slides(other, model, library_key="slide"), expected)


def test_the_model_leaves_the_device_after_an_error(trained, monkeypatch):
    adata, model, _ = trained
    moves = []
    monkeypatch.setattr(model, "to", lambda where: moves.append(str(where)) or model)

    def broken(rows):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        nk.tl.predict_slides(adata, model, library_key="slide", device="cpu")
    assert len(moves) == 2
    assert moves[-1] == "cpu"


def test_slides_without_a_class_do_not_teach():
    adata = cohort(12)
    adata.obs["grade"] = adata.obs["grade"].where(adata.obs["slide"] != "s01")
    model = train(adata, fit=SlideSettings(max_epochs=1))
    assert model.config.training["n_slides"] == 7


def test_bad_training_input():
    adata = cohort(12)
    adata.obs["mixed"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    adata.obs["all_one"] = "x"
    adata.obs["half"] = np.where(np.arange(adata.n_obs) % 40 < 20, "train", "test")
    for kwargs, error, message in [
        ({"label_key": "none"}, KeyError, r"obs\['none'\]"),
        ({"library_key": "none"}, KeyError, r"obs\['none'\]"),
        ({"use_rep": "X_none"}, KeyError, r"obsm\['X_none'\]"),
        ({"label_key": "mixed"}, ValueError, r"obs\['mixed'\] differs between cells of the slides \['s00'"),
        ({"label_key": "all_one"}, ValueError, r"of the classes \['x'\]; there have to be two"),
        ({"split_key": "half"}, ValueError, r"obs\['half'\] goes through the slides"),
    ]:
        with pytest.raises(error, match=message):
            train(adata, **kwargs)
    adata.obsm["X_image"][50] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        train(adata)
    adata.obs.loc["c0", "slide"] = None
    with pytest.raises(ValueError, match=r"obs\['slide'\] is missing for 1 of"):
        train(adata)


def test_bad_prediction_input(trained, tmp_path):
    adata, model, _ = trained
    with pytest.raises(TypeError, match=r"SlideClassifier\.load"):
        nk.tl.predict_slides(adata, "model")
    with pytest.raises(KeyError, match="X_image"):
        nk.tl.predict_slides(AnnData(obsm={"X_other": np.ones((3, 8))}), model)
    with pytest.raises(ValueError, match="2 features; the model reads 8"):
        nk.tl.predict_slides(adata, model, use_rep="spatial")
    folder = model.save(tmp_path / "slides")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 9}))
    with pytest.raises(ValueError, match="of format 9"):
        nk.models.SlideClassifier.load(folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1, "d_model": 3}))
    with pytest.raises(ValueError, match="does not fit config.json"):
        nk.models.SlideClassifier.load(folder)

from __future__ import annotations

import sys

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import nichekd as nk


def cohort(n_slides: int = 60, n_cells: int = 6, seed: int = 0, *, planted: bool = True) -> AnnData:
    """Slides whose hazard is the exponential of one of their features; a third are censored."""
    rng = np.random.default_rng(seed)
    state = rng.normal(size=(n_slides, 4))
    hazard = np.exp(1.5 * state[:, 0]) if planted else np.ones(n_slides)
    time, censoring = rng.exponential(1 / hazard), rng.exponential(2 / hazard)
    slide = np.repeat(np.arange(n_slides), n_cells)
    x = state[slide] + 0.2 * rng.normal(size=(len(slide), 4))
    obs = pd.DataFrame(
        {
            "slide": [f"s{i:02d}" for i in slide],
            "months": np.minimum(time, censoring)[slide] + 0.01,
            "died": (time <= censoring)[slide],
        },
        index=[f"c{i}" for i in range(len(slide))],
    )
    return AnnData(obs=obs, obsm={"X_image": x.astype(np.float32)})


def survival(adata, **kwargs):
    given = {"time_key": "months", "event_key": "died", "library_key": "slide", "use_rep": "X_image", "n_components": 3}
    return nk.tl.survival(adata, **{**given, **kwargs})


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lifelines", None)
    with pytest.raises(ImportError, match=r"nichekd\[survival\]"):
        survival(cohort(10))


class TestWithLifelines:
    @pytest.fixture(autouse=True)
    def _lifelines(self):
        pytest.importorskip("lifelines")

    def test_planted_hazard_is_found_out_of_fold(self, tmp_path):
        adata = cohort()
        table = survival(adata)
        assert table.columns.tolist() == ["fold", "c_index", "n_slides", "n_events"]
        assert table["fold"].tolist() == ["0", "1", "2", "3", "4", "all"]
        pooled = table.iloc[-1]
        assert pooled["c_index"] > 0.65
        assert pooled["n_slides"] == 60
        assert table["n_events"].iloc[:-1].sum() == pooled["n_events"]
        risk = adata.obs.groupby("slide")["risk"].nunique()
        assert (risk == 1).all()
        adata.write_h5ad(tmp_path / "cells.h5ad")
        kept = anndata.read_h5ad(tmp_path / "cells.h5ad")
        assert kept.uns["nichekd"]["survival"]["c_index"] == pooled["c_index"]

    def test_permuted_times_are_chance(self):
        adata = cohort()
        per_slide = adata.obs.groupby("slide")[["months", "died"]].first()
        scores = []
        for seed in range(6):
            order = np.random.default_rng(seed).permutation(60)
            shuffled = per_slide.iloc[order].set_axis(per_slide.index)
            for key in ("months", "died"):
                adata.obs[key] = adata.obs["slide"].map(shuffled[key])
            scores.append(survival(adata)["c_index"].iloc[-1])
        assert np.mean(scores) == pytest.approx(0.5, abs=0.08)

    def test_c_index_by_hand(self):
        """Of the pairs that can be compared, those in which the one at higher risk died first."""
        adata = cohort(24)
        pooled = survival(adata, n_folds=3).iloc[-1]
        per = adata.obs.groupby("slide")[["months", "died", "risk"]].first()
        right = asked = 0.0
        for _, i in per.iterrows():
            for _, j in per.iterrows():
                if i["died"] and i["months"] < j["months"]:
                    asked += 1
                    right += float(i["risk"] > j["risk"])
        assert pooled["c_index"] == pytest.approx(right / asked)

    def test_weights_choose_the_cells(self):
        """Half the cells are noise; with weights that leave them out the hazard is seen."""
        adata = cohort(n_cells=8)
        noise = np.arange(adata.n_obs) % 2 == 0
        adata.obsm["X_image"][noise] = 30 * np.random.default_rng(1).normal(size=(noise.sum(), 4))
        adata.obs["attention"] = (~noise).astype(float)
        assert survival(adata, weight_key="attention")["c_index"].iloc[-1] > survival(adata)["c_index"].iloc[-1] + 0.1

    def test_groups_stay_in_one_fold(self):
        adata = cohort(40)
        adata.obs["patient"] = adata.obs["slide"].str[:2]
        table = survival(adata, group_key="patient", n_folds=4)
        assert table["n_slides"].iloc[:-1].tolist() == [10, 10, 10, 10]

    def test_slides_without_a_time_are_left_out(self, caplog):
        adata = cohort(30)
        adata.obs.loc[adata.obs["slide"] == "s03", "months"] = np.nan
        table = survival(adata)
        assert table["n_slides"].iloc[-1] == 29
        assert "1 of 30 slides miss a time" in caplog.text
        assert adata.obs.loc[adata.obs["slide"] == "s03", "risk"].isna().all()

    def test_a_table_with_no_events(self):
        adata = cohort(20)
        adata.obs["died"] = False
        with pytest.raises(ValueError, match=r"None of the 20 slides has an event.*event_key="):
            survival(adata)
        adata.obs.loc[adata.obs["slide"] == "s01", "died"] = True
        with pytest.raises(ValueError, match="events of 1 to fit on"):
            survival(adata)

    def test_bad_input(self):
        adata = cohort(20)
        adata.obs["zero"], adata.obs["word"], adata.obs["two"] = 0.0, "x", 2
        adata.obs["mixed"] = np.arange(adata.n_obs) + 1.0
        adata.obs["weight"] = -1.0
        adata.obs["nothing"] = 0.0
        for kwargs, error, message in [
            ({"time_key": "none"}, KeyError, r"obs\['none'\]"),
            ({"use_rep": "X_none"}, KeyError, r"obsm\['X_none'\]"),
            ({"time_key": "zero"}, ValueError, r"obs\['zero'\] is not above 0"),
            ({"time_key": "word"}, ValueError, r"obs\['word'\] holds \['x'\]; time has to be a number"),
            ({"event_key": "two"}, ValueError, r"obs\['two'\] holds \[2.0\]; it has to be 0 or 1|holds .*2.0"),
            ({"time_key": "mixed"}, ValueError, r"obs\['mixed'\] differs between cells"),
            ({"n_folds": 1}, ValueError, "n_folds=1"),
            ({"n_folds": 21}, ValueError, "n_folds=21"),
            ({"n_components": 0}, ValueError, "n_components=0"),
            ({"weight_key": "weight"}, ValueError, "negative or missing"),
            ({"weight_key": "nothing"}, ValueError, "is 0 for all cells of slide 's00'"),
        ]:
            with pytest.raises(error, match=message):
                survival(adata, **kwargs)

"""Slide classes and survival on simulated cohorts: is a planted signal found, and none where it is permuted?

    python benchmarks/rank_by_gene_cohorts.py

No cohort ships with the package or was at hand, so nothing here is about real tissue. Cells have 16 image features of
unit variance; slides differ by a shift of their own in all of them, as stain and scanner do.

Classes: in half of the slides a share of the cells has the first feature raised by 3. Trained on two thirds of the
slides, judged on the others, by the area under the ROC curve; beside the attention, logistic regression on the slides'
mean features. Permuted: the same with classes dealt out anew to the slides.

Survival: the hazard of a slide is exp(s) with s the mean of its first feature, in units of its standard deviation over
slides; half of the times are censored at random. C-index out of fold, and
that of the true hazard. Permuted: times and events dealt out anew.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from lifelines.utils import concordance_index
from rank_by_gene import about, plain
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import nichekd as nk

RESULTS = Path(__file__).parent / "results"
N_SLIDES, N_CELLS, N_FEATURES, SHIFT = 120, 200, 16, 0.3
FIT = nk.tl.SlideSettings(d_model=32, d_attention=16, max_epochs=30, learning_rate=3e-3)


def cohort(seed: int, *, share: float) -> ad.AnnData:
    """Cells of all slides, with the class, the time and the event of their slide."""
    rng = np.random.default_rng(seed)
    slide = np.repeat(np.arange(N_SLIDES), N_CELLS)
    x = rng.normal(size=(len(slide), N_FEATURES)) + SHIFT * rng.normal(size=(N_SLIDES, N_FEATURES))[slide]
    marked = (slide % 2 == 1) & (rng.random(len(slide)) < share)
    x[marked, 0] += 3
    state = np.array([x[slide == one, 0].mean() for one in range(N_SLIDES)])
    hazard = np.exp((state - state.mean()) / state.std())
    death, visit = rng.exponential(1 / hazard), rng.exponential(1 / hazard)
    clinical = pd.DataFrame(
        {
            "slide": [f"s{i:03d}" for i in range(N_SLIDES)],
            "log_hazard": np.log(hazard),
            "grade": np.where(np.arange(N_SLIDES) % 2 == 1, "high", "low"),
            "months": np.minimum(death, visit) + 1e-3,
            "died": death <= visit,
            "split": np.where(np.arange(N_SLIDES) // 2 % 3 == 0, "test", "train"),
        }
    )
    obs = clinical.iloc[slide].set_axis([f"c{i}" for i in range(len(slide))]).assign(marked=marked)
    return ad.AnnData(obs=obs, obsm={"X_image": x.astype(np.float32)})


def permuted(adata: ad.AnnData, columns: list[str], seed: int) -> ad.AnnData:
    """The same slides with the columns of others."""
    per_slide = adata.obs.groupby("slide", observed=True)[columns].first()
    dealt = per_slide.iloc[np.random.default_rng(seed).permutation(len(per_slide))].set_axis(per_slide.index)
    adata = adata.copy()
    for column in columns:
        adata.obs[column] = adata.obs["slide"].map(dealt[column]).to_numpy()
    return adata


def classes(adata: ad.AnnData, seed: int) -> dict[str, float]:
    given = {"label_key": "grade", "library_key": "slide", "use_rep": "X_image"}
    model = nk.tl.slide_classifier(adata, **given, seed=seed, fit=FIT)
    table = nk.tl.predict_slides(adata, model, library_key="slide").set_index("library")
    per_slide = adata.obs.groupby("slide", observed=True)[["grade", "split"]].first()
    test = per_slide.index[per_slide["split"] == "test"]
    train = per_slide.index[per_slide["split"] == "train"]
    means = pd.DataFrame(adata.obsm["X_image"], index=adata.obs["slide"].to_numpy()).groupby(level=0).mean()
    high = per_slide["grade"] == "high"
    ridge = LogisticRegression().fit(means.loc[train], high[train])
    attention, marked = adata.obs["attention"], adata.obs["marked"]
    sick = adata.obs["slide"].isin(per_slide.index[high])
    return {
        "auc": float(roc_auc_score(high[test], table.loc[test, "proba_high"])),
        "auc_mean_features": float(roc_auc_score(high[test], ridge.predict_proba(means.loc[test])[:, 1])),
        "attention_of_marked": float(attention[marked].mean() / attention[sick & ~marked].mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1])
    parser.add_argument("--out", type=Path, default=RESULTS / "rank_by_gene_cohorts.json")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    nk.settings.progress = False
    start, rows = time.process_time(), []
    for seed in arguments.seeds:
        for share in arguments.shares:
            adata = cohort(seed, share=share)
            for signal, one in (("planted", adata), ("permuted", permuted(adata, ["grade"], seed))):
                rows.append({"task": "classes", "signal": signal, "share": share, "seed": seed} | classes(one, seed))
                print(rows[-1], flush=True)
        adata = cohort(seed, share=0.0)
        for signal, one in (("planted", adata), ("permuted", permuted(adata, ["months", "died"], seed))):
            found = nk.tl.survival(
                one, time_key="months", event_key="died", library_key="slide", use_rep="X_image", seed=seed
            )
            pooled = found.iloc[-1]
            truth = one.obs.groupby("slide", observed=True)[["months", "died", "log_hazard"]].first()
            best = concordance_index(truth["months"], -truth["log_hazard"], truth["died"])
            row = {"c_index": float(pooled["c_index"]), "n_events": int(pooled["n_events"])}
            row |= {"c_index_true_hazard": float(best)}
            rows.append({"task": "survival", "signal": signal, "seed": seed} | row)
            print(rows[-1], flush=True)
    runs = pd.DataFrame(rows)
    measured = ["auc", "auc_mean_features", "attention_of_marked", "c_index", "c_index_true_hazard"]
    groups = runs.groupby(["task", "share", "signal"], sort=False, dropna=False)[measured].agg(["mean", "std"])
    groups.columns = [f"{column}_{what}".removesuffix("_mean") for column, what in groups.columns]
    result = about() | {"n_slides": N_SLIDES, "n_cells": N_CELLS, "cpu_seconds": round(time.process_time() - start, 1)}
    result |= {"table": plain(groups.round(4).reset_index()), "runs": plain(runs)}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(groups.to_string(float_format="%.3f"))


if __name__ == "__main__":
    main()

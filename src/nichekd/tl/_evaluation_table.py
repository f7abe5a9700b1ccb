"""From finished runs to the tables: scores of each run, then mean and standard deviation."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from nichekd._calibration import brier_score, expected_calibration_error
from nichekd._files import written
from nichekd._keys import Keys, Split
from nichekd._labels import REFERENCE, labels_of, subset_mask
from nichekd._resolve import split_of
from nichekd.tl._evaluation_scratch import ANNOTATION, CELL_TYPES, JUDGED

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

    from nichekd.tl._evaluation_methods import Method, Outcome
    from nichekd.tl._evaluation_plan import Plan

log = logging.getLogger(__name__)

SCORES = ("ARI", "NMI", "JSD", "macro_f1", "KL", "ECE", "Brier", "ECE_calibrated", "Brier_calibrated", "seconds")
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
SOFT = "teacher_soft"  # obsm of the scratch table: the teacher's answer as its students are taught it
#: files, and the scores in each
PARTS = {
    "agreement.csv": ("ARI", "NMI"),
    "composition.csv": ("JSD", "p_value", "n_matched", "n_unmatched"),
    "probe.csv": ("macro_f1",),
    "calibration.csv": ("KL", "ECE", "Brier", "ECE_calibrated", "Brier_calibrated"),
}


class Tables(NamedTuple):
    """Results of an evaluation: means over seeds, scores of each seed, and niches of each teacher."""

    means: pd.DataFrame
    runs: pd.DataFrame
    teachers: pd.DataFrame


def scores(adata: AnnData, method: Method, outcome: Outcome, *, n_permutations: int) -> dict[str, Any]:
    """Of one method, on the test cells of a scratch table that holds the teacher's niches."""
    from nichekd.tl._agreement import agreement
    from nichekd.tl._composition_divergence import composition_divergence
    from nichekd.tl._pathology_probe import pathology_probe

    n_names = max(len(adata.obs[REFERENCE].cat.categories), int(outcome.labels.max()) + 1)
    judged = f"{JUDGED}{method.key}"
    adata.obs[judged] = pd.Categorical.from_codes(outcome.labels, categories=[str(k) for k in range(n_names)])
    found = agreement(adata, keys=judged).iloc[0].to_dict() | {"key": method.key}
    if CELL_TYPES in adata.obs:
        divergence = composition_divergence(adata, keys=judged, cell_type_key=CELL_TYPES, n_permutations=n_permutations)
        found |= divergence.drop(columns=["key", "n_cells"]).iloc[0].to_dict()
    if ANNOTATION in adata.obs:
        probe = pathology_probe(adata, keys=judged, annotation_key=ANNOTATION)
        found["macro_f1"] = probe["macro_f1"].iloc[0]
    test = subset_mask(adata, Split.TEST)
    truth = labels_of(adata, REFERENCE).codes[test]
    if outcome.proba.size:
        found["KL"] = _divergence(adata.obsm[SOFT][test], outcome.proba[test].astype(np.float64))
    for proba, suffix in ((outcome.proba, ""), (outcome.calibrated, "_calibrated")):
        if proba.size:
            here = proba[test].astype(np.float64)
            found[f"ECE{suffix}"] = expected_calibration_error(here, truth)
            found[f"Brier{suffix}"] = brier_score(here, truth)
    return {"role": method.role, **found, "seconds": outcome.seconds}


def soft_answer(adata: AnnData) -> NDArray[np.float64]:
    """The teacher's probabilities at the temperature at which its logits are distilled, (n, K)."""
    from scipy.special import softmax

    from nichekd.tl._distill_setup import temperature_of
    from nichekd.tl._teacher import resolve_teacher

    target = resolve_teacher(adata, Keys.logits(Keys.TEACHER))
    train = np.flatnonzero((split_of(adata) == Split.TRAIN) & target.teaches)
    return softmax(target.logits.astype(np.float64) / temperature_of("auto", target, train), axis=1)


def _divergence(target: NDArray[np.float64], proba: NDArray[np.float64]) -> float:
    """Mean KL(target ‖ proba), nats."""
    from scipy.special import rel_entr

    # half precision has no smaller number: what was kept as 0 may have been as large
    return float(rel_entr(target, np.maximum(proba, SMALLEST)).sum(axis=1).mean())


def teacher_probe(adata: AnnData) -> dict[str, Any]:
    """The teacher's own row: it agrees with itself, but not with the pathologist."""
    from nichekd.tl._pathology_probe import pathology_probe

    probe = pathology_probe(adata, annotation_key=ANNOTATION, keys=[REFERENCE])
    return {"key": REFERENCE, "role": "reference", **probe[["macro_f1", "n_cells"]].iloc[0].to_dict()}


def averaged(runs: pd.DataFrame, *, over: str) -> pd.DataFrame:
    """Mean, standard deviation (``<score>_sd``, of the sample) and number of runs, a row per K and method.

    ``p_value`` is the largest of the runs, ``n_matched`` and ``n_unmatched`` their means.
    """
    rows = []
    for (n_niches, key), group in runs.groupby(["K", "key"], sort=False):
        row: dict[str, Any] = {"K": n_niches, "key": key, "role": group["role"].iloc[0]}
        for name in SCORES:
            if name in group:
                row[name] = group[name].mean()
                row[f"{name}_sd"] = group[name].std(ddof=1)
            if name == "JSD" and "p_value" in group:
                row["p_value"] = group["p_value"].max()
                row |= {count: group[count].mean() for count in ("n_matched", "n_unmatched")}
        row |= {"n_cells": int(group["n_cells"].max(skipna=True)) if group["n_cells"].notna().any() else 0}
        rows.append(row | {f"n_{over}": len(group)})
    table = pd.DataFrame(rows)
    return table.drop(columns=[name for name in table if table[name].isna().all() and not name.endswith("_sd")])


def tables_of(runs: pd.DataFrame, teachers: pd.DataFrame) -> Tables:
    """With the means over seeds; K and seeds in their order, methods as they come."""
    runs = runs.sort_values(["K", "seed"], kind="stable", ignore_index=True)
    return Tables(
        averaged(runs, over="seeds"), runs, teachers.sort_values(["K", "seed"], kind="stable", ignore_index=True)
    )


def part_of(frame: pd.DataFrame, plan: Plan, keys: Collection[str] | None = None) -> pd.DataFrame:
    """The rows of a plan's K and seeds, and of these methods."""
    asked = frame["K"].isin(plan.K) & frame["seed"].isin(plan.seeds)
    return frame[asked if keys is None else asked & frame["key"].isin(keys)]


def write_tables(tables: Tables, out: Path) -> None:
    """``evaluation.csv``, ``runs.csv``, ``teachers.csv``, and of the first the paper's tables, each a file.

    A part of which there is no score goes.
    """
    table = tables.means
    shown = {"evaluation.csv": table, "runs.csv": tables.runs, "teachers.csv": tables.teachers}
    index = [name for name in ("dataset", "K", "key", "role") if name in table]
    counts = [name for name in ("n_cells", "n_seeds", "n_datasets") if name in table]
    for name, columns in PARTS.items():
        with_sd = [full for column in columns for full in (column, f"{column}_sd") if full in table]
        if with_sd:
            shown[name] = table.loc[table[with_sd[0]].notna(), index + with_sd + counts]
    out.mkdir(parents=True, exist_ok=True)
    for name in set(PARTS) - set(shown):
        (out / name).unlink(missing_ok=True)
    for name, frame in shown.items():
        with written(out / name) as new:
            frame.to_csv(new, index=False, float_format="%.6g")
    log.info("tables in %s: %s", out, ", ".join(shown))

"""Figures of an evaluation of the section, and what its student's probabilities are worth.

    python benchmarks/section_figures.py SECTION section-evaluation

SECTION is the folder that ``pancreas_section.py`` was given, and the other one what it wrote; it has to have finished.
Draws the niches, the compositions and the bars of agreement with floors and ceilings into ``docs/_static``, and writes
to ``results/section_probabilities.json``, of the test strip: how entropy differs between the borders of niches and
their inside, and the accuracy of the surest cells (risk against coverage).
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pancreas_section import MAIN, RESULTS, section

import nichekd as nk
from nichekd.tl._evaluation_folder import EvaluationFolder

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

STATIC = Path(__file__).parents[1] / "docs" / "_static"
COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
BORDER = 0.2  # share of neighbors with another of the teacher's niches that makes a cell one of a border
STUDENTS = ("niche", "niche_gene_aware")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", type=Path)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("-K", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    sdata = section(options.section, fast=False)
    adata = sdata["table"]
    nk.pp.split(sdata)
    nk.pp.neighborhoods(sdata)
    folder, run = EvaluationFolder(options.evaluation), f"K{options.K}_seed{options.seed}"
    proba = take_results(adata, folder, run, options.K)
    rows = pd.DataFrame(json.loads((RESULTS / "pancreas_section.json").read_text())["rows"])
    draw(sdata, rows[rows["K"] == options.K])
    result = {"K": options.K, "seed": options.seed} | {key: probabilities(adata, key, proba[key]) for key in STUDENTS}
    (RESULTS / "section_probabilities.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def take_results(adata: AnnData, folder: EvaluationFolder, run: str, n_niches: int) -> dict[str, NDArray[np.float32]]:
    """Labels of teacher and methods as columns; returns the students' calibrated probabilities."""
    codes = {"niche_teacher": folder.arrays(run, "teacher")["logits"].argmax(1)}
    codes |= {key: folder.outcome(run, key).labels for key in MAIN}
    for key, code in codes.items():
        adata.obs[key] = pd.Categorical.from_codes(code, [str(k) for k in range(max(n_niches, code.max() + 1))])
    return {key: folder.outcome(run, key).calibrated.astype(np.float32) for key in STUDENTS}


def draw(sdata: SpatialData, table: pd.DataFrame) -> None:
    """The figures of the docs."""
    nk.pl.niches(sdata, keys=["niche_teacher", *MAIN], subset="test", save=STATIC / "section_niches.png", dpi=120)
    nk.pl.composition(
        sdata, cell_type_key="cell_type", keys=["niche_gene_aware", "niche"], subset="test", save=STATIC / "section_composition.png",
        dpi=120,
    )  # fmt: skip
    nk.pl.agreement(table, save=STATIC / "section_agreement.png", dpi=120)


def probabilities(adata: AnnData, key: str, proba: NDArray[np.float32]) -> dict[str, object]:
    """Entropy at borders and inside, and accuracy by coverage, of the test strip."""
    test = (adata.obs["split"] == "test").to_numpy()
    truth = adata.obs["niche_teacher"].cat.codes.to_numpy()
    entropy = -(proba * np.log(np.maximum(proba, 1e-12))).sum(1) / np.log(proba.shape[1])
    border = other_niches(adata, truth) >= BORDER
    right = (proba.argmax(1) == truth)[test][np.argsort(-proba[test].max(1), kind="stable")]
    return {
        "n_border": int((test & border).sum()),
        "n_inside": int((test & ~border).sum()),
        "entropy_border": round(float(entropy[test & border].mean()), 3),
        "entropy_inside": round(float(entropy[test & ~border].mean()), 3),
        "accuracy_by_coverage": {str(c): round(float(right[: round(c * len(right))].mean()), 3) for c in COVERAGES},
    }


def other_niches(adata: AnnData, truth: NDArray[np.integer]) -> NDArray[np.float64]:
    """Share of each cell's neighbors that are in another niche, (n,)."""
    graph = adata.obsp["spatial_connectivities"].tocsr()
    row = np.repeat(np.arange(adata.n_obs), np.diff(graph.indptr))
    other = np.bincount(row, weights=truth[row] != truth[graph.indices], minlength=adata.n_obs)
    return other / np.maximum(np.diff(graph.indptr), 1)


if __name__ == "__main__":
    main()

"""What it adds to give each cell the mean answer of its neighborhood.

    python benchmarks/smoothing.py SECTION section-evaluation

SECTION is the folder that ``pancreas_section.py`` was given, and the other one what it wrote. Takes what each method
said of the test strip, averages it over each cell and its neighbors there (the logarithms of a student's calibrated
probabilities, the votes of other methods), and scores the labels before and after. Nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pancreas_section import RESULTS, section
from scipy.sparse import eye_array
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import nichekd as nk
from nichekd.tl._evaluation_folder import EvaluationFolder

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_array

    from nichekd.tl._evaluation_methods import Outcome

METHODS = (
    "niche_gene_aware", "niche", "niche_histology_nolan", "niche_histology_leiden", "niche_color", "niche_shuffled",
    "niche_own_crop",
)  # fmt: skip
SCORES = {"ARI": adjusted_rand_score, "NMI": normalized_mutual_info_score}
LEAST = 1e-6  # probabilities are kept as float16, in which the smallest are 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", type=Path)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("-K", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    sdata = section(options.section, fast=False)
    nk.pp.split(sdata)
    nk.pp.neighborhoods(sdata)
    adata = sdata["table"]
    test = np.flatnonzero(adata.obs["split"] == "test")
    graph = (adata.obsp["spatial_connectivities"][test][:, test] > 0) + eye_array(len(test), dtype=bool)
    folder, rows = EvaluationFolder(options.evaluation), []
    for K in options.K:
        for seed in options.seeds:
            run = f"K{K}_seed{seed}"
            truth = folder.arrays(run, "teacher")["logits"].argmax(1)[test]
            for key in METHODS:
                if folder.has(run, key):
                    rows.append({"K": K, "key": key} | scores(truth, folder.outcome(run, key), test, graph))
    table = pd.DataFrame(rows).groupby(["K", "key"], sort=False).mean().join(
        pd.DataFrame(rows).groupby(["K", "key"]).size().rename("n_seeds")
    ).round(3).reset_index()  # fmt: skip
    print(table.to_string(index=False))
    (RESULTS / "smoothing.json").write_text(json.dumps({"rows": table.to_dict("records")}, indent=1) + "\n")


def scores(
    truth: NDArray[np.integer], outcome: Outcome, test: NDArray[np.integer], graph: csr_array
) -> dict[str, float]:
    """Of a method's own labels, and of those of the mean answers."""
    own = outcome.labels[test]
    answers = (
        np.log(np.maximum(outcome.calibrated[test].astype(np.float32), LEAST))
        if outcome.calibrated.size
        else votes(own)
    )
    mean = (graph.astype(np.float32) @ answers).argmax(1)
    return {name: score(truth, own) for name, score in SCORES.items()} | {
        f"{name}_of_means": score(truth, mean) for name, score in SCORES.items()
    }


def votes(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """One for each cell, (n, niches)."""
    return np.eye(labels.max() + 1, dtype=np.float32)[labels]


if __name__ == "__main__":
    main()

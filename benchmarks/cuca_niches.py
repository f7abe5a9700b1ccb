"""Do abundances from H&E make niches? What CUCA predicts, clustered, against the distilled student.

    python benchmarks/cuca.py --table section.h5ad --image he.ome.tif --units cells --types cell_type --keep kept
    python benchmarks/cuca_niches.py section.h5ad --runs section-evaluation/runs --keep kept

Compositions within the radius the types were counted in are averaged over each cell's neighborhood (the graph of the
teacher), clustered into K by k-means on training cells, and compared with the teacher's niches on the test strip;
beside them the student that was distilled from that teacher, on the same cells, and, as the ceiling of this way, the
true composition clustered alike. Runs are those of pancreas_section.py, a teacher and a student a seed.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from cuca_methods import about_this
from cuca_units import TRUTH, cell_unit
from scipy import sparse
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

RESULTS = Path(__file__).parent / "results"


def clustered(values: np.ndarray, graph: sparse.csr_matrix, fitted: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Niches of compositions averaged over neighborhoods."""
    around = graph @ values / np.asarray(graph.sum(1)).reshape(-1, 1)
    share = around / np.maximum(around.sum(1, keepdims=True), 1e-9)
    means = MiniBatchKMeans(k, n_init=10, batch_size=4096, random_state=seed).fit(share[fitted])
    return means.predict(share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("-K", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    cells = cell_unit(ad.read_h5ad(options.table), "cell_type", 27.5, around=False)
    split = cells.obs["split"].astype(str).to_numpy()
    train, test = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")
    graph = sparse.csr_matrix(cells.obsp["spatial_connectivities"]) + sparse.eye_array(cells.n_obs)
    graph = sparse.csr_matrix((np.ones(graph.nnz), graph.indices, graph.indptr), graph.shape)
    rows = []
    for k in options.K:
        for seed in options.seeds:
            folder = options.runs / f"K{k}_seed{seed}"
            teacher = np.load(folder / "teacher.npz")["logits"].argmax(axis=1)
            student = np.load(folder / "niche.npz")["labels"]
            predicted = pd.read_csv(options.keep / f"abundance_seed{seed}.csv", index_col=0)
            found = {
                "distilled student": student,
                "CUCA, clustered": clustered(predicted.to_numpy(), graph, train, k, seed),
                "true composition, clustered": clustered(cells.obsm[TRUTH].to_numpy(), graph, train, k, seed),
            }
            for name, labels in found.items():
                pair = teacher[test], labels[test]
                scores = {"ARI": adjusted_rand_score(*pair), "NMI": normalized_mutual_info_score(*pair)}
                rows.append({"K": k, "seed": seed, "method": name, "n_test": len(test)} | scores)
    RESULTS.mkdir(exist_ok=True)
    result = about_this("cuca_niches.py") | {"rows": rows}
    (RESULTS / "cuca_niches.json").write_text(json.dumps(result, indent=1, default=float) + "\n")
    print(pd.DataFrame(rows).groupby(["K", "method"], sort=False)[["ARI", "NMI"]].agg(["mean", "std"]).round(3))


if __name__ == "__main__":
    main()

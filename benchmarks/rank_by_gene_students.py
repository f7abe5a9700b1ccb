"""The niche student on features ordered by genes, beside the same student on the features they were made of.

    python benchmarks/pancreas_section.py SECTION --out section-evaluation
    python benchmarks/rank_by_gene_students.py section.h5ad --evaluation section-evaluation

``section.h5ad`` is the section's table with its frozen features and the split; the folder is that of the finished
evaluation, from which come the teachers, a seed each, and the labels of the students on frozen and on gene-aware
features. Only the students on aligned features are taught here, by the same teachers, with the same settings; the model
that aligns is trained with the seed of its student. ARI and NMI are on the test strip, which neither of them saw.
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
from pancreas_section import FIT
from rank_by_gene import ALIGNED, REP, SETTINGS, about, plain, prepared
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import nichekd as nk
from nichekd._memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results"
FINISHED = {REP: "niche", "X_gene_aware": "niche_gene_aware"}


def scores(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    return {
        "ARI": float(adjusted_rand_score(truth, found)),
        "NMI": float(normalized_mutual_info_score(truth, found)),
    }


def one(adata: ad.AnnData, folder: Path, n_niches: int, seed: int, *, test: np.ndarray):
    """Rows of the students with one teacher."""
    runs = folder / "runs" / f"K{n_niches}_seed{seed}"
    logits = np.load(runs / "teacher.npz")["logits"]
    if len(logits) != adata.n_obs:
        raise ValueError(f"{runs} has {len(logits):,} cells, the table {adata.n_obs:,}; they have to be the same.")
    truth = logits.argmax(axis=1)[test]
    for key, name in FINISHED.items():
        kept = np.load(runs / f"{name}.npz")
        yield {"features": key, **scores(truth, kept["labels"][test]), "seconds": float(kept["seconds"])}
    start = time.process_time()
    student = nk.tl.distill(adata, n_niches, use_rep=ALIGNED, teacher=logits, seed=seed, fit=FIT)
    found = adata.obsm["student_logits"].argmax(axis=1)[test]
    del student
    yield {"features": ALIGNED, **scores(truth, found), "cpu_seconds": time.process_time() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help=f"cells with counts, obsm[{REP!r}] and obs['split'] (.h5ad)")
    parser.add_argument("--evaluation", type=Path, required=True, help="folder of pancreas_section.py --out")
    parser.add_argument("-K", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "rank_by_gene_students.json")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    keep_freed_memory()
    nk.settings.progress = False
    adata = ad.read_h5ad(arguments.table)
    test = (adata.obs["split"] == "test").to_numpy()
    rows: list[dict] = []
    for seed in arguments.seeds:
        model = nk.tl.rank_by_gene(prepared(adata), use_rep=REP, seed=seed, fit=SETTINGS)
        nk.tl.embed_histology(adata, model, use_rep=REP)
        for n_niches in arguments.K:
            for row in one(adata, arguments.evaluation, n_niches, seed, test=test):
                rows.append({"K": n_niches, "seed": seed} | row)
                print(rows[-1], flush=True)
            runs = pd.DataFrame(rows)
            table = runs.groupby(["K", "features"], sort=False)[["ARI", "NMI"]].agg(["mean", "std", "count"])
            table.columns = [f"{column}_{what}".removesuffix("_mean") for column, what in table.columns]
            result = about() | {"n_cells": adata.n_obs, "n_test": int(test.sum())}
            result |= {"table": plain(table.round(4).reset_index()), "runs": plain(runs)}
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table.to_string(float_format="%.3f"))


if __name__ == "__main__":
    main()

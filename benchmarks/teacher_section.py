"""Teachers on the pancreas section: how well their niches explain what cell types a neighborhood holds.

    python benchmarks/teacher_section.py SECTION

SECTION is a folder with ``cells.h5ad`` (counts, centres in µm); the leftmost quarter of its cells is taken, K = 10. No
one annotated niches here, so that each method is asked how much of the variance of neighborhoods' cell-type composition
(shares of types within the radius) lies between its niches rather than within them, and how much a cell's niche tells
of its type (mutual information, bits). All cells take part. NOLAN and k-means see expression and places, no cell types;
squidpy's ``neighborhood`` flavour is made of the very types that it is judged by.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scanpy as sc
import teacher
from pancreas_section import RESULTS, left_quarter
from sklearn.metrics import mutual_info_score

import nichekd as nk
from nichekd._memory import keep_freed_memory

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

CELL_TYPE = "cell_type"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", type=Path)
    parser.add_argument("-K", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    keep_freed_memory()
    nk.settings.progress = False
    # of more cells than 8,192 scanpy asks pynndescent, whose graph it can't read; squidpy asks scanpy
    sc.pp.neighbors = partial(sc.pp.neighbors, transformer="sklearn")
    teacher.K, teacher.CELL_TYPE = options.K, CELL_TYPE
    teacher.RESOLUTIONS = [0.05, 0.1, 0.2, 0.4, 0.8]
    adata = left_quarter(options.section)
    nk.pp.neighborhoods(adata)
    nk.pp.expression_features(adata, seed=options.seeds[0])
    composition = neighborhood_composition(adata)
    rows = []
    for seed in options.seeds:
        for name, label in methods(first=seed == options.seeds[0]).items():
            started = time.perf_counter()
            found = label(adata, seed)
            for method, labels in found.items() if isinstance(found, dict) else [(name, found)]:
                row = {"method": method, "seed": seed} | scores(adata, composition, np.asarray(labels))
                rows.append(row | {"seconds": round(time.perf_counter() - started)})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows).drop(columns="seed").groupby("method", sort=False).agg(["mean", "std"])
    table.columns = ["_".join(column).removesuffix("_mean") for column in table.columns]
    result = {
        "n_cells": adata.n_obs,
        "K": options.K,
        "seeds": options.seeds,
        "versions": {name: version(name) for name in ("nichekd", "squidpy", "scanpy", "scvi-tools", "scikit-learn")},
        "rows": json.loads(table.reset_index().to_json(orient="records")),
    }
    (RESULTS / "teacher_section.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table.to_string(float_format="%.3f"))


def methods(*, first: bool) -> dict:
    """Functions of table and seed; those that take no seed run with the first only."""
    found = {"ours": teacher.ours}
    if first:
        found |= {
            "squidpy neighborhood": lambda adata, _: teacher.neighborhood(adata, "radius", CELL_TYPE),
            "squidpy utag": lambda adata, _: teacher.utag(adata, "radius"),
            "squidpy cellcharter": lambda adata, seed: teacher.cellcharter(adata, "delaunay", 3, "scVI", seed),
        }
    return found


def neighborhood_composition(adata: AnnData) -> NDArray[np.float64]:
    """Shares of cell types within the radius, the cell included, (n, types)."""
    types = pd.get_dummies(adata.obs[CELL_TYPE]).to_numpy(dtype=float)
    total = adata.obsp["spatial_connectivities"] @ types + types
    return total / total.sum(1, keepdims=True)


def scores(adata: AnnData, composition: NDArray[np.float64], labels: NDArray) -> dict[str, float]:
    """Variance of compositions explained, and mutual information with the cell types."""
    means = pd.DataFrame(composition).groupby(labels).transform("mean").to_numpy()
    within, total = ((composition - means) ** 2).sum(), ((composition - composition.mean(0)) ** 2).sum()
    bits = mutual_info_score(adata.obs[CELL_TYPE].astype(str), labels.astype(str)) / np.log(2)
    return {"variance_explained": 1 - within / total, "bits": bits, "n_niches": len(set(labels.tolist()))}


if __name__ == "__main__":
    main()

"""Nuclei by nk.pp.segment_nuclei against the assay's cells, on the pancreas section.

    python benchmarks/segmentation.py --data ../shared/data/pancreas/section

The section's cells were outlined by the assay from its own nuclear and membrane stains; some have no nucleus in the
plane of the cut, so no method that sees nuclei can find all. A nucleus and a cell match if their centroids are at most
5 µm apart; of all one-to-one matchings the largest counts. Settings were chosen on two windows of 1 mm² in the upper
half of the section (y < 1,080 µm): the lower half is what counts, both are reported. Wall time is of the whole call,
by the number of threads given; CPU seconds hardly depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

MATCH_UM = 5.0
TUNED_BELOW_UM = 1080.0  # half the section's height
RESULTS = Path(__file__).parent / "results"


def matched(found: np.ndarray, true: np.ndarray) -> int:
    """Pairs in the largest one-to-one matching within reach."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching
    from scipy.spatial import cKDTree

    near = cKDTree(found).sparse_distance_matrix(cKDTree(true), MATCH_UM, output_type="coo_matrix")
    graph = csr_array((np.ones(near.nnz), (near.row, near.col)), shape=(len(found), len(true)))
    return int(np.count_nonzero(maximum_bipartite_matching(graph, perm_type="column") >= 0))


def score(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    n = matched(found, true)
    return {
        "n_cells": len(true),
        "n_nuclei": len(found),
        "count_ratio": round(len(found) / len(true), 4),
        "precision": round(n / len(found), 4),
        "recall": round(n / len(true), 4),
        "F1": round(2 * n / (len(found) + len(true)), 4),
    }


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)


def run(folder: Path, n_jobs: int) -> dict:
    import anndata as ad

    import nichekd as nk

    sdata = nk.io.slide(folder / "he.ome.tif", mpp=0.274)
    before = peak_mb()
    wall, cpu = time.perf_counter(), time.process_time()
    nk.pp.segment_nuclei(sdata, n_jobs=n_jobs)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    _, height, width = sdata["he"]["scale0"]["image"].shape if hasattr(sdata["he"], "children") else sdata["he"].shape
    area = height * width * 0.274**2 / 1e6
    table = sdata["table"]
    found, true = table.obsm["spatial"], ad.read_h5ad(folder / "cells.h5ad").obsm["spatial"]
    upper = [it[:, 1] < TUNED_BELOW_UM for it in (found, true)]
    notes = table.uns["nichekd"]["segment_nuclei"]
    return {
        "lower_half": score(found[~upper[0]], true[~upper[1]]),
        "upper_half_tuned_on": score(found[upper[0]], true[upper[1]]),
        "section": score(found, true),
        "match_um": MATCH_UM,
        "slide_mm2": round(area, 2),
        "tissue_mm2": round(float(notes["tissue_mm2"]), 2),
        "threshold": round(float(notes["threshold"]), 4),
        "n_jobs": n_jobs,
        "wall_s": round(wall, 1),
        "wall_s_per_mm2": round(wall / area, 2),
        "cpu_s": round(cpu, 1),
        "cpu_s_per_mm2": round(cpu / area, 2),
        "peak_mb": round(peak_mb()),
        "peak_mb_before": round(before),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with he.ome.tif and cells.h5ad")
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "segmentation.json")
    args = parser.parse_args()
    result = run(args.data, args.n_jobs)
    result |= {
        "load_average": [round(it, 1) for it in os.getloadavg()],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("nichekd", "numpy", "scipy", "scikit-image", "shapely")},
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

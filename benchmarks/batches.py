"""Batches of small blocks of tissue against smaller ones, and random cells: loss, agreement, and what they cost.

    python benchmarks/batches.py SECTION

SECTION is a folder with ``cells.h5ad`` (counts, centres in µm, and ``obsm["teacher_logits"]`` of a teacher with 10
niches, or one is trained) and ``he.ome.tif``; the leftmost quarter of its cells is taken. One teacher and one set of
frozen features; students of three seeds each way: their loss by epoch, and agreement with the teacher on the test
strip.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pancreas_section import RESULTS, section

import nichekd as nk

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

K = 10
FILE = RESULTS / "batches.json"


# cells of a block
WAYS = {"blocks of 32 cells": 32, "blocks of 8": 8, "random cells": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", type=Path)
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=24, help="of a student at most")
    parser.add_argument("--store", type=Path, help="folder of the features, to keep them")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    nk.settings.progress = False
    sdata = section(options.section, fast=True)
    nk.pp.split(sdata)
    if "teacher_logits" not in sdata["table"].obsm:
        nk.tl.nolan(sdata, K, seed=0)
    nk.pp.histology_features(sdata, encoder=options.encoder, key_added="X_image", store=options.store)
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for seed in options.seeds:
        for way, block_cells in WAYS.items():
            runs[way].append(taught(sdata, block_cells, seed, options.epochs))
            print(way, seed, {name: value for name, value in runs[way][-1].items() if name != "history"}, flush=True)
    result = {
        "n_cells": sdata["table"].n_obs,
        "K": K,
        "seeds": options.seeds,
        "epochs": options.epochs,
        "load": os.getloadavg()[0],
        "versions": {package: version(package) for package in ("nichekd", "torch")},
        "runs": runs,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print("| batches | lowest loss on the squares held back | ARI there | ARI on the test strip | CPU s an epoch |")
    print("|---|---:|---:|---:|---:|")
    for way, found in runs.items():
        columns = [*held_back(found), [run["ari"] for run in found], [run["cpu_s_per_epoch"] for run in found]]
        print(f"| {way} | " + " | ".join(f"{np.mean(c):.4f} ± {np.std(c, ddof=1):.4f}" for c in columns) + " |")


def taught(sdata: SpatialData, block_cells: int, seed: int, epochs: int) -> dict[str, Any]:
    """A student trained on such batches, its history, and its agreement on the test strip."""
    cpu = time.process_time()
    fit = nk.tl.FitSettings(max_epochs=epochs, block_cells=block_cells)
    student = nk.tl.distill(sdata, use_rep="X_image", seed=seed, fit=fit)
    cpu = time.process_time() - cpu
    history = {name: [float(value) for value in column] for name, column in student.history.items()}
    ari = test_ari(sdata["table"])
    return {"ari": ari, "cpu_s_per_epoch": cpu / len(history["train_loss"]), "history": history}


def test_ari(adata: AnnData) -> float:
    """Of the student's and the teacher's niches on the test strip."""
    from sklearn.metrics import adjusted_rand_score

    test = adata.obs["split"] == "test"
    return float(adjusted_rand_score(adata.obsm["teacher_logits"][test].argmax(1), adata.obs.loc[test, "niche"]))


def held_back(runs: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Lowest loss of each run on the squares that were held back, and the agreement there in that epoch."""
    losses, agreements = [], []
    for run in runs:
        best = int(np.argmin(run["history"]["validation_loss"]))
        losses.append(run["history"]["validation_loss"][best])
        agreements.append(run["history"]["validation_ari"][best])
    return losses, agreements


if __name__ == "__main__":
    main()

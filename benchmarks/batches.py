"""Batches of small blocks of tissue against batches of random cells: loss, agreement, and what they cost.

    python benchmarks/batches.py SECTION

SECTION is a folder with ``cells.h5ad`` (counts, centres in µm, and ``obsm["teacher_logits"]`` of a teacher with 10
niches, or one is trained) and ``he.ome.tif``; the leftmost quarter of its cells is taken. One teacher and one set of
frozen features; students of three seeds both ways: their loss by epoch, and agreement with the teacher on the test strip.
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
from unittest.mock import patch

import numpy as np
from pancreas_section import RESULTS, section

import nichekd as nk
from nichekd.tl._batches import spatial_batches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

K = 10
FILE = RESULTS / "batches.json"


def random_batches(
    xy: NDArray[np.floating], cells: NDArray[np.integer], batch_size: int, rng: np.random.Generator
) -> Iterator[NDArray[np.integer]]:
    """As many batches as :func:`spatial_batches` makes, of cells from anywhere."""
    yield from np.array_split(rng.permutation(cells), max(1, round(len(cells) / batch_size)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", type=Path)
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8, help="of a student at most")
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
    ways = {"blocks": spatial_batches, "random": random_batches}
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for seed in options.seeds:
        for way, batches in ways.items():
            runs[way].append(taught(sdata, batches, seed, options.epochs))
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
    print("| batches | loss, 1st epoch | 4th | last | lowest validation loss | test ARI | CPU s an epoch |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for way, found in runs.items():
        losses = np.array([[h["train_loss"][0], h["train_loss"][3], h["train_loss"][-1]] for h in histories(found)])
        columns = [*losses.T, lowest(found), [run["ari"] for run in found], [run["cpu_s_per_epoch"] for run in found]]
        print(f"| {way} | " + " | ".join(f"{np.mean(c):.3f} ± {np.std(c, ddof=1):.3f}" for c in columns) + " |")


def taught(sdata: SpatialData, batches: Any, seed: int, epochs: int) -> dict[str, Any]:
    """A student trained on these batches, its history, and its agreement on the test strip."""
    cpu = time.process_time()
    with patch("nichekd.tl._fit.spatial_batches", batches):
        student = nk.tl.distill(sdata, use_rep="X_image", seed=seed, fit=nk.tl.FitSettings(max_epochs=epochs))
    cpu = time.process_time() - cpu
    history = {name: [float(value) for value in column] for name, column in student.history.items()}
    ari = test_ari(sdata["table"])
    return {"ari": ari, "cpu_s_per_epoch": cpu / len(history["train_loss"]), "history": history}


def test_ari(adata: AnnData) -> float:
    """Of the student's and the teacher's niches on the test strip."""
    from sklearn.metrics import adjusted_rand_score

    test = adata.obs["split"] == "test"
    return float(adjusted_rand_score(adata.obsm["teacher_logits"][test].argmax(1), adata.obs.loc[test, "niche"]))


def histories(runs: list[dict[str, Any]]) -> list[dict[str, list[float]]]:
    return [run["history"] for run in runs]


def lowest(runs: list[dict[str, Any]]) -> list[float]:
    """Lowest validation loss of each run; of training where nothing was held back."""
    return [min(history.get("validation_loss", history["train_loss"])) for history in histories(runs)]


if __name__ == "__main__":
    main()

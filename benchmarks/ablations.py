"""What each option of the gene-aware encoder and of the student is worth.

    python benchmarks/ablations.py SECTION

SECTION is a folder with ``cells.h5ad`` (counts, centres in µm) and ``he.ome.tif``; the leftmost quarter of its cells is
taken, K = 10. One teacher; encoders that start elsewhere, learn otherwise, or read otherwise, each with the student of
the defaults; then students with other options on the default encoder's features, one of them taught by a consensus of
teachers, against which it is measured. Scores are of the test strip, with seconds of the step that was changed; the
agreement on the training squares that were held back, by which an option is chosen, stands beside. Rows are written as
they come; those already there are not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pancreas_section import RESULTS, SHORT, section

import nichekd as nk
from nichekd._memory import keep_freed_memory
from nichekd.models import CropAugmentation, NeighborhoodIndex
from nichekd.tl import FitSettings
from nichekd.tl._prediction import predict_logits

if TYPE_CHECKING:
    from collections.abc import Callable

    from spatialdata import SpatialData

K, SEED = 10, 0
FILE = RESULTS / "ablations.json"
ENCODERS: dict[str, dict[str, Any]] = {
    "gene-aware EfficientNet-lite0 (default)": {},
    "small CNN from nothing": {"encoder": "small_cnn"},
    "targets: no clusters": {"fit": replace(SHORT, cluster_weight=0.0)},
    "no augmentation": {"fit": replace(SHORT, augmentation=CropAugmentation(stain=0, tint=0, turn=False))},
    "taught niches too (teacher=)": {"teacher": "teacher_logits"},
}
STUDENTS: dict[str, dict[str, Any]] = {
    "embedding matched too (embedding=)": {"embedding": "X_scVI"},
    "transformer instead of pooling": {"preset": "small"},
    "no components left out (feature_dropout=0)": {"fit": FitSettings(feature_dropout=0.0)},
    "no turned neighborhoods (rotate=False)": {"fit": FitSettings(rotate=False)},
    "batches of blocks of 8 cells, not 32": {"fit": FitSettings(block_cells=8)},
    "batches of random cells": {"fit": FitSettings(block_cells=1)},
    "no positional encoding": {"sizes": {"n_frequencies": 0}},
}
WIDER = (1.5, 2.0)  # times the teacher's radius
N_TURNS, N_TEACHERS = 8, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("nichekd").setLevel(logging.INFO)
    keep_freed_memory()
    sdata = section(options.section, fast=True)
    nk.pp.split(sdata)
    nk.pp.expression_features(sdata, seed=SEED)
    nk.tl.nolan(sdata, K, seed=SEED)
    rows = json.loads(FILE.read_text())["rows"] if FILE.is_file() else {}
    for name, changes in ENCODERS.items():
        if name not in rows or not changes:
            seconds = encode(sdata, key="X_default" if not changes else "X_changed", **changes)
            rows[name] = taught(sdata, "X_default" if not changes else "X_changed") | {"seconds": seconds}
            write(rows, sdata["table"].n_obs)
    for name, changes in STUDENTS.items():
        if name not in rows:
            rows[name] = taught(sdata, "X_default", **changes)
            write(rows, sdata["table"].n_obs)
    for name, run in others().items():
        if name not in rows:
            rows[name] = run(sdata)
            write(rows, sdata["table"].n_obs)
    for name, row in rows.items():
        print(f"{name:45s}", row)


def encode(sdata: SpatialData, *, key: str, **changes: Any) -> int:
    """Train an encoder and take its features; returns the seconds of the training."""
    started = time.perf_counter()
    encoder = nk.tl.gene_aware_encoder(sdata, seed=SEED, **{"encoder": "efficientnet_lite0", "fit": SHORT} | changes)
    seconds = round(time.perf_counter() - started)
    nk.pp.histology_features(sdata, encoder=encoder, key_added=key)
    return seconds


def others() -> dict[str, Callable[[SpatialData], dict[str, float]]]:
    """Rows that take more than an option; the last changes the teacher."""
    found: dict[str, Callable[[SpatialData], dict[str, float]]] = {
        f"student sees {factor:g} times the teacher's radius": partial(wider, factor=factor) for factor in WIDER
    }
    return found | {
        f"predictions averaged over {N_TURNS} turns of the neighborhood": turned,
        f"consensus of {N_TEACHERS} teachers (n_seeds=)": consensus,
    }


def wider(sdata: SpatialData, *, factor: float) -> dict[str, float]:
    """A student whose neighborhoods are larger than those the teacher's niches were made of."""
    radius = float(sdata["table"].uns["nichekd"]["radius"])
    nk.pp.neighborhoods(sdata, radius=factor * radius)
    row = taught(sdata, "X_default")
    nk.pp.neighborhoods(sdata, radius=radius)
    return row


def turned(sdata: SpatialData) -> dict[str, float]:
    """The default student, whose logits are averaged over turns of the neighborhoods."""
    adata = sdata["table"]
    student = nk.tl.distill(sdata, use_rep="X_default", seed=SEED)
    components = student.whiten.rows(adata.obsm["X_default"])
    started, logits = time.perf_counter(), 0.0
    for angle in 2 * np.pi * np.arange(N_TURNS) / N_TURNS:
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        graph = adata.obsp["spatial_connectivities"].tocsr()
        index = NeighborhoodIndex.from_graph(graph, adata.obsm["spatial"] @ turn, student.config.radius)
        logits = logits + predict_logits(student, index, components, forward=student.read)
    names = adata.obs["niche"].cat.categories
    adata.obs["niche"] = pd.Categorical.from_codes(logits.argmax(1), names)
    return scored(sdata) | {"seconds": round(time.perf_counter() - started)}


def consensus(sdata: SpatialData) -> dict[str, float]:
    """Taught by what several teachers agree on."""
    nk.tl.nolan(sdata, K, seed=SEED, n_seeds=N_TEACHERS)
    return taught(sdata, "X_default")


def taught(sdata: SpatialData, use_rep: str, **changes: Any) -> dict[str, float]:
    """A student's scores on the test strip, and the seconds it took."""
    started = time.perf_counter()
    nk.tl.distill(sdata, use_rep=use_rep, seed=SEED, **changes)
    seconds = round(time.perf_counter() - started)
    history = sdata["table"].uns["nichekd"]["distill"]["history"]
    validated = history["validation_ari"][np.argmin(history["validation_loss"])]
    return scored(sdata) | {"seconds": seconds, "validation_ARI": round(float(validated), 4)}


def scored(sdata: SpatialData) -> dict[str, float]:
    """Of the test strip."""
    agreement = nk.tl.agreement(sdata, keys="niche").iloc[0]
    divergence = nk.tl.composition_divergence(sdata, cell_type_key="cell_type", keys="niche", n_permutations=100)
    found = {"ARI": agreement["ARI"], "NMI": agreement["NMI"], "JSD": divergence.iloc[0]["JSD"]}
    return {name: round(float(value), 4) for name, value in found.items()}


def write(rows: dict[str, dict[str, float]], n_cells: int) -> None:
    """Into the results that the docs show."""
    result = {
        "n_cells": n_cells,
        "K": K,
        "seed": SEED,
        "versions": {name: version(name) for name in ("nichekd", "torch", "timm", "scvi-tools")},
        "rows": rows,
    }
    FILE.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What each option of the gene-aware encoder and of the student is worth.

    python benchmarks/ablations.py SECTION

SECTION is a folder with ``cells.h5ad`` (counts, centres in µm) and ``he.ome.tif``; the leftmost quarter of its cells is
taken, K = 10. One teacher; encoders that start elsewhere, learn otherwise, or read otherwise, each with the student of
the defaults; then students with other options on the default encoder's features. Scores are of the test strip, with
seconds of the step that was changed. Rows are written as they come; those already there are not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pancreas_section import RESULTS, section

import nichekd as nk
from nichekd._memory import keep_freed_memory
from nichekd.models import CropAugmentation
from nichekd.tl import FitSettings, GeneAwareSettings

if TYPE_CHECKING:
    from spatialdata import SpatialData

K, SEED = 10, 0
FILE = RESULTS / "ablations.json"
# a short training: many are told apart, none is at its best
PLAIN = GeneAwareSettings(max_epochs=6, crops_per_epoch=800)
ENCODERS: dict[str, dict[str, Any]] = {
    "gene-aware EfficientNet-lite0 (default)": {},
    "small CNN from nothing": {"encoder": "small_cnn"},
    "targets: no clusters": {"fit": replace(PLAIN, cluster_weight=0.0)},
    "no augmentation": {"fit": replace(PLAIN, augmentation=CropAugmentation(stain=0, tint=0, turn=False))},
    "taught niches too (teacher=)": {"teacher": "teacher_logits"},
}
STUDENTS: dict[str, dict[str, Any]] = {
    "embedding matched too (embedding=)": {"embedding": "X_scVI"},
    "transformer instead of pooling": {"preset": "small"},
    "no components left out (feature_dropout=0)": {"fit": FitSettings(feature_dropout=0.0)},
    "no turned neighborhoods (rotate=False)": {"fit": FitSettings(rotate=False)},
    "no positional encoding": {"sizes": {"n_frequencies": 0}},
}


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
    for name, row in rows.items():
        print(f"{name:45s}", row)


def encode(sdata: SpatialData, *, key: str, **changes: Any) -> int:
    """Train an encoder and take its features; returns the seconds of the training."""
    started = time.perf_counter()
    encoder = nk.tl.gene_aware_encoder(sdata, seed=SEED, **{"encoder": "efficientnet_lite0", "fit": PLAIN} | changes)
    seconds = round(time.perf_counter() - started)
    nk.pp.histology_features(sdata, encoder=encoder, key_added=key)
    return seconds


def taught(sdata: SpatialData, use_rep: str, **changes: Any) -> dict[str, float]:
    """A student's scores on the test strip, and the seconds it took."""
    started = time.perf_counter()
    nk.tl.distill(sdata, use_rep=use_rep, seed=SEED, **changes)
    seconds = round(time.perf_counter() - started)
    agreement = nk.tl.agreement(sdata, keys="niche").iloc[0]
    divergence = nk.tl.composition_divergence(sdata, cell_type_key="cell_type", keys="niche", n_permutations=100)
    found = {"ARI": agreement["ARI"], "NMI": agreement["NMI"], "JSD": divergence.iloc[0]["JSD"]}
    return {name: round(float(value), 4) for name, value in found.items()} | {"seconds": seconds}


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

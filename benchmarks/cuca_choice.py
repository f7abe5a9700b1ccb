"""Choose CUCA's input, widths and alignment on training cells alone.

    python benchmarks/cuca_choice.py section.h5ad he.ome.tif --stage network
    python benchmarks/cuca_choice.py section.h5ad he.ome.tif --stage align
    python benchmarks/cuca_choice.py section.h5ad he.ome.tif --stage align --unit spots

The cells of the test strip are dropped as the table is read. Of the strips that are left the first, and then the last,
is held out, and judged on; the epoch is chosen within the others. One option is changed at a time, with one seed, on
every sixth cell.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from cuca_methods import Distilled, StopGradient, TwoStage, TypePositives, fitted, judged, ridge
from cuca_units import AROUND, TRUTH, cell_unit, load, spot_unit, training_only

import nichekd as nk
from nichekd._memory import keep_freed_memory
from nichekd.tl import CucaSettings

if TYPE_CHECKING:
    import anndata as ad

RESULTS = Path(__file__).parent / "results"
FOLDS = ("first", "last")
MARGIN_UM = 30.688  # half a crop
START = replace(CucaSettings(), n_components=64, width=256, gene_width=256, refit=True)
NETWORK: dict[str, dict[str, Any]] = {
    "start": {},
    "features, standardised": {"n_components": None},
    "32 components": {"n_components": 32},
    "128 components": {"n_components": 128},
    "width 128": {"width": 128},
    "width 512": {"width": 512},
    "learning rate 3e-3": {"learning_rate": 3e-3},
    "no refit": {"refit": False},
    "no refit, 8 epochs": {"refit": False, "max_epochs": 8},
}
ALIGN: dict[str, dict[str, Any]] = {
    "no gene branch": {"align": None},
    "contrastive": {},
    "contrastive, weight 0.3": {"loss_weights": (0.3, 0.6, 0.3)},
    "contrastive, weight 1": {"loss_weights": (0.3, 0.6, 1.0)},
    "contrastive, temperature 0.3": {"temperature": 0.3},
    "published": {"align": "rmse"},
    "cosine": {"align": "cosine"},
    "stop-gradient": {"kind": StopGradient},
    "positives by type": {"kind": TypePositives},
    "two stages": {"kind": TwoStage},
    "gene teacher distilled": {"kind": Distilled},
    "surroundings": {"layer": AROUND},
}


def tables(options: argparse.Namespace) -> dict[str, ad.AnnData]:
    """One of each fold; the test strip is in none."""
    sdata = load(options.table, options.image, mpp=options.mpp, encoder=options.encoder, use_rep=options.use_rep)
    cells = sdata["table"]
    boundaries = cells.uns["nichekd"]["split"]["boundaries_um"]
    about = {"margin": MARGIN_UM, "every": 1 if options.unit == "spots" else options.every}
    if options.unit == "spots":
        cells = spot_unit(sdata, options.types, options.radius, encoder=options.encoder, cache=options.cache)
    found = {fold: training_only(cells, boundaries, fold, **about) for fold in FOLDS}
    if options.unit == "cells":
        for part in found.values():
            cell_unit(part, options.types, options.radius, around=options.stage == "align")
    return found


def run(adata: ad.AnnData, rep: str, seed: int, start: CucaSettings, changes: dict[str, Any]) -> dict[str, float]:
    """Train with some changes; scores on the strip that is held out."""
    names = set(vars(start))
    fit = replace(start, **{name: value for name, value in changes.items() if name in names})
    rest = {name: value for name, value in changes.items() if name not in names}
    begin = time.process_time()
    if "kind" in rest:
        fitted(adata, rep, seed, rest["kind"], fit, rest.get("layer"))
    else:
        nk.tl.cuca(adata, abundance_key=TRUTH, use_rep=rep, fit=fit, seed=seed, device="cpu", **rest)
    return judged(adata, pairs=False, cpu_seconds=time.process_time() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="split cells with features, .h5ad")
    parser.add_argument("image", type=Path, help="their H&E")
    parser.add_argument("--stage", choices=["network", "align"], default="network")
    parser.add_argument("--unit", choices=["cells", "spots"], default="cells")
    parser.add_argument("--only", nargs="+", help="only those whose name contains one of these")
    parser.add_argument("--types", default="cell_type")
    parser.add_argument("--every", type=int, default=6)
    parser.add_argument("--mpp", type=float, default=0.274)
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--use-rep", default="X_efficientnet_lite0")
    parser.add_argument("--radius", type=float, default=27.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="folder for features of spots")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    keep_freed_memory()
    nk.settings.progress = False
    start = START if options.stage == "network" else replace(START, refit=False)
    grid = NETWORK if options.stage == "network" else ALIGN
    rows: list[dict[str, Any]] = []
    out = RESULTS / f"cuca_choice_{options.unit}_{options.stage}.json"
    RESULTS.mkdir(exist_ok=True)
    for fold, adata in tables(options).items():
        ridge(adata, options.use_rep, options.seed)
        rows.append({"what": "ridge", "held_out": fold} | judged(adata, pairs=False))
        print(rows[-1], file=sys.stderr, flush=True)
        for what, changes in grid.items():
            if options.only and not any(part in what for part in options.only):
                continue
            if options.unit == "spots" and "surroundings" in what:
                continue  # theirs is that already
            if options.stage == "network":
                changes = {"align": None} | changes
            scores = run(adata, options.use_rep, options.seed, start, changes)
            rows.append({"what": what, "held_out": fold} | scores)
            print(rows[-1], file=sys.stderr, flush=True)
            command = "python benchmarks/cuca_choice.py " + " ".join(Path(word).name for word in sys.argv[1:])
            result = {"command": command, "start": vars(start) | {"augmentation": None}, "rows": rows}
            out.write_text(json.dumps(result, indent=1, default=str) + "\n")
    table = pd.DataFrame(rows).pivot_table("pearson", "what", "held_out", sort=False)
    print(table.assign(mean=table.mean(axis=1)).to_string(float_format="%.3f"))


if __name__ == "__main__":
    main()

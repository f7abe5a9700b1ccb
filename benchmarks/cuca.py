"""CUCA: abundances of cell types from H&E, and what expression adds in training.

    python benchmarks/cuca.py                                  # the bundled crop
    python benchmarks/cuca.py --table section.h5ad --image he.ome.tif --name section

Between sections: ``cuca_her2st.py``; how inputs and widths were chosen, on training cells alone: ``cuca_choice.py``.

Trained on the training strips, judged on the test strip: the mean over types of Pearson's correlation (types constant
there are left out and counted), RMSE, and the Spearman correlation of predicted and true bivariate Moran's R over pairs
of types. Everything is chosen on training cells that are held back. Units are cells (types within 27.5 µm of each) and
spots (the same radius, on Visium's grid, with crops and expression of their own). Beside CUCA stand

- the mean of the training cells, and ridge on the same frozen features (its penalty chosen as CUCA's epoch is);
- no gene branch: the same network without expression;
- the published alignment, and the contrastive one; with ``--tried`` cosine, and what else was tried to make expression
  count: a stop-gradient, positives by dominant type, a gene branch trained first and then frozen, a teacher that
  predicts abundances from expression distilled into the head, and, for cells, expression summed up over the radius the
  types are counted in;
- shuffled genes and shuffled pairs, within the training cells: what is left without a link to the image.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cuca_methods import FIXED, about_this, judged, methods, summary
from cuca_units import TRUTH, cell_unit, load, spot_unit

import nichekd as nk
from nichekd._memory import keep_freed_memory
from nichekd.tl import CucaSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    import anndata as ad

RESULTS = Path(__file__).parent / "results"


def units(options: argparse.Namespace) -> Iterator[tuple[str, str, ad.AnnData]]:
    """Unit, column of types, and the table: split, with features, abundances, a graph."""
    sdata = load(options.table, options.image, mpp=options.mpp, encoder=options.encoder, use_rep=options.use_rep)
    cells = sdata["table"]
    whole = cells.obs["split"].copy()
    for key in options.types:
        cells.obs["split"] = whole
        if "spots" in options.units:
            yield "spots", key, spot_unit(sdata, key, options.radius, encoder=options.encoder, cache=options.cache)
        if "cells" in options.units:
            yield (
                "cells",
                key,
                fewer(cell_unit(cells, key, options.radius, around=options.tried), options.every),
            )


def fewer(adata: ad.AnnData, every: int) -> ad.AnnData:
    """Train on one training cell of ``every``; those around it share most of their neighborhood with it."""
    if every > 1:
        split = adata.obs["split"].astype(str).to_numpy()
        train = np.flatnonzero(split == "train")
        split[np.setdiff1d(train, train[::every])] = "buffer"
        adata.obs["split"] = split
    return adata


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="cells, .h5ad, with features; else the bundled crop")
    parser.add_argument("--image", type=Path, help="their H&E")
    parser.add_argument("--mpp", type=float, default=0.274)
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--use-rep", default="X_efficientnet_lite0")
    parser.add_argument("--types", nargs="+", default=["cell_type", "graphclust"])
    parser.add_argument("--units", nargs="+", default=["cells", "spots"])
    parser.add_argument("--radius", type=float, default=27.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", help="only those whose name contains one of these")
    parser.add_argument("--tried", action="store_true", help="what was tried besides, too")
    parser.add_argument("--every", type=int, default=1, help="train on one training cell of so many")
    parser.add_argument("--cache", type=Path, help="folder for features of spots")
    parser.add_argument("--keep", type=Path, help="folder for what CUCA predicts for cells, for cuca_niches.py")
    parser.add_argument("--name", default="crop")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    keep_freed_memory()
    nk.settings.progress = False
    started, rows = time.perf_counter(), []
    for unit, types, adata in units(options):
        for seed in options.seeds:
            runs = methods(options.use_rep, seed, CucaSettings(), tried=options.tried, around=unit == "cells")
            for name, run in runs.items():
                if options.methods and not any(part in name for part in options.methods):
                    continue
                if name in FIXED and seed != options.seeds[0]:
                    continue
                rows.append(one(adata, run, unit=unit, types=types, method=name, seed=seed))
                if options.keep and (unit, types, name) == ("cells", options.types[0], "CUCA, contrastive"):
                    adata.obsm["abundance"].to_csv(options.keep / f"abundance_seed{seed}.csv")
                save(options.name, started, rows)
    print(summary(rows))


def one(adata: ad.AnnData, run: Any, **about: Any) -> dict[str, Any]:
    """Train, predict and judge."""
    begin, cpu = time.perf_counter(), time.process_time()
    table = run(adata)
    took = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
    row = judged(table, **about, **took, n_train=int((adata.obs["split"] == "train").sum()), n_classes=n_types(adata))
    print(row, file=sys.stderr, flush=True)
    return row


def n_types(adata: ad.AnnData) -> int:
    return adata.obsm[TRUTH].shape[1]


def save(name: str, started: float, rows: list[dict[str, Any]]) -> None:
    """What there is so far: a run that is stopped leaves the methods it got to."""
    result = about_this("cuca.py") | {"seconds": round(time.perf_counter() - started), "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"cuca_{name}.json").write_text(json.dumps(result, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()

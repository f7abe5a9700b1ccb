"""The paper's experiment on a whole section: student, baselines, floors, ceiling and ablations on its test strip.

    python benchmarks/pancreas_section.py SECTION --out section-evaluation
    python benchmarks/pancreas_section.py SECTION --out one-seed -K 10 --seeds 0 --result pancreas_section_one_seed
    python benchmarks/pancreas_section.py SECTION --out section-fast --fast

SECTION is a folder with ``cells.h5ad`` (counts, centres in µm) and ``he.ome.tif``. Everything is fitted on three
strips and judged on the fourth. The students, the paper's baselines and the floor of shuffled images run with three seeds at
K = 10 and 20; baselines on gene-aware features, other floors, ceilings and ablations with the first seed. ``--fast`` are the students and the paper's
baselines on a quarter of the cells, K = 10, one seed, with a short training of the encoder. The folder given by
``--out`` keeps finished runs: the same call goes on where one stopped.

The image of the pancreas section is virtual H&E, registered to the pixel and free of stain variation: optimistic.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import resource
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd

import nichekd as nk
from nichekd._memory import keep_freed_memory
from nichekd.tl import GeneAwareSettings
from nichekd.tl._evaluation_methods import METHODS

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

RESULTS = Path(__file__).parent / "results"
MPP = 0.274
MAIN = ["niche", "niche_gene_aware", "niche_histology_nolan", "niche_histology_leiden"]
SHUFFLED = "niche_shuffled"  # the floor that is to be 0 differs from seed to seed
# a transformer costs twenty times the pooling network: it has a table of its own
REST = [key for key in METHODS if key not in {*MAIN, SHUFFLED, "niche_transformer"}]
# a short training, of a quarter of the cells: experiments are told apart by it, none is at its best
SHORT = GeneAwareSettings(max_epochs=6, crops_per_epoch=800)


def section(folder: Path, *, fast: bool) -> SpatialData:
    """Cells on their image; the left quarter of them for ``fast``."""
    adata = left_quarter(folder) if fast else anndata.read_h5ad(folder / "cells.h5ad")
    return nk.io.paired(adata, folder / "he.ome.tif", mpp=MPP)


def left_quarter(folder: Path) -> AnnData:
    """The quarter of the cells that lies leftmost, so that all strips keep their heights."""
    adata = anndata.read_h5ad(folder / "cells.h5ad")
    x = adata.obsm["spatial"][:, 0]
    return adata[x <= np.quantile(x, 0.25)].copy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("-K", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--gene-aware", default="efficientnet_lite0")
    parser.add_argument("--only", choices=["main", "rest"])
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--result", help="name of the file in results/; default pancreas_section, or …_fast")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("nichekd").setLevel(logging.INFO)
    keep_freed_memory()
    started = time.perf_counter()
    sdata = section(options.section, fast=options.fast)
    about = {
        "cell_type_key": "cell_type", "encoder": options.encoder, "gene_aware": options.gene_aware,
        "gene_aware_fit": SHORT if options.fast else None, "out": options.out,
    }  # fmt: skip
    tables = []
    if options.only != "rest":
        K, seeds = ([10], [0]) if options.fast else (options.K, options.seeds)
        methods = MAIN if options.fast else [*MAIN, SHUFFLED]
        tables.append(nk.tl.evaluate(sdata, K=K, seeds=seeds, methods=methods, **about))
    if options.only != "main" and not options.fast:
        tables.append(nk.tl.evaluate(sdata, K=options.K, seeds=options.seeds[:1], methods=REST, **about))
    table = pd.concat(tables, ignore_index=True)
    print(table.to_string(index=False, float_format="%.3f"))
    write(table, options, seconds=time.perf_counter() - started, n_cells=sdata["table"].n_obs)


def write(table: pd.DataFrame, options: argparse.Namespace, *, seconds: float, n_cells: int) -> None:
    """Into the results that the docs show."""
    RESULTS.mkdir(exist_ok=True)
    name = options.result or ("pancreas_section_fast" if options.fast else "pancreas_section")
    result = {
        "n_cells": n_cells,
        "seeds": options.seeds,
        "encoder": options.encoder,
        "gene_aware": options.gene_aware,
        "seconds_of_this_call": round(seconds),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "versions": {name: version(name) for name in ("nichekd", "torch", "scvi-tools", "scikit-learn", "leidenalg")},
        "python": platform.python_version(),
        "rows": json.loads(table.to_json(orient="records")),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

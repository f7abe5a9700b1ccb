"""How long CUCA takes on frozen features: training, and predicting, of some ten thousand cells.

python benchmarks/cuca_speed.py section.h5ad --cells 60000
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import torch
from cuca_methods import about_this
from cuca_units import TRUTH, cell_unit

import nichekd as nk
from nichekd._memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="cells with features, .h5ad")
    parser.add_argument("--cells", type=int, default=60_000)
    parser.add_argument("--types", default="cell_type")
    parser.add_argument("--use-rep", default="X_efficientnet_lite0")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    keep_freed_memory()
    nk.settings.progress = False
    adata = ad.read_h5ad(options.table)[: options.cells].copy()
    adata.obs["split"] = "train"
    cell_unit(adata, options.types, 27.5, around=False)
    begin = time.perf_counter()
    model = nk.tl.cuca(adata, abundance_key=TRUTH, use_rep=options.use_rep, device="cpu")
    trained = time.perf_counter()
    nk.tl.predict_abundance(adata, model, use_rep=options.use_rep, device="cpu")
    predicted = time.perf_counter()
    epochs = len(model.history["epoch"])
    result = about_this("cuca_speed.py") | {
        "n_cells": adata.n_obs,
        "n_features": int(adata.obsm[options.use_rep].shape[1]),
        "n_types": len(model.types),
        "threads": torch.get_num_threads(),
        "epochs": [epochs, int(np.argmax(model.history["validation_pearson"])) + 1],
        "train_seconds": round(trained - begin, 1),
        "predict_seconds": round(predicted - trained, 1),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "cuca_speed.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

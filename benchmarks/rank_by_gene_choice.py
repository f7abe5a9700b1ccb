"""Which settings of RankByGene order training cells best that were held back: the test strip plays no part.

    python benchmarks/rank_by_gene_choice.py section.h5ad

The table is cut down to its training cells before anything is fitted. Each training holds back the same squares of
them; what is compared is the best share of the squares' triplets in the order of the smoothed expression. Rows that the
result file has already are not trained again.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import replace
from pathlib import Path

import anndata as ad
from rank_by_gene import REP, SETTINGS, about, prepared

import nichekd as nk
from nichekd._memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results"
CHOICES: dict[str, dict] = {
    "5 epochs (default)": {},
    "rank weight 20": {"rank_weight": 20},
    "feature dropout 0.5": {"fit": replace(SETTINGS, feature_dropout=0.5)},
    "learning rate 3e-4": {"fit": replace(SETTINGS, learning_rate=3e-4)},
    "also in the neighborhood": {"scales": ("neighborhood", "slide", "across")},
    "64 dimensions": {"fit": replace(SETTINGS, n_out=64)},
    "20 epochs": {"fit": replace(SETTINGS, max_epochs=20)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--choices", nargs="+", choices=list(CHOICES), default=list(CHOICES))
    parser.add_argument("--out", type=Path, default=RESULTS / "rank_by_gene_choice.json")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    keep_freed_memory()
    nk.settings.progress = False
    adata = prepared(ad.read_h5ad(arguments.table))
    adata = adata[adata.obs["split"] == "train"].copy()
    rows = json.loads(arguments.out.read_text())["runs"] if arguments.out.exists() else []
    for name in arguments.choices:
        if name in {row["choice"] for row in rows}:
            continue
        start = time.process_time()
        model = nk.tl.rank_by_gene(adata, **({"use_rep": REP, "fit": SETTINGS} | CHOICES[name]))
        curve = [round(value, 4) for value in model.history["validation_agreement"]]
        seconds = round(time.process_time() - start, 1)
        rows.append({"choice": name, "validation": max(curve), "cpu_seconds": seconds, "by_epoch": curve})
        print(rows[-1], flush=True)
        result = about() | {"data": arguments.table.stem, "n_train": adata.n_obs, "runs": rows}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

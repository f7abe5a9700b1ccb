"""How methods stand up to another test strip, another radius, and cells that sit beside their nuclei.

    python benchmarks/robustness.py SECTION --out robustness

SECTION is a folder with ``cells.h5ad`` (counts, centres in µm) and ``he.ome.tif``; the leftmost quarter of its cells is
taken. One thing at a time is changed from the protocol: the test strip (the third instead of the second), the number of
neighbors that sets the radius (25 and 100 instead of 50), and the place of the image beside the cells (2 to 20 µm off,
in training and test alike). Each is a whole experiment: teacher, gene-aware encoder, students and baselines anew; only
a change of the radius leaves the image features as they are. Three seeds of teacher, students and baselines, one of the
encoder. Finished experiments are kept in ``--out``, and the result file keeps those that a call does not run.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pancreas_section import MAIN, MPP, RESULTS, SHORT, left_quarter

import nichekd as nk
from nichekd._memory import keep_freed_memory

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

ANGLE = np.deg2rad(30)  # of the offsets; along an axis they would meet the pixel grid
FILE = RESULTS / "robustness.json"
SHOWN = ["variant", "key", "K", "n_seeds", "ARI", "ARI_sd", "NMI", "NMI_sd", "JSD", "JSD_sd"]
FEATURES = ("X_efficientnet_lite0", "X_gene_aware")
VARIANTS = {
    "protocol": {},
    "test strip 3": {"test_strip": 2},
    "25 neighbors": {"n_neighbors": 25},
    "100 neighbors": {"n_neighbors": 100},
    **{f"{offset} µm off": {"offset_um": offset} for offset in (2, 5, 10, 20)},
}


def variant(
    adata: AnnData, image: Path, *, test_strip: int = 1, n_neighbors: int = 50, offset_um: float = 0
) -> SpatialData:
    """The cells on their image, with one thing changed."""
    shift = offset_um * np.array([np.cos(ANGLE), np.sin(ANGLE)])
    affine = np.array([[MPP, 0, shift[0]], [0, MPP, shift[1]]])
    inside = (adata.obsm["spatial"] >= shift).all(
        axis=1
    )  # a few cells at the edge of the section have no image any more
    sdata = nk.io.paired(adata[inside].copy(), image, affine=affine)
    nk.pp.split(sdata, test_strip=test_strip)
    nk.pp.neighborhoods(sdata, radius=nk.pp.estimate_radius(sdata, n_neighbors=n_neighbors))
    return sdata


def take_features(table: AnnData, source: AnnData) -> None:
    """Image features of the same cells on the same image, and what is known of them."""
    about = table.uns["nichekd"].setdefault("features", {})
    for key in FEATURES:
        table.obsm[key] = source.obsm[key]
        about[key] = source.uns["nichekd"]["features"][key]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("-K", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of teachers, students and baselines")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("nichekd").setLevel(logging.INFO)
    keep_freed_memory()
    started = time.perf_counter()
    adata, features, tables = left_quarter(options.section), None, []
    for name in options.only:
        changes = VARIANTS[name]
        sdata = variant(adata, options.section / "he.ome.tif", **changes)
        if "n_neighbors" in changes and features is not None:
            take_features(sdata["table"], features)
        table = nk.tl.evaluate(
            sdata, K=options.K, seeds=options.seeds, methods=MAIN, cell_type_key="cell_type",
            encoder="efficientnet_lite0", gene_aware_fit=SHORT, out=options.out / name.replace(" ", "_"),
        )  # fmt: skip
        if not changes:
            features = sdata["table"]
        tables.append(table.assign(variant=name))
        print(tables[-1][["variant", "key", "ARI", "NMI", "JSD"]].to_string(index=False, float_format="%.3f"))
    rows = pd.concat(tables, ignore_index=True)
    result = {
        "n_cells": adata.n_obs,
        "K": options.K,
        "seeds": options.seeds,
        "seconds_of_this_call": round(time.perf_counter() - started),
        "versions": {name: version(name) for name in ("nichekd", "torch", "scvi-tools", "scikit-learn")},
        "rows": with_earlier(rows),
    }
    FILE.write_text(json.dumps(result, indent=1) + "\n")


def with_earlier(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """These rows, and those of other variants that the result file has, in the order of :data:`VARIANTS`."""
    found = json.loads(rows[SHOWN].to_json(orient="records"))
    new = {row["variant"] for row in found}
    if FILE.is_file():
        found += [row for row in json.loads(FILE.read_text())["rows"] if row["variant"] not in new]
    return sorted(found, key=lambda row: list(VARIANTS).index(row["variant"]))


if __name__ == "__main__":
    main()

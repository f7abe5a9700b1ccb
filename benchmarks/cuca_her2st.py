"""CUCA from section to section of one tumour (her2st C2-C5): one left out in turn.

    python benchmarks/cuca_her2st.py ../shared/data/her2st

Nobody counted cells there. Abundances are how much of the mean expression profile of each of her2st's expression
clusters a spot's expression holds, by non-negative least squares, with profiles of the training sections alone. All
four sections are of one patient: this is transfer between sections, not between patients.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from cuca_methods import FIXED, about_this, judged, methods, summary
from cuca_units import TRUTH
from scipy import sparse

import nichekd as nk
from nichekd.tl import CucaSettings

RESULTS = Path(__file__).parent / "results"
SLIDES = ("C2", "C3", "C4", "C5")
MPP = 0.69


def her2st(folder: Path, encoder: str, cache: Path | None) -> ad.AnnData:
    """Spots of four sections, with features; abundances are set fold by fold."""
    stored = None if cache is None else cache / f"her2st_{encoder}.h5ad"
    if stored is not None and stored.exists():
        return ad.read_h5ad(stored)
    tables = [section(folder / name, name, encoder) for name in SLIDES]
    joined = ad.concat(tables, join="inner", merge="same")
    joined.uns["nichekd"] = {"features": tables[0].uns["nichekd"]["features"]}
    if stored is not None:
        joined.write_h5ad(stored)
    return joined


def section(folder: Path, name: str, encoder: str) -> ad.AnnData:
    """Spots of one section with counts, cluster and image features."""
    counts = pd.read_csv(folder / f"{name}.tsv.gz", sep="\t", index_col=0)
    places = pd.read_csv(folder / f"{name}_selection.tsv", sep="\t")
    labels = pd.read_csv(folder / f"{name}-cluster-annotation.tsv.gz", sep="\t", index_col=0)
    places.index = places["x"].astype(str) + "x" + places["y"].astype(str)
    labels.index = labels["x"].round().astype(int).astype(str) + "x" + labels["y"].round().astype(int).astype(str)
    kept = [spot for spot in counts.index if spot in places.index and spot in labels.index]
    obs = pd.DataFrame({"cluster": labels.loc[kept, "label"].astype(str).to_numpy()}, index=kept)
    spots = ad.AnnData(sparse.csr_matrix(counts.loc[kept].to_numpy(np.float32)), obs=obs)
    spots.var_names = list(counts.columns)
    spots.obsm["spatial"] = places.loc[kept, ["pixel_x", "pixel_y"]].to_numpy(float) * MPP
    (image,) = folder.glob("*.jpg")
    sdata = nk.io.paired(spots, image, mpp=MPP)
    nk.pp.histology_features(sdata, encoder=encoder)
    table = sdata["table"]
    table.obs_names = [f"{name}_{spot}" for spot in table.obs_names]
    table.obs["slide"] = name
    return table


def mixtures(adata: ad.AnnData, train: np.ndarray, n_genes: int = 500) -> pd.DataFrame:
    """How much of each expression cluster's mean profile there is in a spot, by non-negative least squares.

    Profiles are those of the training sections alone.
    """
    from scipy.optimize import nnls

    x = adata.X.toarray().astype(float)
    x = x / x.sum(1, keepdims=True) * 1e4
    clusters = adata.obs["cluster"].to_numpy()
    names = sorted(set(clusters[train]))
    profiles = np.stack([x[train][clusters[train] == name].mean(0) for name in names])
    genes = np.argsort(-np.log1p(profiles).var(0))[:n_genes]
    scale = 1 / np.sqrt(x[train][:, genes].mean(0) + 1e-3)  # counts vary with their mean
    values = np.stack([nnls((profiles[:, genes] * scale).T, row * scale)[0] for row in x[:, genes]])
    return pd.DataFrame(values, index=adata.obs_names, columns=[f"cluster {name}" for name in names])


def leave_out(adata: ad.AnnData, slide: str) -> None:
    """Make one section the test section; abundances are by profiles of the others."""
    test = (adata.obs["slide"] == slide).to_numpy()
    adata.obs["split"] = np.where(test, "test", "train")
    adata.obsm[TRUTH] = mixtures(adata, np.flatnonzero(~test))
    nk.pp.neighborhoods(adata, radius=300.0, library_key="slide")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with C2 ... C5")
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, help="folder for the spots with features")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    nk.settings.progress = False
    rep = f"X_{options.encoder}"
    adata = her2st(options.folder, options.encoder, options.cache)
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        for slide in SLIDES:
            leave_out(adata, slide)
            for name, run in methods(rep, seed, CucaSettings(), library="slide").items():
                if name in FIXED and seed != options.seeds[0]:
                    continue
                rows.append(judged(run(adata), unit="her2st", types=slide, method=name, seed=seed))
                print(rows[-1], file=sys.stderr, flush=True)
            RESULTS.mkdir(exist_ok=True)
            result = about_this("cuca_her2st.py") | {"rows": rows}
            (RESULTS / "cuca_her2st.json").write_text(json.dumps(result, indent=1, default=float) + "\n")
    print(summary(rows))


if __name__ == "__main__":
    main()

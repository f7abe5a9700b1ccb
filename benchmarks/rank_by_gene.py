"""RankByGene: do image features order cells as their genes do, and is it of use?

    python benchmarks/rank_by_gene.py                                   # the bundled pancreas crop, its test strip
    python benchmarks/rank_by_gene.py --table section.h5ad              # any table with image features and a split
    python benchmarks/rank_by_gene.py --her2st ../shared/data/her2st --min-steps 250    # each section held out in turn

Rows, each trained anew for every seed on the same frozen features:

- the features themselves, and as many of their principal components as the projection has;
- the contrastive loss alone, and with the moving-average teacher;
- the rank losses: as published, the hinge (the default), the hinge with pairs of a neighborhood besides, Spearman's;
- the default on shuffled pairs of image and expression.

Columns, on cells that nothing was fitted on: share of triplets in the order of the smoothed expression, of a cell's own
expression, and of smoothed expression among neighbors; mean over genes of the correlation of ridge predictions with
smoothed and own expression. Each gene is in the result file, and the agreement on the training
cells that each training held back, which is what settings are chosen by (rank_by_gene_choice.py). Students on these
features: rank_by_gene_students.py; slides: rank_by_gene_cohorts.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import time
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, issparse
from sklearn.decomposition import PCA

import nichekd as nk
from nichekd._memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results"
REP, ALIGNED = "X_efficientnet_lite0", "X_rank_by_gene"
SECTIONS = ("C2", "C3", "C4", "C5")
HER2ST_MPP = 0.69
DETECTED = 0.3  # share of spots in which a gene has to be found to be judged
SETTINGS = nk.tl.RankByGeneSettings()
VARIANTS: dict[str, dict] = {
    "contrastive only": {"rank_weight": 0, "distill_weight": 0},
    "contrastive, teacher": {"rank_weight": 0},
    "published rank loss": {"rank_loss": "published"},
    "hinge (default)": {},
    "hinge, also in the neighborhood": {"scales": ("neighborhood", "slide", "across")},
    "Spearman's": {"rank_loss": "soft_rank"},
    "hinge, shuffled pairs": {"shuffle": True},
}


def crop() -> ad.AnnData:
    sdata = nk.datasets.pancreas()
    nk.pp.split(sdata)
    nk.pp.histology_features(sdata, encoder="efficientnet_lite0")
    return sdata["table"]


def prepared(adata: ad.AnnData) -> ad.AnnData:
    """With neighborhoods and smoothed expression, without cells that express nothing."""
    if "smoothed" in adata.layers:
        return adata
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    nk.pp.neighborhoods(adata)
    nk.pp.smooth_expression(adata)
    return adata


def her2st(folder: Path) -> ad.AnnData:
    """Spots of four sections, each with the eight around it as neighbors; log-normalised, genes found in many spots."""
    import scanpy as sc
    import squidpy as sq
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    parts = []
    for name in SECTIONS:
        counts = pd.read_csv(folder / name / f"{name}.tsv.gz", sep="\t", index_col=0)
        spots = pd.read_csv(folder / name / f"{name}_selection.tsv", sep="\t")
        spots.index = [f"{x}x{y}" for x, y in zip(spots["x"], spots["y"], strict=True)]
        both = [spot for spot in spots.index if spot in counts.index]
        adata = ad.AnnData(csr_matrix(counts.loc[both].to_numpy(dtype=np.float32)), var=counts.columns.to_frame()[[]])
        adata.obs_names = [f"{name}_{spot}" for spot in both]
        adata.obsm["spatial"] = spots.loc[both, ["pixel_x", "pixel_y"]].to_numpy(dtype=float) * HER2ST_MPP
        pixels = np.asarray(Image.open(next((folder / name).glob("*.jpg"))).convert("RGB")).transpose(2, 0, 1)
        sdata = nk.io.paired(adata, pixels, mpp=HER2ST_MPP)
        nk.pp.histology_features(sdata, encoder="efficientnet_lite0")
        table = sdata["table"]
        sq.gr.spatial_neighbors(table, n_neighs=8, coord_type="generic")
        table.obs["section"] = name
        parts.append(table)
    adata = ad.concat(parts, join="inner", pairwise=True)
    adata.X = adata.X.tocsr()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    adata = adata[:, np.diff(adata.X.tocsc().indptr) >= DETECTED * adata.n_obs].copy()
    nk.pp.smooth_expression(adata)
    return adata


def variable_genes(adata: ad.AnnData, n: int) -> list[str]:
    """Of the training cells."""
    x = adata.layers["smoothed"][(adata.obs["split"] == "train").to_numpy()]
    x = x.toarray() if issparse(x) else x
    return list(adata.var_names[np.sort(np.argsort(-x.var(axis=0))[:n])])


def trained(adata: ad.AnnData, seed: int, library_key: str | None, fit, *, shuffle: bool = False, **options) -> dict:
    """Write the aligned features; what it took, and the order of held-back training cells."""
    taught = adata
    if shuffle:
        train = np.flatnonzero(adata.obs["split"] == "train")
        order = np.arange(adata.n_obs)
        order[train] = np.random.default_rng(seed).permutation(train)
        taught = adata.copy()
        taught.layers["smoothed"] = adata.layers["smoothed"][order]
    start = time.process_time()
    model = nk.tl.rank_by_gene(taught, use_rep=REP, library_key=library_key, seed=seed, fit=fit, **options)
    seconds = time.process_time() - start
    nk.tl.embed_histology(adata, model, use_rep=REP)
    return {"cpu_seconds": round(seconds, 1), "validation": float(max(model.history["validation_agreement"]))}


def judged(adata: ad.AnnData, key: str, library_key: str | None, genes: list[str] | None) -> tuple[dict, pd.DataFrame]:
    n_triplets = 100_000 if library_key is None else 20_000  # a section of spots has few cells and many genes

    def agreement(b: str, scale: str = "slide") -> float:
        table = nk.tl.rank_agreement(adata, a=key, b=b, scales=scale, library_key=library_key, n_triplets=n_triplets)
        return table["agreement"].mean()

    table = nk.tl.predict_expression(adata, use_rep=key, genes=genes, group_key=library_key)
    found = {
        "agreement": agreement("smoothed"),
        "agreement_own": agreement("X"),
        "agreement_neighborhood": agreement("smoothed", "neighborhood"),
        "gene_pcc": table["pearson"].mean(),
        "gene_pcc_own": table["pearson_unsmoothed"].mean(),
    }
    return found, table[["gene", "pearson", "pearson_unsmoothed"]]


def run(adata: ad.AnnData, seed: int, variants: list[str], fit, library_key: str | None = None):
    """Row and genes of each method, one after the other."""
    genes = variable_genes(adata, SETTINGS.n_genes) if adata.n_vars > SETTINGS.n_genes else None

    def row(method: str, key: str, training: dict):
        found, table = judged(adata, key, library_key, genes)
        values = {name: float(value) for name, value in found.items()}
        return {"method": method, "seed": seed} | training | values, table.assign(method=method, seed=seed)

    if seed == 0:  # these two have none
        yield row("image features", REP, {})
        train = (adata.obs["split"] == "train").to_numpy()
        values = np.asarray(adata.obsm[REP], dtype=np.float32)
        adata.obsm["X_pca"] = PCA(SETTINGS.n_out, random_state=0).fit(values[train]).transform(values)
        yield row("principal components", "X_pca", {})
    for method in variants:
        yield row(method, ALIGNED, trained(adata, seed, library_key, fit, **VARIANTS[method]))


def gene_by_gene(by_gene: pd.DataFrame) -> dict:
    """Correlation of each gene, smoothed and its own, over seeds and held-out sections: best first."""
    means = by_gene.groupby(["method", "gene"])[["pearson", "pearson_unsmoothed"]].mean().round(3)
    found = {}
    for method in ("image features", "hinge (default)"):
        if method in means.index.get_level_values(0):
            order = means.loc[method].sort_values("pearson", ascending=False)
            found[method] = {
                gene: [None if v != v else v for v in row] for gene, row in order.T.to_dict("list").items()
            }
    return found


def plain(table: pd.DataFrame) -> list[dict]:
    """JSON has no NaN: the deviation of a single run is left out."""
    return [{name: value for name, value in row.items() if value == value} for row in table.to_dict("records")]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds and held-out sections."""
    measured = [column for column in rows if column not in {"method", "seed", "held_out"}]
    table = rows.groupby("method", sort=False)[measured].agg(["mean", "std"])
    table.columns = [f"{column}_{what}".removesuffix("_mean") for column, what in table.columns]
    return table


def about() -> dict:
    return {
        "load": os.getloadavg()[0],
        "n_cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {p: version(p) for p in ("nichekd", "torch", "scikit-learn", "numpy")},
    }


def write(path: Path, data: dict, rows: pd.DataFrame, by_gene: pd.DataFrame) -> None:
    """What there is so far: a run that is cut short leaves the rows it finished."""
    result = about() | data
    result |= {"table": plain(summary(rows).round(4).reset_index()), "runs": plain(rows)}
    result |= {"genes": gene_by_gene(by_gene)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help=f"cells with counts, obsm[{REP!r}] and obs['split'] (.h5ad)")
    parser.add_argument("--her2st", type=Path, help="folder of the HER2-positive breast sections C2 to C5")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--min-steps", type=int, default=SETTINGS.min_steps, help="fewer will do for a few spots")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    keep_freed_memory()
    nk.settings.progress = False
    if arguments.her2st:
        name, adata, held_out = "her2st", her2st(arguments.her2st), SECTIONS
    else:
        name, held_out = "crop" if arguments.table is None else arguments.table.stem, (None,)
        adata = prepared(crop() if arguments.table is None else ad.read_h5ad(arguments.table))
    data = {"data": name, "n_cells": adata.n_obs, "min_steps": arguments.min_steps}
    fit = replace(SETTINGS, min_steps=arguments.min_steps)
    path = arguments.out or RESULTS / f"rank_by_gene_{name}.json"
    rows, by_gene = [], []
    for seed, section in itertools.product(arguments.seeds, held_out):
        if section is not None:
            adata.obs["split"] = np.where(adata.obs["section"] == section, "test", "train")
        library_key = None if section is None else "section"
        for row, table in run(adata, seed, arguments.variants, fit, library_key):
            rows.append(row | ({} if section is None else {"held_out": section}))
            by_gene.append(table)
            print(rows[-1], flush=True)
            write(path, data, pd.DataFrame(rows), pd.concat(by_gene, ignore_index=True))
    print(summary(pd.DataFrame(rows)).to_string(float_format="%.3f"))


if __name__ == "__main__":
    main()

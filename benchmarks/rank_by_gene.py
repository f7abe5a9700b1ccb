"""RankByGene: do image features order cells as their genes do, and is it of use?

    python benchmarks/rank_by_gene.py                                   # the bundled pancreas crop, its test strip
    python benchmarks/rank_by_gene.py --table section.h5ad              # any table with image features and a split
    python benchmarks/rank_by_gene.py --her2st ../shared/data/her2st    # each section held out in turn

Rows, each trained anew for every seed on the same frozen features:

- the features themselves, and as many of their principal components as the projection has;
- the contrastive loss alone, and with the moving-average teacher;
- the rank losses: as published, the hinge (the default), the hinge with pairs of a neighborhood besides, Spearman's;
- the default on shuffled pairs of image and expression.

Columns, on cells that nothing was fitted on: share of triplets in the order of the smoothed expression, of a cell's own
expression, and of smoothed expression among neighbors; mean over genes of the correlation of ridge predictions with
smoothed and own expression. The five best and worst genes are in the result file. With --students, the niche student on
the features and on the default's, against NOLAN's niches (ARI).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
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
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    nk.pp.neighborhoods(adata)
    nk.pp.smooth_expression(adata)
    return adata


def her2st(folder: Path) -> ad.AnnData:
    """Spots of four sections, each with the eight around it as neighbors."""
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
    nk.pp.smooth_expression(adata)
    return adata


def variable_genes(adata: ad.AnnData, n: int) -> list[str]:
    """Of the training cells."""
    x = adata.layers["smoothed"][(adata.obs["split"] == "train").to_numpy()]
    x = x.toarray() if issparse(x) else x
    return list(adata.var_names[np.sort(np.argsort(-x.var(axis=0))[:n])])


def trained(adata: ad.AnnData, seed: int, library_key: str | None, fit, *, shuffle: bool = False, **options) -> None:
    """Write the aligned features."""
    taught = adata
    if shuffle:
        train = np.flatnonzero(adata.obs["split"] == "train")
        order = np.arange(adata.n_obs)
        order[train] = np.random.default_rng(seed).permutation(train)
        taught = adata.copy()
        taught.layers["smoothed"] = adata.layers["smoothed"][order]
    model = nk.tl.rank_by_gene(taught, use_rep=REP, library_key=library_key, seed=seed, fit=fit, **options)
    nk.tl.embed_histology(adata, model, use_rep=REP)


def judged(adata: ad.AnnData, key: str, library_key: str | None, genes: list[str] | None) -> tuple[dict, pd.DataFrame]:
    def agreement(b: str, scale: str = "slide") -> float:
        return nk.tl.rank_agreement(adata, a=key, b=b, scales=scale, library_key=library_key)["agreement"].mean()

    table = nk.tl.predict_expression(adata, use_rep=key, genes=genes, group_key=library_key)
    found = {
        "agreement": agreement("smoothed"),
        "agreement_own": agreement("X"),
        "agreement_neighborhood": agreement("smoothed", "neighborhood"),
        "gene_pcc": table["pearson"].mean(),
        "gene_pcc_own": table["pearson_unsmoothed"].mean(),
    }
    return found, table[["gene", "pearson", "pearson_unsmoothed"]]


def run(adata: ad.AnnData, seeds: list[int], variants: list[str], library_key: str | None = None):
    """Row and genes of each method, one after the other."""
    fit = nk.tl.RankByGeneSettings()
    genes = variable_genes(adata, fit.n_genes) if adata.n_vars > fit.n_genes else None

    def row(method: str, seed: int, key: str, seconds: float):
        found, table = judged(adata, key, library_key, genes)
        about = {"method": method, "seed": seed}
        values = {name: float(value) for name, value in found.items()}
        return about | {"seconds": round(seconds, 1)} | values, table.assign(**about)

    yield row("image features", 0, REP, 0)
    train = (adata.obs["split"] == "train").to_numpy()
    values = np.asarray(adata.obsm[REP], dtype=np.float32)
    adata.obsm["X_pca"] = PCA(fit.n_out, random_state=0).fit(values[train]).transform(values)
    yield row("principal components", 0, "X_pca", 0)
    for seed in seeds:
        for method in variants:
            start = time.perf_counter()
            trained(adata, seed, library_key, fit, **VARIANTS[method])
            yield row(method, seed, ALIGNED, time.perf_counter() - start)


def students(adata: ad.AnnData, seeds: list[int], n_niches: list[int]) -> pd.DataFrame:
    """ARI of the niche student on the features, and on the default's, on the test strip."""
    rows = []
    for seed in seeds:
        if "X_scVI" not in adata.obsm:
            nk.pp.expression_features(adata, seed=seed)
        trained(adata, seed, None, nk.tl.RankByGeneSettings())
        for k in n_niches:
            nk.tl.nolan(adata, k, seed=seed)
            for key in (REP, ALIGNED):
                nk.tl.distill(adata, k, use_rep=key, seed=seed)
                row = nk.tl.agreement(adata, keys="niche").iloc[0]
                rows.append({"K": k, "seed": seed, "features": key, "ARI": row["ARI"], "NMI": row["NMI"]})
                print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def best_and_worst(by_gene: pd.DataFrame) -> dict:
    means = by_gene.groupby(["method", "gene"])["pearson"].mean()
    found = {}
    for method in ("image features", "hinge (default)"):
        if method in means.index.get_level_values(0):
            order = means[method].sort_values(ascending=False)
            found[method] = {"best": order.head(5).round(3).to_dict(), "worst": order.tail(5).round(3).to_dict()}
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


def write(path: Path, about: dict, rows: pd.DataFrame, by_gene: pd.DataFrame, niches: pd.DataFrame) -> None:
    """What there is so far: a run that is cut short leaves the rows it finished."""
    result = about | {
        "load": os.getloadavg()[0],
        "n_cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {p: version(p) for p in ("nichekd", "torch", "scikit-learn", "numpy")},
        "table": plain(summary(rows).round(4).reset_index()),
        "runs": plain(rows),
        "genes": best_and_worst(by_gene) if len(by_gene) else {},
        "students": niches.to_dict("records"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help=f"cells with counts, obsm[{REP!r}] and obs['split'] (.h5ad)")
    parser.add_argument("--her2st", type=Path, help="folder of the HER2-positive breast sections C2 to C5")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--students", type=int, nargs="*", default=[], metavar="K")
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
    about = {"data": name, "seeds": arguments.seeds, "n_cells": adata.n_obs}
    path = arguments.out or RESULTS / f"rank_by_gene_{name}.json"
    rows, by_gene, niches = [], [], pd.DataFrame()
    for section in held_out:
        if section is not None:
            adata.obs["split"] = np.where(adata.obs["section"] == section, "test", "train")
        library_key = None if section is None else "section"
        for row, table in run(adata, arguments.seeds, arguments.variants, library_key):
            rows.append(row | ({} if section is None else {"held_out": section}))
            by_gene.append(table)
            print(rows[-1], flush=True)
            write(path, about, pd.DataFrame(rows), pd.concat(by_gene, ignore_index=True), niches)
    if arguments.students:
        niches = students(adata, arguments.seeds, arguments.students)
        write(path, about, pd.DataFrame(rows), pd.concat(by_gene, ignore_index=True), niches)
    print(summary(pd.DataFrame(rows)).to_string(float_format="%.3f"))


if __name__ == "__main__":
    main()

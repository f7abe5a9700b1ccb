"""CUCA: abundances of cell types from H&E, and what expression adds in training.

    python benchmarks/cuca.py                                  # the bundled crop
    python benchmarks/cuca.py --table section.h5ad --image he.ome.tif --name section
    python benchmarks/cuca.py --her2st ../shared/data/her2st   # besides, four sections of one tumour, one left out each

Trained on the training strips, judged on the test strip: the mean over types of Pearson's correlation (types constant
there are left out and counted), RMSE, and the Spearman correlation of predicted and true bivariate Moran's R over pairs
of types. Everything is chosen on training cells that are held back. Units are cells (types within 27.5 µm of each) and
spots (the same radius, on Visium's grid, with crops and expression of their own). Beside CUCA stand

- the mean of the training cells, and ridge on the same frozen features (its penalty chosen as CUCA's epoch is);
- no gene branch: the same network without expression;
- the published alignment; cosine; the contrastive one, which is the default; and what else was tried to make
  expression count: a stop-gradient, positives by dominant type, a gene branch trained first and then frozen, a teacher
  that predicts abundances from expression distilled into the head, and, for cells, expression summed up over the
  radius the types are counted in;
- shuffled genes and shuffled pairs, within the training cells: what is left without a link to the image.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scipy.spatial import cKDTree
from torch.nn import functional as F

import nichekd as nk
from nichekd._abundance import abundance_of, pearson
from nichekd._memory import keep_freed_memory
from nichekd.models._cuca import CucaObjective, rmse
from nichekd.tl import CucaSettings
from nichekd.tl._cuca_fit import fit_cuca
from nichekd.tl._cuca_inputs import validation_cells
from nichekd.tl._cuca_setup import build_model, read_inputs, training_data
from nichekd.tl._loop import make_fabric, seeded
from nichekd.tl._predict_abundance import write_abundance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RESULTS = Path(__file__).parent / "results"
TRUTH, AROUND, WEIGHTS = "cell_abundance", "around", (0.3, 0.6, 0.1)
PENALTIES = np.logspace(1, 7, 13)
STEPS_FIRST = 300  # of the gene branch that is trained first


class StopGradient(CucaObjective):
    """The gene branch learns by decoding alone."""

    def aligned(self, z, g, target):
        return super().aligned(z, g.detach(), target)


class TypePositives(CucaObjective):
    """All cells with the same dominant type are each other's positives."""

    def aligned(self, z, g, target):
        logits = F.normalize(self.map_z(z), dim=-1) @ F.normalize(self.map_g(g), dim=-1).T / self.temperature
        kind = target.argmax(1)
        same = (kind[:, None] == kind[None]).float()
        same = same / same.sum(1, keepdim=True)
        return -(same * logits.log_softmax(1) + same * logits.T.log_softmax(1)).sum(1).mean() / 2


class TwoStage(CucaObjective):
    """The gene branch, with a head of its own, is trained first; the image side is drawn to what it then says."""

    distilled = 0.0

    def first(self, data, train, network, width, seed):
        """Expression to abundances, and back to expression."""
        self.teacher = torch.nn.Linear(width, len(network.type_scale))
        modules = torch.nn.ModuleList([self.genes, self.teacher])
        optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-3, weight_decay=0.05)
        rng = np.random.default_rng(seed)
        modules.train()
        for _ in range(STEPS_FIRST):
            cells = rng.choice(train, min(256, len(train)), replace=False)
            genes = torch.from_numpy(data.genes[cells].toarray())
            g, decoded = self.genes(genes)
            target = torch.from_numpy(data.abundance[cells]) / network.type_scale
            loss = rmse(self.teacher(g), target) + rmse(decoded, genes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        modules.requires_grad_(False)

    def forward(self, scaled, z, target, genes):
        self.genes.eval()
        g, _ = self.genes(genes)
        target = (1 - self.distilled) * target + self.distilled * self.teacher(g)
        terms = {"abundance": rmse(scaled, target), "align": self.aligned(z, g, target)}
        return {"loss": self.weights[0] * terms["abundance"] + self.weights[2] * terms["align"]} | terms


class Distilled(TwoStage):
    """Half of the target is what the trained gene branch says, and nothing is aligned."""

    distilled = 0.5

    def aligned(self, z, g, target):
        return z.sum() * 0


def fitted(adata: ad.AnnData, rep: str, seed: int, kind: type[CucaObjective], fit: CucaSettings) -> None:
    """nk.tl.cuca with another objective."""
    inputs = read_inputs(adata, abundance_key=TRUTH, use_rep=rep, layer=None, n_genes=250, split_key="split")
    first, held_back = held(adata, inputs.train, inputs.margin, seed)
    with seeded(seed):
        model = build_model(inputs, {"use_rep": rep}, fit=fit, lora=None, encoder=None)
        network = model.config.network
        objective = kind(network, len(model.config.genes), align="infonce", weights=WEIGHTS)
        fabric = make_fabric("cpu")
        data = training_data(adata, inputs, model, fit=fit, seed=seed, device=fabric.device, table_key="table")
        if isinstance(objective, TwoStage):
            objective.first(data, first, model.network, network.width, seed)
        fit_cuca(model, objective, data, first, held_back, fit=fit, seed=seed, fabric=fabric)
    write_abundance(adata, model, inputs.features, device="cpu", key_added="abundance")


def held(adata: ad.AnnData, train: np.ndarray, margin: float, seed: int, library: str | None = None) -> tuple:
    rng = np.random.default_rng(seed)
    return validation_cells(
        adata, train, library_key=library, validation_key=None, share=CucaSettings().validation, margin=margin, rng=rng
    )


def ridge(adata: ad.AnnData, rep: str, seed: int, library: str | None = None) -> None:
    """All penalties from one decomposition; the best on held-back cells, then fitted on all."""
    inputs = read_inputs(adata, abundance_key=TRUTH, use_rep=rep, layer=None, n_genes=None, split_key="split")
    x, y = np.asarray(inputs.features, dtype=np.float64), inputs.abundance.values
    first, held_back = held(adata, inputs.train, inputs.margin, seed, library)
    scores = {a: np.nanmean(pearson(solve(x, y, first, a)[held_back], y[held_back])) for a in PENALTIES}
    found = solve(x, y, inputs.train, max(scores, key=lambda a: scores[a]))
    put(adata, found.clip(0))


def solve(x: np.ndarray, y: np.ndarray, rows: np.ndarray, penalty: float) -> np.ndarray:
    mean, sd, level = x[rows].mean(0), x[rows].std(0) + 1e-6, y[rows].mean(0)
    z = (x[rows] - mean) / sd
    weights = np.linalg.solve(z.T @ z + penalty * np.eye(x.shape[1]), z.T @ (y[rows] - level))
    return ((x - mean) / sd) @ weights + level


def put(adata: ad.AnnData, values: np.ndarray) -> None:
    adata.obsm["abundance"] = pd.DataFrame(
        values, index=adata.obs_names, columns=list(abundance_of(adata, TRUTH).types)
    )


def mean_of_training(adata: ad.AnnData) -> None:
    values = abundance_of(adata, TRUTH).values
    put(adata, np.broadcast_to(values[(adata.obs["split"] == "train").to_numpy()].mean(0), values.shape).copy())


def shuffled(adata: ad.AnnData, what: str, rep: str, seed: int) -> ad.AnnData:
    """The same with genes, or image features, permuted among training cells."""
    train = np.flatnonzero(adata.obs["split"] == "train")
    order = np.arange(adata.n_obs)
    order[train] = np.random.default_rng(seed).permutation(train)
    copy = adata.copy()
    if what == "genes":
        copy.X = sparse.csr_matrix(adata.X)[order]
    else:
        copy.obsm[rep] = np.asarray(adata.obsm[rep])[order]
    return copy


def methods(rep: str, seed: int, fit: CucaSettings, *, tried: bool) -> dict[str, Callable[[ad.AnnData], Any]]:
    """By name, what writes ``obsm["abundance"]``; it may return another table that it wrote to."""

    def cuca(adata: ad.AnnData, align: str | None, **options: Any) -> ad.AnnData:
        options = {"fit": fit, "seed": seed, "device": "cpu"} | options
        nk.tl.cuca(adata, abundance_key=TRUTH, use_rep=rep, align=align, **options)
        return adata

    found: dict[str, Callable[[ad.AnnData], Any]] = {
        "mean of training": mean_of_training,
        "ridge": lambda a: ridge(a, rep, seed),
        "no gene branch": lambda a: cuca(a, None),
        "CUCA, published alignment": lambda a: cuca(a, "rmse"),
        "CUCA, contrastive": lambda a: cuca(a, "infonce"),
        "floor: shuffled genes": lambda a: cuca(shuffled(a, "genes", rep, seed), "infonce"),
        "floor: shuffled pairs": lambda a: cuca(shuffled(a, "pairs", rep, seed), "infonce"),
    }
    if tried:
        found |= {
            "CUCA, cosine": lambda a: cuca(a, "cosine"),
            "tried: contrastive, weight 1": lambda a: cuca(a, "infonce", loss_weights=(0.3, 0.6, 1.0)),
            "tried: stop-gradient": lambda a: fitted(a, rep, seed, StopGradient, fit),
            "tried: positives by type": lambda a: fitted(a, rep, seed, TypePositives, fit),
            "tried: two stages": lambda a: fitted(a, rep, seed, TwoStage, fit),
            "tried: gene teacher distilled": lambda a: fitted(a, rep, seed, Distilled, fit),
            "tried: expression of the surroundings": lambda a: cuca(a, "infonce", layer=AROUND),
        }
    return found


def judged(adata: ad.AnnData, **about: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant types are counted here
        table = nk.tl.abundance_agreement(adata, truth=TRUTH, prediction="abundance", subset="test")
        pairs = [
            nk.tl.colocalization(adata, key=key, subset="test").set_index(["type_a", "type_b"])["moran_r"]
            for key in (TRUTH, "abundance")
        ]
    together = pd.concat(pairs, axis=1, keys=["true", "predicted"]).dropna()
    return about | {
        "pearson": table["pearson"].mean(),
        "spearman": table["spearman"].mean(),
        "RMSE": table["RMSE"].mean(),
        "JSD": table["JSD"].mean(),
        "n_types": int(table["pearson"].notna().sum()),
        "colocalization": together["true"].corr(together["predicted"], method="spearman"),
        "n_test": int((adata.obs["split"] == "test").sum()),
    }


def units(options: argparse.Namespace) -> Iterator[tuple[str, str, ad.AnnData]]:
    """Unit, column of types, and the table: split, with features, abundances, a graph."""
    sdata = load(options)
    cells = sdata["table"]
    for key in options.types:
        cells.obs["kind"] = cells.obs[key].astype(str).where(cells.obs[key].notna() & (cells.obs[key] != "none"))
        if "cells" in options.units:
            nk.pp.neighborhood_composition(sdata, cell_type_key="kind", radius=options.radius)
            if "spatial_connectivities" not in cells.obsp:
                nk.pp.neighborhoods(sdata)
            if AROUND not in cells.layers:
                cells.layers[AROUND] = surroundings(cells, options.radius)
            yield "cells", key, cells
        if "spots" in options.units:
            spots = nk.pp.neighborhood_composition(sdata, cell_type_key="kind", spots=True, radius=options.radius)
            nk.pp.split(spots)
            nk.pp.histology_features(spots, encoder=options.encoder)
            table = spots["table"]
            nk.pp.neighborhoods(spots, radius=105.0)
            yield "spots", key, table


def surroundings(cells: ad.AnnData, radius: float) -> sparse.csr_matrix:
    """Counts summed up over what the types are counted in, on the cell's side of the split."""
    split = cells.obs["split"].astype(str).to_numpy()
    total = sparse.csr_matrix(cells.X).astype(np.float32)
    parts = sparse.lil_matrix(total.shape, dtype=np.float32).tocsr()
    for side in sorted(set(split)):
        rows = np.flatnonzero(split == side)
        tree = cKDTree(cells.obsm["spatial"][rows])
        near = tree.query_pairs(radius, output_type="ndarray")
        ones = np.ones(len(near), dtype=np.float32)
        pairs = sparse.csr_matrix((ones, near.T), shape=(len(rows), len(rows)))
        whole = (pairs + pairs.T + sparse.eye_array(len(rows), dtype=np.float32)) @ total[rows]
        place = sparse.csr_matrix(
            (np.ones(len(rows), np.float32), (rows, np.arange(len(rows)))), (len(split), len(rows))
        )
        parts = parts + place @ whole
    return sparse.csr_matrix(parts)


def load(options: argparse.Namespace):
    if options.table is None:
        sdata = nk.datasets.pancreas()
    else:
        adata = ad.read_h5ad(options.table)
        keep = {"spatial", options.use_rep}
        for key in set(adata.obsm) - keep:
            del adata.obsm[key]
        sdata = nk.io.paired(adata, options.image, mpp=options.mpp)
    if "split" not in sdata["table"].obs:
        nk.pp.split(sdata)
    if options.use_rep not in sdata["table"].obsm:
        nk.pp.histology_features(sdata, encoder=options.encoder)
    return sdata


def her2st(folder: Path, encoder: str) -> tuple[ad.AnnData, list[str]]:
    """Spots of four sections, with features; abundances are set fold by fold."""
    tables = []
    for name in ("C2", "C3", "C4", "C5"):
        counts = pd.read_csv(folder / name / f"{name}.tsv.gz", sep="\t", index_col=0)
        places = pd.read_csv(folder / name / f"{name}_selection.tsv", sep="\t")
        labels = pd.read_csv(folder / name / f"{name}-cluster-annotation.tsv.gz", sep="\t", index_col=0)
        places.index = places["x"].astype(str) + "x" + places["y"].astype(str)
        labels.index = labels["x"].round().astype(int).astype(str) + "x" + labels["y"].round().astype(int).astype(str)
        kept = [spot for spot in counts.index if spot in places.index and spot in labels.index]
        obs = pd.DataFrame({"cluster": labels.loc[kept, "label"].astype(str).to_numpy()}, index=kept)
        spots = ad.AnnData(sparse.csr_matrix(counts.loc[kept].to_numpy(np.float32)), obs=obs)
        spots.var_names = list(counts.columns)
        spots.obsm["spatial"] = places.loc[kept, ["pixel_x", "pixel_y"]].to_numpy(float) * 0.69
        (image,) = (folder / name).glob("*.jpg")
        sdata = nk.io.paired(spots, image, mpp=0.69)
        nk.pp.histology_features(sdata, encoder=encoder)
        table = sdata["table"]
        table.obs_names = [f"{name}_{spot}" for spot in table.obs_names]
        table.obs["slide"] = name
        tables.append(table)
    both = ad.concat(tables, join="inner", merge="same")
    both.uns["nichekd"] = {"features": tables[0].uns["nichekd"]["features"]}
    return both, ["C2", "C3", "C4", "C5"]


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


def leave_one_out(options: argparse.Namespace) -> list[dict[str, Any]]:
    adata, slides = her2st(options.her2st, options.encoder)
    rows = []
    for slide in slides:
        test = (adata.obs["slide"] == slide).to_numpy()
        adata.obs["split"] = np.where(test, "test", "train")
        adata.obsm[TRUTH] = mixtures(adata, np.flatnonzero(~test))
        nk.pp.neighborhoods(adata, radius=300.0, library_key="slide")
        for seed in options.seeds:
            runs: dict[str, Callable[[], Any]] = {"ridge": lambda s=seed: ridge(adata, options.use_rep, s, "slide")}
            for name, align in (
                ("no gene branch", None),
                ("CUCA, published", "rmse"),
                ("CUCA, contrastive", "infonce"),
            ):
                runs[name] = lambda s=seed, a=align: nk.tl.cuca(
                    adata,
                    abundance_key=TRUTH,
                    use_rep=options.use_rep,
                    align=a,
                    seed=s,
                    library_key="slide",
                    device="cpu",
                )
            for name, run in runs.items():
                run()
                rows.append(judged(adata, unit="her2st", types=slide, method=name, seed=seed))
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def niches(adata: ad.AnnData, rep: str, k: int, seed: int) -> list[dict[str, Any]]:
    """Predicted compositions clustered into niches, and the distilled student, against one teacher."""
    from sklearn.cluster import KMeans

    nk.tl.nolan(adata, k, seed=seed) if "X_scVI" in adata.obsm else nk.tl.nolan(_with_latent(adata, seed), k, seed=seed)
    nk.tl.distill(adata, k, use_rep=rep, seed=seed)
    nk.tl.cuca(adata, abundance_key=TRUTH, use_rep=rep, seed=seed, device="cpu")
    train = (adata.obs["split"] == "train").to_numpy()
    graph = sparse.csr_matrix(adata.obsp["spatial_connectivities"]) + sparse.eye_array(adata.n_obs)
    for name, key in (("niche_cuca", "abundance"), ("niche_composition", TRUTH)):
        values = graph @ np.asarray(adata.obsm[key]) / np.asarray(graph.sum(1)).reshape(-1, 1)
        share = values / np.maximum(values.sum(1, keepdims=True), 1e-9)
        labels = KMeans(k, n_init=10, random_state=seed).fit(share[train]).predict(share)
        adata.obs[name] = pd.Categorical(labels.astype(str))
    table = nk.tl.agreement(adata, keys=["niche", "niche_cuca", "niche_composition"])
    return table.assign(K=k, seed=seed).to_dict("records")


def _with_latent(adata: ad.AnnData, seed: int) -> ad.AnnData:
    nk.pp.expression_features(adata, seed=seed)
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
    parser.add_argument("--no-tried", action="store_true", help="leave out what was tried besides")
    parser.add_argument("--max-epochs", type=int, default=CucaSettings().max_epochs)
    parser.add_argument("--her2st", type=Path)
    parser.add_argument("--niches", type=int, help="K of the comparison with the student; left out without")
    parser.add_argument("--name", default="crop")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    keep_freed_memory()
    nk.settings.progress = False
    fit = replace(CucaSettings(), max_epochs=options.max_epochs)
    started, rows, found = time.perf_counter(), [], []
    for unit, types, adata in units(options) if options.units else ():
        for seed in options.seeds:
            for name, run in methods(options.use_rep, seed, fit, tried=not options.no_tried).items():
                if options.methods and not any(part in name for part in options.methods):
                    continue
                if "surroundings" in name and unit == "spots":
                    continue  # theirs is that already
                begin = time.perf_counter()
                table = run(adata)
                took = time.perf_counter() - begin
                rows.append(
                    judged(
                        adata if table is None else table, unit=unit, types=types, method=name, seed=seed, seconds=took
                    )
                )
                print(rows[-1], file=sys.stderr, flush=True)
                save(options, started, rows, found)
        if options.niches and unit == "cells" and types == options.types[0]:
            found = [row for seed in options.seeds for row in niches(adata, options.use_rep, options.niches, seed)]
    transfer = leave_one_out(options) if options.her2st else []
    table = pd.DataFrame(rows + transfer)
    shown = table.groupby(["unit", "types", "method"], sort=False)[["pearson", "RMSE", "JSD", "colocalization"]]
    print(shown.agg(["mean", "std"]).to_string(float_format="%.3f"))
    if found:
        print(pd.DataFrame(found).to_string(index=False, float_format="%.3f"))
    save(options, started, rows + transfer, found)


def save(options: argparse.Namespace, started: float, rows: list[dict[str, Any]], found: list[dict[str, Any]]) -> None:
    """What there is so far: a run that is stopped leaves the methods it got to."""
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    result = {
        "command": "python benchmarks/cuca.py " + " ".join(words),
        "seconds": round(time.perf_counter() - started),
        "n_cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {p: version(p) for p in ("nichekd", "torch", "scikit-learn", "squidpy", "numpy")},
        "rows": pd.DataFrame(rows).to_dict("records"),
        "niches": found,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"cuca_{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

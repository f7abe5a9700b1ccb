"""What stands beside CUCA: baselines, floors, and what was tried to make expression count."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from cuca_units import AROUND, TRUTH
from scipy import sparse
from torch.nn import functional as F

import nichekd as nk
from nichekd._abundance import abundance_of, pearson
from nichekd.models._cuca import CucaObjective, rmse
from nichekd.tl import CucaSettings
from nichekd.tl._cuca_fit import fit_cuca
from nichekd.tl._cuca_inputs import validation_cells
from nichekd.tl._cuca_setup import build_model, read_inputs, training_data
from nichekd.tl._loop import make_fabric, seeded
from nichekd.tl._predict_abundance import write_abundance

if TYPE_CHECKING:
    from collections.abc import Callable

    import anndata as ad

FIXED = {"mean of training", "ridge"}  # no seed changes them
WEIGHTS = (0.3, 0.6, 0.1)
PENALTIES = np.logspace(1, 7, 13)
STEPS_FIRST = 600  # of the gene branch that is trained first


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


def fitted(
    adata: ad.AnnData, rep: str, seed: int, kind: type[CucaObjective], fit: CucaSettings, layer: str | None = None
) -> ad.AnnData:
    """nk.tl.cuca with another objective."""
    inputs = read_inputs(adata, abundance_key=TRUTH, use_rep=rep, layer=layer, n_genes=250, split_key="split")
    first, held_back = held(adata, inputs.train, inputs.margin, seed)
    with seeded(seed):
        model = build_model(inputs, {"use_rep": rep}, fit=fit, lora=None, encoder=None)
        network = model.config.network
        objective = kind(
            network, len(model.config.genes), align="infonce", weights=WEIGHTS, temperature=fit.temperature
        )
        fabric = make_fabric("cpu")
        data = training_data(adata, inputs, model, fit=fit, seed=seed, table_key="table")
        if isinstance(objective, TwoStage):
            objective.first(data, first, model.network, network.width, seed)
        fit_cuca(model, objective, data, first, held_back, all_train=inputs.train, fit=fit, seed=seed, fabric=fabric)
    write_abundance(adata, model, inputs.features, device="cpu", key_added="abundance")
    return adata


def held(adata: ad.AnnData, train: np.ndarray, margin: float, seed: int, library: str | None = None) -> tuple:
    rng = np.random.default_rng(seed)
    return validation_cells(
        adata, train, library_key=library, validation_key=None, share=CucaSettings().validation, margin=margin, rng=rng
    )


def ridge(adata: ad.AnnData, rep: str, seed: int, library: str | None = None) -> ad.AnnData:
    """All penalties from two products of matrices; the best on held-back cells, then fitted on all."""
    inputs = read_inputs(adata, abundance_key=TRUTH, use_rep=rep, layer=None, n_genes=None, split_key="split")
    x, y = np.asarray(inputs.features, dtype=np.float32), inputs.abundance.values
    first, held_back = held(adata, inputs.train, inputs.margin, seed, library)
    parts = products(x, y, first)
    scores = {a: np.nanmean(pearson(solve(x[held_back], parts, a), y[held_back])) for a in PENALTIES}
    found = solve(x, products(x, y, inputs.train), max(scores, key=lambda a: scores[a]))
    return put(adata, found.clip(0))


def products(x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    mean, sd, level = x[rows].mean(0, dtype=float), x[rows].std(0, dtype=float) + 1e-6, y[rows].mean(0)
    z = (x[rows] - mean.astype(np.float32)) / sd.astype(np.float32)
    return mean, sd, level, (z.T @ z).astype(float), z.T @ (y[rows] - level).astype(np.float32)


def solve(x: np.ndarray, parts: tuple[np.ndarray, ...], penalty: float) -> np.ndarray:
    mean, sd, level, square, cross = parts
    weights = np.linalg.solve(square + penalty * np.eye(len(square)), cross) / sd[:, None]
    return x @ weights.astype(np.float32) + (level - mean @ weights)


def put(adata: ad.AnnData, values: np.ndarray) -> ad.AnnData:
    adata.obsm["abundance"] = pd.DataFrame(
        values, index=adata.obs_names, columns=list(abundance_of(adata, TRUTH).types)
    )
    return adata


def mean_of_training(adata: ad.AnnData) -> ad.AnnData:
    values = abundance_of(adata, TRUTH).values
    return put(adata, np.broadcast_to(values[(adata.obs["split"] == "train").to_numpy()].mean(0), values.shape).copy())


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


def methods(
    rep: str, seed: int, fit: CucaSettings, *, tried: bool = False, around: bool = False, library: str | None = None
) -> dict[str, Callable[[ad.AnnData], ad.AnnData]]:
    """By name, what writes ``obsm["abundance"]`` and returns the table that it wrote to."""

    def cuca(adata: ad.AnnData, align: str | None, **options: Any) -> ad.AnnData:
        options = {"fit": fit, "seed": seed, "device": "cpu", "library_key": library} | options
        nk.tl.cuca(adata, abundance_key=TRUTH, use_rep=rep, align=align, **options)
        return adata

    found: dict[str, Callable[[ad.AnnData], ad.AnnData]] = {
        "mean of training": mean_of_training,
        "ridge": lambda a: ridge(a, rep, seed, library),
        "no gene branch": lambda a: cuca(a, None),
        "CUCA, published alignment": lambda a: cuca(a, "rmse"),
        "CUCA, contrastive": lambda a: cuca(a, "infonce"),
        "floor: shuffled genes": lambda a: cuca(shuffled(a, "genes", rep, seed), "infonce"),
        "floor: shuffled pairs": lambda a: cuca(shuffled(a, "pairs", rep, seed), "infonce"),
    }
    if tried:
        found |= {
            "CUCA, cosine": lambda a: cuca(a, "cosine"),
            "tried: stop-gradient": lambda a: fitted(a, rep, seed, StopGradient, fit),
            "tried: positives by type": lambda a: fitted(a, rep, seed, TypePositives, fit),
            "tried: two stages": lambda a: fitted(a, rep, seed, TwoStage, fit),
            "tried: gene teacher distilled": lambda a: fitted(a, rep, seed, Distilled, fit),
        }
    if tried and around:
        found["tried: expression of the surroundings"] = lambda a: cuca(a, "infonce", layer=AROUND)
    return found


def judged(adata: ad.AnnData, *, pairs: bool = True, **about: Any) -> dict[str, Any]:
    """Scores on the test strip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant types are counted here
        table = nk.tl.abundance_agreement(adata, truth=TRUTH, prediction="abundance", subset="test")
        moran = [
            nk.tl.colocalization(adata, key=key, subset="test").set_index(["type_a", "type_b"])["moran_r"]
            for key in (TRUTH, "abundance")
            if pairs
        ]
    found = about | {
        "pearson": table["pearson"].mean(),
        "spearman": table["spearman"].mean(),
        "RMSE": table["RMSE"].mean(),
        "JSD": table["JSD"].mean(),
        "n_types": int(table["pearson"].notna().sum()),
        "n_test": int((adata.obs["split"] == "test").sum()),
    }
    if pairs:
        together = pd.concat(moran, axis=1, keys=["true", "predicted"]).dropna()
        found["colocalization"] = together["true"].corr(together["predicted"], method="spearman")
    return found


def summary(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds."""
    shown = pd.DataFrame(rows).groupby(["unit", "types", "method"], sort=False)
    columns = ["pearson", "RMSE", "JSD", "colocalization"]
    return shown[columns].agg(["mean", "std"]).to_string(float_format="%.3f")


def about_this(script: str) -> dict[str, Any]:
    """Command, machine and versions."""
    return {
        "command": f"python benchmarks/{script} " + " ".join(Path(word).name for word in sys.argv[1:]),
        "n_cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {p: version(p) for p in ("nichekd", "torch", "scikit-learn", "squidpy", "numpy")},
    }

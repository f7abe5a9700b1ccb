"""The steps of chain.py: the tissue they run on, what each does, and the peers beside them."""

from __future__ import annotations

import shutil
import time
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

DENSITY = 0.006  # cells per µm², of the pancreas section
FIELD = 600.0  # µm
DOMAIN = 400.0  # µm, of a niche
MPP = 0.274
TILE_PX = 512
K, N_CLASSES, N_LATENT, N_GENES = 10, 8, 10, 377

# the tissue ---------------------------------------------------------------------------------------------------------


def tissue(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres (n, 2), µm, field by field, and classes (n,)."""
    import numpy as np

    rng = np.random.default_rng(0)
    per_side = max(1, int(np.ceil(np.sqrt(n / DENSITY) / FIELD)))
    side = np.sqrt(n / DENSITY)
    xy = rng.random((n, 2)) * side
    field = np.floor(xy / FIELD).astype(np.int64)
    xy = xy[np.argsort(field[:, 1] * per_side + field[:, 0], kind="stable")]
    # a random one of K domains in each square of a grid, whose edges are bent; each has its own odds of the classes
    bent = xy + 0.2 * DOMAIN * np.sin(xy[:, ::-1] / (0.5 * DOMAIN))
    square = np.floor(bent / DOMAIN).astype(np.int64) - int(np.floor(bent.min() / DOMAIN))
    domain = rng.integers(K, size=square.max(axis=0) + 1)[square[:, 0], square[:, 1]]
    odds = rng.dirichlet(np.full(N_CLASSES, 0.5), size=K).cumsum(axis=1)
    cell_class = (rng.random(n)[:, None] > odds[domain]).sum(axis=1)
    return xy, np.minimum(cell_class, N_CLASSES - 1)


def table(folder: Path):
    """The table as the steps before left it, features as a lazy array over their store."""
    from anndata import read_h5ad

    from nichekd.pp._feature_store import FeatureStore

    adata = read_h5ad(folder / "table.h5ad")
    if (folder / "features").exists():
        adata.obsm["X_image"] = FeatureStore(folder / "features").array()
    return adata


def keep(adata, folder: Path) -> None:
    """Write the table for the steps that follow, without the features, which have a store."""
    if "X_image" in adata.obsm:
        del adata.obsm["X_image"]
    adata.write_h5ad(folder / "table.h5ad")


def prepare(folder: Path, n: int) -> None:
    import numpy as np
    from anndata import AnnData

    import nichekd as nk

    xy, cell_class = tissue(n)
    rng = np.random.default_rng(1)
    centre = 3 * rng.standard_normal((N_CLASSES, N_LATENT), dtype=np.float32)
    latent = centre[cell_class] + rng.standard_normal((n, N_LATENT), dtype=np.float32)
    adata = AnnData(obsm={"spatial": xy, "X_latent": latent}, obs={"cell_class": cell_class})
    nk.pp.split(adata, mpp=MPP)
    folder.mkdir(parents=True, exist_ok=True)
    keep(adata, folder)


# the steps: each gives what is to be timed -----------------------------------------------------------------------------


def radius(adata, folder: Path, arguments: argparse.Namespace) -> Callable[[], Any]:
    import nichekd as nk

    return lambda: nk.pp.estimate_radius(adata)


def neighborhoods(adata, folder: Path, arguments: argparse.Namespace) -> Callable[[], Any]:
    import nichekd as nk

    return lambda: nk.pp.neighborhoods(adata)


def crops(adata, folder: Path, arguments: argparse.Namespace) -> Callable[[], Any]:
    import dask.array as da
    import numpy as np
    import torch

    import nichekd as nk
    from nichekd._frames import full_resolution

    class Nothing(torch.nn.Module):
        """A few pixels."""

        def forward(self, x):
            return x[:, :, ::56, ::56].flatten(1)

    pixels = full_resolution(nk.datasets.pancreas().images["he"]).data
    across = -(-(adata.obsm["spatial"].max(axis=0) / MPP + 1).astype(int) // np.array(pixels.shape[:0:-1]))
    sdata = nk.io.paired(adata, da.tile(pixels, (1, int(across[1]), int(across[0]))), mpp=MPP)
    shutil.rmtree(folder / "crops", ignore_errors=True)  # a complete store would be taken as it is
    encoder = nk.models.Encoder("nothing", Nothing())
    return lambda: nk.pp.histology_features(sdata, encoder=encoder, store=folder / "crops")


def features(adata, folder: Path, arguments: argparse.Namespace) -> Callable[[], Any]:
    import numpy as np

    from nichekd.pp._feature_store import FeatureStore, cells_hash
    from nichekd.pp._hilbert import reading_order

    px = np.floor(adata.obsm["spatial"] / MPP).astype(np.int64)
    edges = np.arange(0, px.max() + TILE_PX + 1, TILE_PX)
    order = reading_order(px, edges, edges)
    rng = np.random.default_rng(2)
    centre = rng.standard_normal((N_CLASSES, arguments.features), dtype=np.float32)
    cell_class = adata.obs["cell_class"].to_numpy()
    made_of = {"image_fingerprint": "none", "cells": cells_hash(px), "fingerprint": "synthetic", "precision": "32"}
    shutil.rmtree(folder / "features", ignore_errors=True)
    store = FeatureStore(folder / "features")

    def write() -> None:
        with store.writing(made_of, order=order, n_features=arguments.features, about={"encoder": "synthetic"}):
            for start in range(0, len(order), 1024):
                cells = order[start : start + 1024]
                noise = rng.standard_normal((len(cells), arguments.features), dtype=np.float32)
                store.append((centre[cell_class[cells]] + 2 * noise).astype(np.float16))

    return write


def expression(adata, folder: Path, arguments: argparse.Namespace) -> Callable[[], Any]:
    import numpy as np
    from anndata import AnnData
    from scipy.sparse import csr_matrix, vstack

    import nichekd as nk

    rng = np.random.default_rng(3)
    rate = rng.gamma(0.3, 1.0, (N_CLASSES, N_GENES)).astype(np.float32)
    classes = adata.obs["cell_class"].to_numpy()
    blocks = np.array_split(classes, -(-len(classes) // 10_000))
    counts = vstack([csr_matrix(rng.poisson(rate[block]).astype(np.float32)) for block in blocks], format="csr")
    cells = AnnData(X=counts, obs=adata.obs[["split"]], obsm={"spatial": adata.obsm["spatial"]})
    return lambda: nk.pp.expression_features(cells, device=arguments.device)


def nolan(adata, folder: Path, arguments: argparse.Namespace) -> Callable[[], Any]:
    import nichekd as nk

    return lambda: nk.tl.nolan(adata, K, use_rep="X_latent", device=arguments.device)


def histology_nolan(adata, folder: Path, arguments: argparse.Namespace) -> Callable[[], Any]:
    import nichekd as nk

    return lambda: nk.tl.histology_nolan(adata, K, use_rep="X_image", device=arguments.device)


def distill(adata, folder: Path, arguments: argparse.Namespace) -> Callable[[], Any]:
    import nichekd as nk

    fit = None if arguments.epochs is None else nk.tl.FitSettings(max_epochs=arguments.epochs, min_steps=0)
    train = partial(nk.tl.distill, adata, use_rep="X_image", fit=fit, device=arguments.device)
    return lambda: train().save(folder / "student")


def predict(adata, folder: Path, arguments: argparse.Namespace) -> Callable[[], Any]:
    import nichekd as nk

    student = nk.models.NicheStudent.load(folder / "student")
    return lambda: nk.tl.predict_niches(adata, student, use_rep="X_image", device=arguments.device)


def leiden(adata, folder: Path, arguments: argparse.Namespace) -> Callable[[], Any]:
    import nichekd as nk

    return lambda: nk.tl.histology_leiden(adata, K, use_rep="X_image")


def squidpy(adata, folder: Path, arguments: argparse.Namespace) -> Callable[[], Any]:
    from radius_graph import squidpy as graph

    return lambda: graph(adata, float(adata.uns["nichekd"]["radius"]))


STEPS: dict[str, tuple[Callable[..., Callable[[], Any]], str]] = {
    "radius": (radius, "`pp.estimate_radius`"),
    "neighborhoods": (neighborhoods, "`pp.neighborhoods`"),
    "crops": (crops, "`pp.histology_features`, all but the encoder"),
    "features": (features, "writing the feature store"),
    "expression": (expression, "`pp.expression_features`, scVI of 377 genes"),
    "nolan": (nolan, "`tl.nolan`"),
    "distill": (distill, "`tl.distill`"),
    "predict": (predict, "`tl.predict_niches`"),
    "histology_nolan": (histology_nolan, "`tl.histology_nolan`"),
    "leiden": (leiden, "`tl.histology_leiden`"),
}
COMPILED = {"radius", "neighborhoods"}  # numba's, once a machine
_FIT = ("lightning.fabric", "sklearn.cluster", "sklearn.covariance", "sklearn.decomposition", "nichekd.tl._fit")
IMPORTED = {  # before the clock runs
    "crops": ("torch", "nichekd.models", "spatialdata", "nichekd.io._tile_readers"),
    "expression": ("scvi", "lightning.pytorch"),
    "nolan": (*_FIT, "nichekd.tl._nolan_fit"),
    "histology_nolan": (*_FIT, "nichekd.tl._nolan_fit"),
    "distill": _FIT,
    "predict": _FIT,
    "leiden": ("scanpy", "igraph", "leidenalg", "pynndescent", "sklearn.decomposition", "sklearn.neighbors"),
}
PEERS = {"neighborhoods": "squidpy", "predict": "plain"}


def agreement(adata) -> float:
    """ARI of teacher and student on the test strip."""
    from sklearn.metrics import adjusted_rand_score

    test = adata.obs["split"] == "test"
    return float(adjusted_rand_score(adata.obs.loc[test, "niche_teacher"], adata.obs.loc[test, "niche"]))


def plain(folder: Path, n_cells: int) -> dict[str, float]:
    """Cells a second of the plain network, on cells whose neighbors' features lie in memory already."""
    import numpy as np
    import torch
    from neighborhood_transformer import BATCH, Plain, plain_batch

    import nichekd as nk
    from nichekd.models import NeighborhoodIndex

    adata = table(folder)
    student = nk.models.NicheStudent.load(folder / "student")
    graph = adata.obsp["spatial_connectivities"].tocsr()
    index = NeighborhoodIndex.from_graph(graph, adata.obsm["spatial"], student.config.radius)
    chosen = np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:n_cells])
    token, _ = index.tokens(chosen)
    rows = np.zeros((adata.n_obs, 1), dtype=np.int64)
    needed = np.unique(token)
    rows[needed, 0] = np.arange(len(needed))
    few = np.asarray(adata.obsm["X_image"][needed]).astype(np.float32)
    network, labels = Plain(student), []
    start, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        for part in np.array_split(chosen, -(-len(chosen) // BATCH)):
            which, offset, mask = plain_batch(index, rows, part)
            every = torch.from_numpy(few)[which[..., 0]]  # (B, L, F)
            labels.append(network(student.whiten(every), offset, mask).argmax(1).numpy())
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    ours = adata.obsm["student_logits"][chosen].argmax(1)
    return {
        "seconds": seconds * adata.n_obs / len(chosen),
        "cpu_seconds": cpu * adata.n_obs / len(chosen),
        "timed_cells": len(chosen),
        "same_labels": float((np.concatenate(labels) == ours).mean()),
    }

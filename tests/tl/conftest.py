from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import nichekd as nk
from nichekd.models import NolanSettings
from nichekd.tl import FitSettings

if TYPE_CHECKING:
    from anndata import AnnData

    from nichekd.models import NicheStudent


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Batches this small take longer on many threads than on one, and other tests may run beside these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_bars(monkeypatch):
    monkeypatch.setattr(nk.settings, "progress", False)


def principal_components(counts, n_components: int) -> np.ndarray:
    """Of log-normalised counts: expression features that take no training."""
    x = counts.toarray().astype(float)
    x = np.log1p(100 * x / np.maximum(x.sum(1, keepdims=True), 1))
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return (u[:, :n_components] * s[:n_components]).astype(np.float32)


@pytest.fixture(scope="session")
def quick_nolan() -> NolanSettings:
    """Enough to find planted niches in a small tissue, in a second or two."""
    return NolanSettings(n_steps=21, n_warm_start=40, batch_size=64)


@pytest.fixture(scope="session")
def quick_fit() -> FitSettings:
    """Enough to learn them."""
    return FitSettings(max_epochs=8, min_steps=0, batch_size=96, n_components=8)


@pytest.fixture(scope="session")
def section() -> AnnData:
    """1,500 cells of 3 planted niches, split, with neighborhoods; what an image would tell is expression and noise."""
    sdata = nk.datasets.simulate(1500, K=3, seed=0, image=False)
    adata = sdata["table"]
    adata.obsm["X_pca"] = principal_components(adata.X, 8)
    noise = np.random.default_rng(0).normal(size=(adata.n_obs, 16)) * adata.obsm["X_pca"].std()
    noise[:, :8] += adata.obsm["X_pca"]
    adata.obsm["X_image"] = noise.astype(np.float16)
    nk.pp.split(adata, mpp=0.25)
    nk.pp.neighborhoods(adata)
    return adata


@pytest.fixture(scope="session")
def taught(section, quick_nolan, quick_fit) -> tuple[AnnData, NicheStudent]:
    """The same, with the niches of a teacher and of its student, which is not to be changed."""
    adata = section.copy()
    nk.tl.nolan(adata, 3, use_rep="X_pca", fit=quick_nolan)
    student = nk.tl.distill(adata, 3, use_rep="X_image", fit=quick_fit)
    return adata, student


@pytest.fixture
def cells(section) -> AnnData:
    return section.copy()


@pytest.fixture
def taught_cells(taught) -> AnnData:
    return taught[0].copy()

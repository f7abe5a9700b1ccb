"""Two sections with the very same coordinates in one table, from the split to the prediction."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from anndata import AnnData

import nichekd as nk
from nichekd.tl import FitSettings

HALF = 200


@pytest.fixture(scope="module")
def two():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 250, (HALF, 2))
    niche = (xy[:, 0] > 125).astype(int)
    latent = np.eye(2)[np.tile(niche, 2)] * 4 + rng.normal(0, 1, (2 * HALF, 2))
    adata = AnnData(
        obs={"slide": ["a"] * HALF + ["b"] * HALF, "niche_teacher": np.tile(niche, 2).astype(str)},
        obsm={"spatial": np.tile(xy, (2, 1)), "X_latent": latent.astype(np.float32)},
    )
    nk.pp.split(adata, crop_px=0, library_key="slide")
    return adata


@pytest.mark.filterwarnings("ignore:.* of the cells look unlike:UserWarning")  # so few cells
def test_the_chain_keeps_sections_apart(two):
    adata = two.copy()
    fit = FitSettings(max_epochs=1, min_steps=0, n_components=2)
    student = nk.tl.distill(adata, use_rep="X_latent", teacher="niche_teacher", fit=fit)
    assert adata.uns["nichekd"]["neighborhoods"]["library_key"] == "slide"
    graph = adata.obsp["spatial_connectivities"]
    assert graph[:HALF, HALF:].nnz == 0
    assert len(nk.tl.pathology_probe(adata, annotation_key="slide")) == 2
    del adata.obsp["spatial_connectivities"], adata.uns["nichekd"]["neighborhoods"]
    nk.tl.predict_niches(adata, student, use_rep="X_latent")
    assert adata.obsp["spatial_connectivities"][:HALF, HALF:].nnz == 0


def test_a_student_reads_test_cells_alone(taught):
    section, student = taught
    part = section[section.obs["split"] == "test"].copy()
    del part.obsp, part.uns["nichekd"]["radius"]
    nk.tl.predict_niches(part, student, use_rep="X_image")
    whole = section.obs["niche"][section.obs["split"] == "test"].astype(str)
    assert (part.obs["niche"].astype(str) == whole).mean() > 0.99
    part.obs["split"] = "val"
    nk.tl.predict_niches(part, student, use_rep="X_image")
    assert (part.obs["niche"].astype(str) == whole).mean() > 0.99


def test_neighborhoods_take_the_sections_of_the_split(two):
    adata = two.copy()
    nk.pp.neighborhoods(adata, radius=30)
    assert adata.obsp["spatial_connectivities"][:HALF, HALF:].nnz == 0


@pytest.mark.filterwarnings("ignore:.* of the cells look unlike:UserWarning")
def test_sections_put_together_keep_what_is_known_of_their_features():
    parts = {}
    for seed, name in enumerate("ab"):
        sdata = nk.datasets.simulate(400, K=2, seed=seed)
        nk.pp.histology_features(sdata, encoder="color", crop_px=64)
        parts[name] = sdata["table"]
    both = anndata.concat(parts, label="slide", index_unique="-", uns_merge="same")
    nk.pp.split(both, library_key="slide", mpp=0.25, crop_px=64)
    fit = FitSettings(max_epochs=1, min_steps=0, n_components=4)
    student = nk.tl.distill(both, teacher="niche_true", fit=fit)
    slide = nk.datasets.simulate(300, K=2, seed=7)
    nk.tl.predict_niches(slide, student)
    assert "X_color" in slide["table"].obsm


def test_radius_and_composition_are_of_each_section(two):
    adata = two.copy()
    adata.obs["kind"] = adata.obs["niche_teacher"]
    alone = adata[:HALF].copy()
    del alone.uns["nichekd"]["split"]["library_key"]
    assert nk.pp.estimate_radius(adata) == pytest.approx(nk.pp.estimate_radius(alone), rel=0.05)
    for cells in (adata, alone):
        nk.pp.neighborhood_composition(cells, cell_type_key="kind", radius=30)
    found, wanted = (cells.obsm["cell_abundance"][:HALF].to_numpy() for cells in (adata, alone))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.filterwarnings("ignore:.* of the cells look unlike:UserWarning")
def test_an_evaluation_keeps_sections_apart(two):
    adata = two.copy()
    adata.obsm["X_scVI"] = adata.obsm["X_latent"]
    settings = {"fit": FitSettings(max_epochs=1, min_steps=0, n_components=2, validation=0)}
    settings["nolan_fit"] = nk.models.NolanSettings(n_steps=2, n_warm_start=2, batch_size=32)
    table = nk.tl.evaluate(adata, K=2, seeds=0, use_rep="X_latent", methods=["niche_histology_nolan"], **settings)
    assert table["n_cells"].tolist() == [int((adata.obs["split"] == "test").sum())]


@pytest.mark.parametrize("held_out", [False, True])
def test_scvi_corrects_for_sections_of_which_it_sees_some(two, monkeypatch, held_out):
    """A section that is all test has no training cells that would tell what to correct for."""
    adata = two.copy()
    if held_out:
        adata.obs["split"] = np.where(adata.obs["slide"] == "b", "test", "train")
    asked = []

    def latent(data, *, batch_key, **kwargs):
        asked.append(batch_key)
        data.obsm["X_scVI"] = data.obsm["X_latent"]

    monkeypatch.setattr(nk.pp, "expression_features", latent)
    fit = nk.models.NolanSettings(n_steps=2, n_warm_start=2, batch_size=32)
    nk.tl.nolan(adata, 2, fit=fit)
    assert asked == [None if held_out else "slide"]

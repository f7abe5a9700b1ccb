"""Sections, sides and backed tables, as the public functions meet them."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData, read_h5ad

import nichekd as nk


def strewn(n=300, seed=0, **obs) -> AnnData:
    xy = np.random.default_rng(seed).uniform(0, 150, (n, 2))
    return AnnData(obs=obs or {"cell": [str(i) for i in range(n)]}, obsm={"spatial": xy})


def n_edges(adata) -> int:
    return adata.obsp["spatial_connectivities"].nnz


# sides of a split


def test_test_cells_alone_get_neighborhoods_of_a_given_radius():
    alone = strewn(split=["test"] * 300)
    nk.pp.neighborhoods(alone, radius=20)
    plain = strewn()
    nk.pp.neighborhoods(plain, radius=20)
    assert n_edges(alone) == n_edges(plain)


def test_test_cells_alone_have_no_radius_to_estimate():
    with pytest.raises(ValueError, match=r"no 'train' cell.*radius= of nk\.pp\.neighborhoods"):
        nk.pp.neighborhoods(strewn(split=["test"] * 300))


def test_test_cells_alone_have_a_composition():
    alone = strewn(split=["test"] * 300, kind=["a", "b"] * 150)
    nk.pp.neighborhood_composition(alone, cell_type_key="kind", radius=20)
    assert alone.obsm["cell_abundance"].to_numpy().sum() > 300


def test_a_split_of_somebody_else_keeps_nothing_apart(caplog):
    theirs = strewn(split=["val", "train", None] * 100)
    nk.pp.neighborhoods(theirs, radius=20)
    assert "['train', 'val'] and 100 missing" in caplog.text
    assert "one side" in caplog.text
    plain = strewn()
    nk.pp.neighborhoods(plain, radius=20)
    assert n_edges(theirs) == n_edges(plain)


def test_a_split_of_somebody_else_is_not_fitted_on():
    with pytest.raises(ValueError, match=r"\['val'\].*rename it first.*split_key="):
        nk.pp.estimate_radius(strewn(split=["val"] * 300))


def test_a_column_that_was_named_has_to_be_a_split():
    with pytest.raises(ValueError, match=r"obs\['fold'\] holds \['one'\].*split_key="):
        nk.pp.neighborhoods(strewn(fold=["one"] * 300), radius=20, split_key="fold")


# sections with coordinates of their own


def two_sections() -> AnnData:
    once = strewn(150)
    return AnnData(obs={"slide": ["a"] * 150 + ["b"] * 150}, obsm={"spatial": np.tile(once.obsm["spatial"], (2, 1))})


def test_duplicates_may_be_sections():
    with pytest.raises(ValueError, match=r"150 duplicate cell centres.*sections.*library_key="):
        nk.pp.neighborhoods(two_sections(), radius=20)


def test_duplicates_within_a_recorded_section():
    adata = two_sections()
    nk.pp.split(adata, crop_px=0, library_key="slide")
    adata.obs["kind"] = ["x", "y"] * 150
    nk.tl.pathology_probe(adata, annotation_key="kind", keys="slide", subset=None)
    adata.obsm["spatial"][1] = adata.obsm["spatial"][0]
    with pytest.raises(ValueError, match=r"1 duplicate cell centres within sections of obs\['slide'\]. Drop them"):
        nk.tl.pathology_probe(adata, annotation_key="kind", keys="slide", subset=None)


def test_sections_of_one_image_lie_side_by_side():
    adata = two_sections()
    nk.pp.split(adata, crop_px=0, library_key="slide")
    with pytest.raises(ValueError, match=r"on one image they have to lie side by side"):
        nk.io.paired(adata, np.zeros((400, 400, 3), np.uint8), mpp=0.5)


def test_sections_told_apart_by_the_split_stay_apart():
    adata = strewn(slide=["a"] * 150 + ["b"] * 150)
    nk.pp.split(adata, crop_px=0, library_key="slide")
    nk.pp.neighborhoods(adata, radius=30)
    assert adata.obsp["spatial_connectivities"][:150, 150:].nnz == 0
    assert adata.uns["nichekd"]["neighborhoods"]["library_key"] == "slide"


# backed tables


def test_a_view_of_a_backed_table_is_read(tmp_path, caplog):
    made = AnnData(np.ones((40, 2), np.float32), obsm={"spatial": strewn(40).obsm["spatial"]})
    made.write_h5ad(tmp_path / "cells.h5ad")
    backed = read_h5ad(tmp_path / "cells.h5ad", backed="r")
    part = backed[:20]
    nk.pp.neighborhoods(part, radius=400)
    assert part.obs["n_neighbors"].tolist() == [19] * 20
    assert "read into memory: 20 cells" in caplog.text
    assert "n_neighbors" not in backed.obs
    backed.file.close()


def test_a_backed_table_gets_as_far_as_one_in_memory(tmp_path):
    made = AnnData(np.ones((40, 2), np.float32), obsm={"spatial": strewn(40).obsm["spatial"]})
    sdata = nk.io.paired(made, np.zeros((400, 400, 3), np.uint8), mpp=0.5)
    sdata["table"].write_h5ad(tmp_path / "cells.h5ad")
    backed = read_h5ad(tmp_path / "cells.h5ad", backed="r")
    sdata["table"] = backed
    with pytest.raises(KeyError, match=r"obsm\['X_none'\] is missing"):
        nk.tl.gene_aware_encoder(sdata, target="X_none")
    backed.file.close()


# labels and keys


def test_categories_that_read_alike_are_named():
    import pandas as pd

    adata = strewn(niche_a=pd.Categorical([1, "1", 2] * 100), niche_teacher=["1", "2", "3"] * 100)
    with pytest.raises(ValueError, match=r"obs\['niche_a'\] has categories that read alike, \[1, '1'\]"):
        nk.tl.agreement(adata, keys="niche_a", subset=None)


@pytest.mark.parametrize(
    "key", ["student", "niche_student", "niche_teacher", "niche_histology_nolan", "niche_histology_leiden", "teacher"]
)
def test_a_student_overwrites_nobody(key):
    with pytest.raises(ValueError, match=rf"key_added='{key}' would write .*_logits.*key_added='niche_second'"):
        nk.tl.distill(strewn(), 3, key_added=key)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from scipy.sparse import issparse

import nichekd as nk


@pytest.fixture(scope="module")
def sdata():
    return nk.datasets.pancreas()


def test_has_cells_outlines_and_image_in_one_frame(sdata):
    adata = sdata["table"]
    assert adata.shape == (5797, 377)
    assert issparse(adata.X)
    assert adata.X.dtype == np.uint16
    assert {"area_um2", "graphclust", "cell_type"} <= set(adata.obs)
    assert sdata["he"].shape == (3, 3650, 3650)
    assert sdata["he"].dtype == np.uint8
    assert sdata["cells"].index.equals(adata.obs_names)
    centroids = shapely.centroid(sdata["cells"].geometry.to_numpy())
    apart = np.hypot(*(np.column_stack([shapely.get_x(centroids), shapely.get_y(centroids)]) - adata.obsm["spatial"]).T)
    assert apart.max() < 0.5


def test_nuclei_lie_where_the_cells_are(sdata):
    """Mirrored or shifted, the cells would no longer hit what is darkest in red: nuclei."""
    red = sdata["he"].data[0].compute()
    column, row = (sdata["table"].obsm["spatial"] / 0.274).astype(int).T
    at_cells = red[row, column].mean()
    assert at_cells < red.mean() - 10
    assert at_cells < red[row, 3649 - column].mean() - 10
    assert at_cells < red[3649 - row, column].mean() - 10


def test_says_that_the_image_is_virtual_and_whose_it_is(sdata):
    about = sdata["table"].uns["dataset"]
    assert about["he_is_virtual"] is True
    assert "VIRTUAL" in about["he"]
    assert "10x Genomics" in about["origin"]
    assert "CC BY 4.0" in about["license"]
    assert "broadinstitute" in about["conversion"]


def test_licence_lies_beside_the_data():
    from nichekd.datasets._pancreas import FOLDER

    text = (FOLDER / "LICENSE.md").read_text()
    assert all(word in text for word in ("10x Genomics", "CC BY 4.0", "Broad Institute", "BSD-3-Clause"))
    assert sum(path.stat().st_size for path in Path(FOLDER).iterdir()) < 6e6


def test_each_call_is_a_new_object(sdata):
    other = nk.datasets.pancreas()
    other["table"].obs["cell_type"] = "changed"
    assert (sdata["table"].obs["cell_type"] != "changed").all()


def test_table_survives_h5ad(sdata, tmp_path):
    import anndata

    sdata["table"].write_h5ad(tmp_path / "cells.h5ad")
    back = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert back.uns["dataset"]["he"] == sdata["table"].uns["dataset"]["he"]

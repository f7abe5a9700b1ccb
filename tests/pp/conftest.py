from __future__ import annotations

from importlib.resources import files

import pytest
from anndata import AnnData, read_h5ad


@pytest.fixture
def pancreas_cells() -> AnnData:
    """The cells of the bundled section."""
    return read_h5ad(files("nichekd.datasets") / "data" / "pancreas" / "cells.h5ad")

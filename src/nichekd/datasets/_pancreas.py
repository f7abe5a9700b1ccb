from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nichekd.io._paired import paired

if TYPE_CHECKING:
    from spatialdata import SpatialData

FOLDER = Path(__file__).parent / "data" / "pancreas"
MPP = 0.274
ABOUT = {
    "name": "pancreas",
    "he": (
        "VIRTUAL H&E: rendered from the same run's fluorescence stains (DAPI, membrane, 18S RNA, protein) by the "
        "Beer-Lambert law, not a photographed H&E; no gene counts went into it. Results on it are optimistic: cells "
        "and image are registered to the pixel, and staining does not vary."
    ),
    "he_is_virtual": True,
    "origin": (
        "10x Genomics, public data set Xenium V1 human pancreas FFPE with multimodal cell segmentation; a region of "
        "1,000 x 1,000 um"
    ),
    "license": "CC BY 4.0 (10x Genomics); https://creativecommons.org/licenses/by/4.0/",
    "conversion": (
        "Read through the file conversion of broadinstitute/celldega_Xenium_human_Pancreas_FFPE, whose own files carry "
        "the Broad Institute's academic licence"
    ),
    "cell_type": "Reading of the 10x graph clusters by their top genes; for evaluation only, never for training",
}


def pancreas() -> SpatialData:
    """A small real section that ships with the package: human pancreas at the edge of a tumour.

    1,000 × 1,000 µm of a public Xenium V1 section (10x Genomics, CC BY 4.0): ductal adenocarcinoma, an artery, ducts,
    acini and islets; 5,797 cells × 377 genes. Nothing is downloaded.

    Its H&E is **virtual**: rendered from the fluorescence stains of the same section, without the genes. Nuclei,
    glands and vessels are real, and registered to the pixel, which a photographed H&E never is.

    Returns
    -------
    With

    - ``images["he"]``: 3,650 × 3,650 px at 0.274 µm/px, read from the package's folder as needed;
    - ``shapes["cells"]``: the cells' outlines in µm;
    - ``tables["table"]``: raw counts in ``X``; ``obs``: ``area_um2``, ``graphclust``, ``cell_type`` (for evaluation
      only; ``"none"`` for the 20 cells without counts); centres in µm in ``obsm["spatial"]``;
      ``uns["dataset"]``: what the image is, origin and licences.

    Examples
    --------
    >>> import nichekd as nk
    >>> sdata = nk.datasets.pancreas()
    >>> sdata["table"].shape
    (5797, 377)
    >>> sdata["table"].uns["dataset"]["he_is_virtual"]
    True
    """
    import anndata
    import geopandas

    adata = anndata.read_h5ad(FOLDER / "cells.h5ad")
    adata.uns["dataset"] = dict(ABOUT)
    outlines = geopandas.read_parquet(FOLDER / "cells.parquet")
    return paired(adata, FOLDER / "he.ome.tif", mpp=MPP, shapes=outlines)

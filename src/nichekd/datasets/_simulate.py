from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nichekd._keys import Keys
from nichekd._record import record
from nichekd._units import MPP_RANGE
from nichekd.datasets._drawing import Drawing, as_dask, draw_nuclei
from nichekd.datasets._expression import compositions, draw_counts, draw_types
from nichekd.datasets._tissue import draw_tissue

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData

log = logging.getLogger(__name__)

CIRCLE_UM = 5.0  # radius that stands for a cell where no outline is drawn
AT_ONCE_PX = 64_000_000  # an image up to this size is drawn at once and kept, 190 MB; a larger one as it is read


def simulate(
    n_cells: int = 5000,
    K: int = 5,
    seed: int = 0,
    *,
    n_genes: int = 150,
    n_cell_types: int = 8,
    mpp: float = 0.25,
    image: bool = True,
) -> SpatialData:
    """A tissue with planted niches, and a drawn image that tells its cell types apart only weakly.

    Niches are smooth domains, each in all four strips of :func:`nichekd.pp.split` as far as there is room. A niche has
    its own mix of cell types, and cells lie denser in some niches than in others, about 4,000 per mm² and never closer
    than 6 µm. Counts are negative binomial around the profile of the cell's type, with varying library sizes and mild
    shifts between niches. The image is drawn after an H&E: purple nuclei on a pink ground; size, shape and stain of a
    nucleus depend on its type by a third of their spread, the ground depends a little on the niche.

    Parameters
    ----------
    n_cells
        Number of cells.
    K
        Number of niches.
    seed
        Same seed, same tissue.
    n_genes
        Number of genes.
    n_cell_types
        Number of cell types.
    mpp
        µm per pixel of the image. The cells don't depend on it.
    image
        Draw the image. One of up to 64 million pixels, some 16,000 cells, is drawn at once; a larger one block by
        block as it is read, each block the same whoever reads it and when, so that a million cells are no problem.

    Returns
    -------
    With

    - ``tables["table"]``: counts in ``X``; the truth in ``obs["niche_true"]`` and ``obs["cell_type"]``; centres in µm
      in ``obsm["spatial"]``; ``uns["dataset"]`` with the parameters and the ``composition``, (K, n_cell_types);
    - ``shapes["cells"]``: circles in µm;
    - ``images["he"]``, unless ``image=False``.

    Raises
    ------
    TypeError
        If a number is not whole where it has to be.
    ValueError
        If ``K`` is under 2 or more than ``n_cells``; if there are fewer than 2 cell types, fewer genes than cell
        types, or more niches than pairs of cell types tell apart; if ``mpp`` is none a microscope has.

    Examples
    --------
    >>> import nichekd as nk
    >>> sdata = nk.datasets.simulate(500, K=3, image=False)
    >>> sdata["table"].obs["niche_true"].cat.categories.tolist()
    ['0', '1', '2']
    """
    started = time.perf_counter()
    _check_whole(n_cells=n_cells, K=K, seed=seed, n_genes=n_genes, n_cell_types=n_cell_types)
    _check(n_cells, K, seed, n_genes, n_cell_types, mpp)
    # a stream for each part: leaving out the image changes no cell
    places, kinds, expression, looks, drawing = np.random.SeedSequence(seed).spawn(5)
    tissue = draw_tissue(places, n_cells, K)
    rng = np.random.default_rng(kinds)
    shares = compositions(rng, K, n_cell_types)
    cell_type = draw_types(rng, tissue.niche, shares)
    counts = draw_counts(expression, cell_type, tissue.niche, n_cell_types=n_cell_types, K=K, n_genes=n_genes)
    adata = _table(counts, tissue.xy, tissue.niche, cell_type, shares)
    parameters = {"n_cells": n_cells, "K": K, "seed": seed, "n_genes": n_genes, "n_cell_types": n_cell_types}
    adata.uns["dataset"] = {
        "name": "simulate",
        "he": "drawn" if image else "none",
        "he_is_virtual": True,
        "composition": shares,
        **parameters,
    }
    if image:
        from nichekd.io._paired import paired

        nuclei = draw_nuclei(np.random.default_rng(looks), cell_type, n_cell_types)
        token = ("nichekd.simulate", *parameters.values(), mpp)
        picture = as_dask(Drawing(tissue, nuclei, mpp=mpp, K=K, seed=drawing, token=token), at_once_px=AT_ONCE_PX)
        sdata = paired(adata, picture, mpp=mpp)
    else:
        sdata = _without_image(adata)
    record(sdata.tables["table"], "simulate", seconds=time.perf_counter() - started, mpp=mpp, image=image, **parameters)
    log.info("%d cells in %d niches on %.0f x %.0f um", n_cells, K, *tissue.size_um)
    return sdata


def _check_whole(**numbers: int) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name} is {value!r}, a {type(value).__name__}; it has to be a whole number.")


def _check(n_cells: int, K: int, seed: int, n_genes: int, n_cell_types: int, mpp: float) -> None:
    if n_cells < 2:
        raise ValueError(f"n_cells is {n_cells}; a tissue has at least 2.")
    if not 2 <= K <= n_cells:
        raise ValueError(f"K is {K}; it has to be at least 2, and at most the number of cells, {n_cells:,}.")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it has to be 0 or more.")
    if n_cell_types < 2 or n_genes < n_cell_types:
        raise ValueError(
            f"n_cell_types is {n_cell_types} and n_genes {n_genes}; it takes at least 2 cell types, and a gene for each."
        )
    if K > n_cell_types * (n_cell_types - 1):
        raise ValueError(
            f"K is {K}, but {n_cell_types} cell types make only {n_cell_types * (n_cell_types - 1)} niches with another "
            "pair of commonest types each. Raise n_cell_types= or lower K."
        )
    low, high = MPP_RANGE
    if not low <= mpp <= high:
        raise ValueError(f"mpp is {mpp}; a microscope image has {low} to {high} µm per pixel.")


def _table(
    counts: csr_matrix,
    xy: NDArray[np.float64],
    niche: NDArray[np.int64],
    cell_type: NDArray[np.int64],
    shares: NDArray[np.float64],
) -> AnnData:
    """The cells with the truth about them."""
    from anndata import AnnData

    K, n_cell_types = shares.shape
    kinds = [f"type_{i}" for i in range(n_cell_types)]
    obs = pd.DataFrame(
        {
            Keys.NICHE_TRUE: pd.Categorical.from_codes(niche, [str(k) for k in range(K)]),
            Keys.CELL_TYPE: pd.Categorical.from_codes(cell_type, kinds),
        },
        index=[f"cell_{i}" for i in range(len(xy))],
    )
    var = pd.DataFrame(index=[f"gene_{i}" for i in range(counts.shape[1])])
    return AnnData(X=counts, obs=obs, var=var, obsm={Keys.SPATIAL: xy})


def _without_image(adata: AnnData) -> SpatialData:
    """Cells as circles, and the table that annotates them, as :func:`nichekd.io.paired` lays them out."""
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity

    adata.obs["region"] = pd.Categorical(["cells"] * adata.n_obs)
    adata.obs["instance_id"] = adata.obs_names.to_numpy()
    circles = ShapesModel.parse(
        adata.obsm[Keys.SPATIAL],
        geometry=0,
        radius=CIRCLE_UM,
        index=adata.obs_names,
        transformations={"global": Identity()},
    )
    table = TableModel.parse(adata, region="cells", region_key="region", instance_key="instance_id")
    return SpatialData(shapes={"cells": circles}, tables={"table": table})

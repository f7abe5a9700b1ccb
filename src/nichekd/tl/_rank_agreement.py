from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nichekd._keys import Keys
from nichekd._labels import subset_mask
from nichekd._record import record
from nichekd._resolve import get_table, require
from nichekd._seeds import check_seed
from nichekd._triplets import (
    FEWEST,
    Triplets,
    default_subset,
    draw_from_graph,
    draw_triplets,
    gaps,
    order_agreement,
    representation,
    unit_rows,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

log = logging.getLogger(__name__)

SCALES = ("neighborhood", "slide", "across")


def rank_agreement(
    data: AnnData | SpatialData,
    *,
    a: str | Sequence[str],
    b: str = Keys.SMOOTHED,
    library_key: str | None = None,
    n_triplets: int = 100_000,
    scales: str | Sequence[str] = "slide",
    subset: str | None = "auto",
    split_key: str = Keys.SPLIT,
    seed: int = 0,
    table_key: str = "table",
) -> pd.DataFrame:
    r"""How often two representations agree which of two cells is more like a third.

    Triplets of cells k, i, j are drawn at random, and

    .. math:: P\big[\mathrm{sign}(S^a_{ki} - S^a_{kj}) = \mathrm{sign}(S^b_{ki} - S^b_{kj})\big]

    is estimated, S the cosine similarity of rows less the mean of the cells compared (the cosine of the rows
    themselves is mostly that of the mean). It is ½ by chance and for a representation that is the same everywhere,
    0 for the reverse order; :math:`2P - 1` is Kendall's :math:`\tau` of an anchor's similarities, averaged.

    Parameters
    ----------
    data
        Cells with the representations.
    a
        One or several, which are judged on the same triplets: keys of ``obsm``, of a layer, or ``"X"``.
    b
        The one whose order they should have; ``X`` and layers of counts are log-normalised.
    library_key
        Column of ``obs`` that tells slides apart; default one slide.
    n_triplets
        Triplets a slide and scale.
    scales
        ``"slide"``: triplets within a slide; ``"neighborhood"``: a cell and two of its neighbors in
        ``obsp["spatial_connectivities"]``; ``"across"``: any three cells.
    subset
        ``"train"``, ``"test"`` or ``"buffer"``; all cells for ``None``; ``"auto"``: the test cells where there is a
        split.
    split_key
        Column of ``obs`` with the split.
    seed
        Of the triplets.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    A row per representation, scale and slide: ``a``, ``b``, ``scale``, ``library`` (missing for scale ``across``),
    ``agreement``, ``n_triplets`` (those in which ``b`` tells the two apart) and ``n_cells``.
    Writes ``uns["nichekd"]["rank_agreement"]``.

    Raises
    ------
    KeyError
        If a representation, the graph, ``library_key``, or the split of a ``subset``, is missing.
    ValueError
        If a slide has fewer than 4 cells, rows are 0 throughout or NaN, ``n_triplets`` is below 1, or a scale is
        unknown.

    Examples
    --------
    >>> import numpy as np
    >>> import nichekd as nk
    >>> from anndata import AnnData
    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> cells = AnnData(obsm={"X_one": x, "X_mirrored": -x})
    >>> nk.tl.rank_agreement(cells, a="X_mirrored", b="X_one")["agreement"].item()
    1.0
    """
    check_seed(seed)
    start = perf_counter()
    adata = get_table(data, table_key)
    keys = [a] if isinstance(a, str) else list(a)
    wanted = [scales] if isinstance(scales, str) else list(scales)
    if n_triplets < 1 or not keys:
        raise ValueError(f"n_triplets={n_triplets}, a={keys}; there has to be at least one of each.")
    if not wanted or set(wanted) - set(SCALES):
        raise ValueError(f"scales={wanted}; name one or more of {list(SCALES)}.")
    mask = subset_mask(adata, default_subset(adata, subset, split_key), split_key=split_key)
    rng = np.random.default_rng(seed)
    rows = []
    for scale, library, cells, triplets in _parts(adata, wanted, mask, library_key, n_triplets, rng):
        wide = gaps(unit_rows(representation(adata, b, cells)), triplets)
        for key in keys:
            found, n = order_agreement(gaps(unit_rows(representation(adata, key, cells)), triplets), wide)
            rows.append(
                {"a": key, "b": b, "scale": scale, "library": library, "agreement": found, "n_triplets": n}
                | {"n_cells": len(cells)}
            )
    record(
        adata, "rank_agreement", seconds=perf_counter() - start, a=keys, b=b, library_key=library_key,
        n_triplets=n_triplets, scales=wanted, seed=seed,
    )  # fmt: skip
    return pd.DataFrame(rows)


def _parts(
    adata: AnnData,
    scales: list[str],
    mask: NDArray[np.bool_],
    library_key: str | None,
    n_triplets: int,
    rng: np.random.Generator,
) -> Iterator[tuple[str, Any, NDArray[np.intp], Triplets]]:
    """Scale, slide, its cells, and triplets of them."""
    slides = _slides(adata, library_key, mask)
    graph = None
    if "neighborhood" in scales:
        graph = require(adata, "obsp", Keys.CONNECTIVITIES, run="nk.pp.neighborhoods").tocsr()
    for scale in scales:
        if scale == "across":
            cells = np.flatnonzero(mask)
            yield scale, None, cells, draw_triplets(len(cells), n_triplets, rng)
            continue
        for name, cells in slides.items():
            if graph is None or scale == "slide":
                yield scale, name, cells, draw_triplets(len(cells), n_triplets, rng)
                continue
            near = draw_from_graph(graph[cells][:, cells].tocsr(), n_triplets, rng)
            if not len(near.anchor):
                log.warning("%s: no cell has two neighbors, so there is no order of them", name)
            yield scale, name, cells, near


def _slides(adata: AnnData, library_key: str | None, mask: NDArray[np.bool_]) -> dict[Any, NDArray[np.intp]]:
    """Cells of each slide."""
    if library_key is None:
        found = {None: np.flatnonzero(mask)}
    else:
        column = require(adata, "obs", library_key, run="your reading of several slides")
        if missing := int(column.isna()[mask].sum()):
            raise ValueError(f"obs[{library_key!r}] is missing for {missing:,} cells. Fill it in, or leave them out.")
        names = column.astype(str).to_numpy()
        found = {name: np.flatnonzero(mask & (names == name)) for name in sorted(set(names[mask]))}
    if few := {str(name): len(cells) for name, cells in found.items() if len(cells) < FEWEST}:
        raise ValueError(
            f"Too few cells to put in order: {few}; each slide needs {FEWEST}. Choose another subset= or library_key=, "
            "or leave such slides out."
        )
    return found

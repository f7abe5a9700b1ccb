"""What was made before a split does not know of it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Final

import numpy as np

from nichekd._keys import Keys

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

#: Calls that learn from training cells; without a split from all.
FITTED: Final = (
    "nk.pp.expression_features",
    "nk.tl.nolan",
    "nk.tl.gene_aware_encoder",
    "nk.tl.distill",
    "nk.tl.histology_nolan",
    "nk.tl.histology_leiden",
    "nk.tl.rank_by_gene",
    "nk.tl.cuca",
    "nk.tl.predict_expression",
)


def warn_of_older(adata: AnnData, labels: NDArray[np.str_], key: str) -> None:
    """Warn of a graph that may cross the new split, and of networks that may have seen its test cells.

    A radius that was estimated goes, for test cells had a say in it; one that was given stays. A split that
    ``obs[key]`` holds already makes nothing old.
    """
    if key in adata.obs and np.array_equal(adata.obs[key].astype(str), labels):
        return
    found = []
    if _forget_estimated(adata):
        found.append(
            "uns['nichekd']['radius'] was estimated before this split, from its test cells, too, and is removed: "
            "nk.pp.neighborhoods estimates it anew. A radius that is given stays, nk.pp.neighborhoods(data, radius=...)."
        )
    if Keys.CONNECTIVITIES in adata.obsp:
        found.append(
            "obsp['spatial_connectivities'] was made before this split and may cross it. Run nk.pp.neighborhoods again."
        )
    ran = [str(name) for name in adata.uns.get(Keys.UNS, {})]
    if fitted := [call for call in FITTED if any(_is_of(name, call.rpartition(".")[2]) for name in ran)]:
        found.append(
            f"What {', '.join(fitted)} fitted before this split may have seen its test cells. Run that again, too."
        )
    if found:
        warnings.warn(" ".join(found), UserWarning, stacklevel=3)


def _forget_estimated(adata: AnnData) -> bool:
    """Remove the radius if it is the one that ``nk.pp.estimate_radius`` found; whether it did."""
    known = adata.uns.get(Keys.UNS, {})
    estimated = known.get("estimate_radius", {}).get("radius")
    if estimated is None or known.get(Keys.RADIUS) is None or not np.isclose(known[Keys.RADIUS], estimated):
        return False
    del known[Keys.RADIUS], known["estimate_radius"]
    return True


def _is_of(name: str, function: str) -> bool:
    """Whether ``uns["nichekd"][name]`` is a record of ``function``, which may go by the column it wrote."""
    return name == function or name.startswith(f"{function}_")

"""One cell and its neighborhood, as the notes on a table have it."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np

from nichekd._keys import Keys, Split

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray


def position_of(adata: AnnData, cell: str | int) -> int:
    """Position of ``cell``, which is a name or a position, in a table that has cells.

    Raises
    ------
    KeyError
        If no cell has that name.
    TypeError
        If it is neither.
    ValueError
        If several cells have that name, or none that position.
    """
    if isinstance(cell, str):
        found = np.flatnonzero(adata.obs_names == cell)
        if not len(found):
            raise KeyError(
                f"There is no cell {cell!r}; names run from {adata.obs_names[0]!r} to {adata.obs_names[-1]!r}. "
                "Name one of adata.obs_names, or give a position."
            )
        if len(found) > 1:
            raise ValueError(
                f"{len(found)} cells are called {cell!r}. Give the position of one, such as {found[0]}, or run "
                "adata.obs_names_make_unique() first."
            )
        return int(found[0])
    if isinstance(cell, bool) or not isinstance(cell, Integral):
        raise TypeError(f"cell={cell!r} is a {type(cell).__name__}; it has to be a name of obs_names or a position.")
    if not -adata.n_obs <= cell < adata.n_obs:
        raise ValueError(
            f"cell={cell}, and there are {adata.n_obs:,} cells. Give a position from 0 to {adata.n_obs - 1}, or from "
            f"{-adata.n_obs} to -1, counted from the end; or a name of obs_names."
        )
    return int(cell) % adata.n_obs


def radius_of(adata: AnnData) -> float:
    """Radius of the neighborhoods, µm.

    Raises
    ------
    KeyError
        If there is none.
    """
    notes = adata.uns.get(Keys.UNS, {})
    if Keys.RADIUS not in notes:
        raise KeyError(f"uns['nichekd'] has no radius; it has {sorted(notes)}. Run nk.pp.neighborhoods first.")
    return float(notes[Keys.RADIUS])


def neighbors_of(
    adata: AnnData, xy: NDArray[np.float64], split: NDArray[np.str_] | None, index: int, radius: float
) -> NDArray[np.intp]:
    """The cells of the neighborhood, the centre left out."""
    if Keys.CONNECTIVITIES in adata.obsp:
        return np.asarray(adata.obsp[Keys.CONNECTIVITIES][[index]].nonzero()[1])
    within = np.hypot(*(xy - xy[index]).T) <= radius
    if split is not None:
        within &= (split == split[index]) & (split[index] != Split.BUFFER)
    within[index] = False
    return np.flatnonzero(within)

"""The table that the runs of an evaluation write to.

It shares features and graphs with the user's, under names of its own that no run writes: whatever the user's columns are
called, nothing that a run writes is judged by, or taught, in their place.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from nichekd._keys import Keys
from nichekd._record import notes
from nichekd._sections import recorded_library
from nichekd.tl._evaluation_methods import EXPRESSION, FROZEN, SHUFFLED
from nichekd.tl._inputs import features_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nichekd.tl._evaluation_plan import Plan

CELL_TYPES, ANNOTATION, SECTION = "cell_type", "annotation", "section"  # columns of obs, beside the split
JUDGED = "judged_"  # before the name of a method: its labels as they are judged


def scratch_rep(kind: str) -> str:
    """``obsm`` key of a kind of features."""
    return Keys.SCVI if kind == EXPRESSION else f"features_{kind}"


def scratch_table(adata: AnnData, plan: Plan, reps: Mapping[str, str], *, shuffled: int | None) -> AnnData:
    """A new one.

    Parameters
    ----------
    adata
        The user's.
    plan
        Names its columns.
    reps
        ``obsm`` key there of each kind of features.
    shuffled
        Seed of the permutation of the frozen features among cells; ``None`` if nothing reads these.
    """
    section = recorded_library(adata)
    columns = {
        Keys.SPLIT: plan.split_key, CELL_TYPES: plan.cell_type_key, ANNOTATION: plan.annotation_key, SECTION: section,
    }  # fmt: skip
    table = AnnData(obs=adata.obs[[]].copy())
    for name, key in columns.items():
        if key is not None:
            table.obs[name] = adata.obs[key]
    table.obsm[Keys.SPATIAL] = adata.obsm[Keys.SPATIAL]
    for kind, key in reps.items():
        table.obsm[scratch_rep(kind)] = adata.obsm[key]
    if shuffled is not None:
        order = np.random.default_rng(shuffled).permutation(adata.n_obs)
        frozen = features_of(adata, reps[FROZEN], run="nk.pp.histology_features")
        table.obsm[scratch_rep(SHUFFLED)] = np.asarray(frozen)[order]
    for key in (Keys.CONNECTIVITIES, Keys.DISTANCES):
        if key in adata.obsp:
            table.obsp[key] = adata.obsp[key]
    table.uns[Keys.UNS] = _renamed(notes(adata), reps)
    return table


def _renamed(noted: Mapping[str, Any], reps: Mapping[str, str]) -> dict[str, Any]:
    """What is noted of the user's table, by the names of this one."""
    found = copy.deepcopy(dict(noted))
    known = found.get(Keys.FEATURES, {})
    found[Keys.FEATURES] = {scratch_rep(kind): known[key] for kind, key in reps.items() if key in known}
    for function in ("neighborhoods", "split"):
        if found.get(function, {}).get("library_key") is not None:
            found[function]["library_key"] = SECTION
    return found

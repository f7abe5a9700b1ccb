"""Columns that a call adds: what they may be called, and what they may take the place of, which is its own alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
from anndata import AnnData

from nichekd._keys import NOT_IN_A_KEY, OWNERS, Keys, Split
from nichekd._sections import recorded_library

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spatialdata import SpatialData

#: columns of a fixed name that functions find by it, and whose they are
KEPT: Final = {
    Keys.SPLIT: "nk.pp.split",
    Keys.N_NEIGHBORS: "nk.pp.neighborhoods",
    Keys.AREA: "nk.pp.segment_nuclei",
    Keys.NICHE_ENTROPY: "nk.tl.distill",
    Keys.NICHE_OOD: "nk.tl.predict_niches",
    Keys.NICHE_OOD_STAIN: "nk.tl.predict_niches",
    Keys.NICHE_TRUE: "nk.datasets.simulate",
    Keys.ATTENTION: "nk.tl.predict_slides",
    Keys.RISK: "nk.tl.survival",
}


def check_niche_name(key: Any, data: AnnData | SpatialData) -> None:
    """Refuse a name for a student's labels that no file can hold, or that others keep theirs, or what is beside, by.

    Raises
    ------
    TypeError
        If it is no string.
    ValueError
        If no file can hold it, or it is kept for another function.
    """
    _check_column(key, data, KEPT)
    name = key.removeprefix("niche_")
    if name in OWNERS:
        raise ValueError(
            f"key_added={key!r} would write obsm[{Keys.student(key)[0]!r}], a name kept for {OWNERS[name]}. Choose "
            "another, e.g. key_added='niche_second'."
        )


def check_niche_columns(adata: AnnData, key: str, *, reads: Iterable[Any] = ()) -> None:
    """Refuse labels ``obs[key]`` of a student that would replace what is read, or what no student wrote.

    Parameters
    ----------
    adata
        The table.
    key
        Checked by :func:`check_niche_name`.
    reads
        Keys of ``obs`` and ``obsm`` that the call reads.

    Raises
    ------
    ValueError
        If they would.
    """
    logits, proba, entropy = Keys.student(key)
    written = {"obs": (key, entropy, Keys.ood(key), Keys.ood_stain(key)), "obsm": (logits, proba)}
    replaced = [(slot, name) for slot, names in written.items() for name in names if name in getattr(adata, slot)]
    advice = f"Choose another, e.g. key_added='{key}_2'"
    wanted = {name for name in (*reads, recorded_library(adata)) if isinstance(name, str)}
    if read := [f"{slot}[{name!r}]" for slot, name in replaced if name in wanted]:
        raise ValueError(f"key_added={key!r} would replace {', '.join(read)}, which this call reads. {advice}.")
    if replaced and not _is_of_a_student(adata, key):
        found = ", ".join(f"{slot}[{name!r}]" for slot, name in replaced)
        rename = f", or rename the column: adata.obs = adata.obs.rename(columns={{{key!r}: '{key}_before'}})"
        raise ValueError(
            f"key_added={key!r} would replace {found}, which no student of nk.tl.distill or nk.tl.predict_niches wrote. "
            f"{advice}{rename if key in adata.obs else ''}."
        )


def check_split_column(data: AnnData | SpatialData, adata: AnnData, key: Any, *, library_key: str | None) -> None:
    """Refuse a split ``obs[key]`` that no file can hold, or that would replace what :func:`nichekd.pp.split` did not write.

    ``obs["split"]`` is its own by name.

    Raises
    ------
    TypeError
        If ``key`` is no string.
    ValueError
        If no file can hold it, it is kept for another function, or a column of this name is somebody else's.
    """
    others = {name: owner for name, owner in KEPT.items() if name != Keys.SPLIT}
    _check_column(key, data, others | {Keys.NICHE: "nk.tl.distill"})
    if key not in adata.obs:
        return
    if key in (library_key, recorded_library(adata)):
        raise ValueError(f"key_added={key!r} would replace the column of sections. Choose another, e.g. 'split'.")
    if key != Keys.SPLIT and not _is_of_split(adata, key):
        raise ValueError(
            f"key_added={key!r} would replace obs[{key!r}], which nk.pp.split did not write. To keep it, rename it, "
            f"adata.obs = adata.obs.rename(columns={{{key!r}: '{key}_before'}}), or choose another key_added= and name "
            "that by split_key= later."
        )


def _check_column(key: Any, data: AnnData | SpatialData, kept: dict[str, str]) -> None:
    Keys.check_writable(key)
    if not isinstance(data, AnnData) and (odd := sorted(set(re.findall(NOT_IN_A_KEY, key)))):
        raise ValueError(
            f"key_added={key!r} has {odd}; names in a SpatialData have letters, digits, '_', '-' and '.' only."
        )
    if key in kept:
        raise ValueError(f"key_added={key!r} is kept for {kept[key]}. Choose another, e.g. key_added='{key}_2'.")


def _is_of_a_student(adata: AnnData, key: str) -> bool:
    """Whether ``obs[key]`` was written by a student: the table's record says so, or what only a student writes is there."""
    ran = adata.uns.get(Keys.UNS, {})
    _, proba, entropy = Keys.student(key)
    return (
        ("distill" if key == Keys.NICHE else f"distill_{key}") in ran
        or ran.get("predict_niches", {}).get("key_added") == key
        or (proba in adata.obsm and entropy in adata.obs)
    )


def _is_of_split(adata: AnnData, key: str) -> bool:
    """Whether :func:`nichekd.pp.split` wrote ``obs[key]``: the record tells of the last one, the categories of others."""
    column = adata.obs[key]
    if adata.uns.get(Keys.UNS, {}).get("split", {}).get("key_added") == key:
        return True
    return isinstance(column.dtype, pd.CategoricalDtype) and set(column.cat.categories) == set(Split.ALL)

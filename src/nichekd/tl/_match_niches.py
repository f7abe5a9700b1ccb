from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nichekd._keys import Keys
from nichekd._labels import REFERENCE, labels_of, subset_mask
from nichekd._matching import contingency, fingerprint, match_by_composition, match_by_overlap
from nichekd._palette import colors_of, matched_colors
from nichekd._record import notes, record
from nichekd._resolve import get_table

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

log = logging.getLogger(__name__)


def match_niches(
    data: AnnData | SpatialData,
    *,
    key: str,
    reference: str = REFERENCE,
    cell_type_key: str | None = None,
    subset: str | None = None,
    split_key: str = Keys.SPLIT,
    table_key: str = "table",
) -> pd.DataFrame:
    r"""Find which niche of one method is which of another, and give both the same colour.

    The matching is one-to-one (Hungarian): by default it maximises the number of cells in matched niches; with
    ``cell_type_key`` it minimises the summed Jensen-Shannon divergence between the niches' cell-type compositions, as
    :func:`nichekd.tl.composition_divergence` does. A niche stays unmatched if the other method has fewer of them, if
    no cell speaks for it, or if the best pair left for it shares no cell.

    Labels are **not** renumbered: niche ``"3"`` of ``key`` stays ``"3"``, so that column 3 of the method's logits, a
    saved student and the tables made before keep their meaning. What is shared is the colour, and the names are in
    the table returned: ``adata.obs[key].map(table.set_index("niche")["reference_niche"])`` translates the labels.

    Parameters
    ----------
    data
        Cells with the labels of both methods.
    key
        Column of ``obs`` with the niches to match.
    reference
        Column of ``obs`` with the niches to match them to; its names and colours stay.
    cell_type_key
        Column of ``obs`` with cell types; match by composition instead of overlap.
    subset
        ``"train"``, ``"test"`` or ``"buffer"``: match on these cells alone. All cells for ``None``.
    split_key
        Column of ``obs`` with the split, read only if ``subset`` is given.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    A row per niche of ``key``: ``niche``, ``reference_niche`` (missing where unmatched), ``n_cells`` of the niche,
    ``n_shared`` with its partner, and, with ``cell_type_key``, ``JSD`` between the two.
    Writes ``uns["<key>_colors"]``, ``uns["<reference>_colors"]`` where there are none yet, and the matching to
    ``uns["nichekd"]["match_niches"][key]``.

    Raises
    ------
    KeyError
        If ``key``, ``reference``, ``cell_type_key``, or the split of a ``subset``, is missing.
    ValueError
        If ``key`` is the reference, ``subset`` has no cell, or no cell carries all the labels needed.

    Examples
    --------
    >>> from anndata import AnnData
    >>> import nichekd as nk
    >>> adata = AnnData(obs={"niche_teacher": list("aabb"), "niche_mine": list("yyxx")})
    >>> nk.tl.match_niches(adata, key="niche_mine")
      niche reference_niche  n_cells  n_shared
    0     x               b        2         2
    1     y               a        2         2
    """
    start = perf_counter()
    adata = get_table(data, table_key)
    if key == reference:
        raise ValueError(f"key and reference are both {key!r}; name the column to match by key=.")
    labels, target = labels_of(adata, key), labels_of(adata, reference)
    mask = subset_mask(adata, subset, split_key=split_key)
    counts = contingency(target[mask], labels[mask])  # (n_reference, n_niches)
    if not counts.any():
        raise ValueError(
            f"No cell{'' if subset is None else f' of subset {subset!r}'} has both obs[{key!r}] and obs[{reference!r}]; "
            "there is nothing to match on. Run both methods on the same cells."
        )
    if cell_type_key is None:
        rows, columns = match_by_overlap(counts)
        jsd = None
    else:
        rows, columns, jsd = _by_composition(adata, labels, target, mask, cell_type_key)

    names = list(labels.categories)
    table = pd.DataFrame({"niche": names, "reference_niche": pd.Series(None, index=range(len(names)), dtype=object)})
    table["n_cells"] = np.bincount(labels.codes[mask & (labels.codes >= 0)], minlength=len(names))
    table["n_shared"] = 0
    table.loc[columns, "reference_niche"] = np.asarray(target.categories, dtype=object)[rows]
    table.loc[columns, "n_shared"] = counts[rows, columns]
    if jsd is not None:
        table.loc[columns, "JSD"] = jsd
    _write(adata, key, reference, table, fingerprint(labels, target), by=cell_type_key, seconds=perf_counter() - start)
    log.info("%s: %d of %d niches matched to %s", key, len(columns), len(names), reference)
    return table


def _by_composition(
    adata: AnnData, labels: pd.Categorical, target: pd.Categorical, mask: np.ndarray, cell_type_key: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    types = labels_of(adata, cell_type_key, run="your cell typing")
    both = mask & (labels.codes >= 0) & (target.codes >= 0) & (types.codes >= 0)
    if not both.any():
        raise ValueError(
            f"No cell has obs[{cell_type_key!r}] and both niches; match by overlap: leave cell_type_key out."
        )
    return match_by_composition(contingency(target[both], types[both]), contingency(labels[both], types[both]))


def _write(
    adata: AnnData, key: str, reference: str, table: pd.DataFrame, state: str, *, by: str | None, seconds: float
) -> None:
    partners = table["reference_niche"]
    matched = dict(zip(table["niche"][partners.notna()], partners.dropna(), strict=True))
    earlier = dict(notes(adata).get("match_niches", {}))
    others = [other for other in earlier if other in adata.obs and other != key]
    taken = [color for other in others for color in colors_of(adata, other).values()]
    adata.uns[Keys.colors(key)] = matched_colors(table["niche"], matched, colors_of(adata, reference), taken=taken)
    record(adata, "match_niches", seconds=seconds)
    # a column's name is no safe name of an argument, so the entries go in beside the record
    notes(adata)["match_niches"] = {
        **earlier,
        **notes(adata)["match_niches"],
        key: {
            "reference": reference,
            "by": "overlap" if by is None else by,
            "niche": np.asarray(list(matched)),
            "reference_niche": np.asarray(list(matched.values())),
            "fingerprint": state,
        },
    }

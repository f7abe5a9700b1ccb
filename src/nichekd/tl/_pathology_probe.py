from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nichekd._keys import Keys
from nichekd._labels import REFERENCE, labels_of, niche_keys, subset_mask
from nichekd._record import record
from nichekd._resolve import centres_um, get_table
from nichekd._seeds import check_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

log = logging.getLogger(__name__)

N_BLOCKS = 5


def pathology_probe(
    data: AnnData | SpatialData,
    *,
    annotation_key: str,
    keys: Sequence[str] | str | None = None,
    reference: str = REFERENCE,
    subset: str | None = "test",
    split_key: str = Keys.SPLIT,
    seed: int = 0,
    table_key: str = "table",
) -> pd.DataFrame:
    r"""How much of a pathologist's annotation the niches of each method carry.

    A linear support vector machine, its classes weighted inversely to their size, predicts the annotation of a cell
    from its niche alone, one-hot. The annotated cells are cut into five blocks of equal numbers of cells along the
    longer side of the tissue; each block is predicted by a machine fitted on the other four, and the score is the
    macro-averaged F1 of all predictions together. An annotation that lies in one block only can't be predicted, and
    counts as 0: that is what a new piece of tissue would meet.

    Parameters
    ----------
    data
        Cells with ``obsm["spatial"]``, the annotation, and the labels of the methods.
    annotation_key
        Column of ``obs`` with the annotation; cells without one are left out.
    keys
        Columns of ``obs`` to judge. For ``None`` the reference, where there is one, and those of
        :func:`nichekd.tl.agreement`.
    reference
        Column of ``obs`` with the reference's niches; judged like any other.
    subset
        ``"train"``, ``"test"`` or ``"buffer"``; all cells for ``None``.
    split_key
        Column of ``obs`` with the split, read only if ``subset`` is given.
    seed
        Of the machine's solver.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    A row per method: ``key``, ``macro_f1`` in [0, 1], and ``n_cells``, the annotated cells with a niche.
    Writes ``uns["nichekd"]["pathology_probe"]``.

    Raises
    ------
    KeyError
        If a column, or the split of a ``subset``, is missing, or no method has been run.
    ValueError
        If the annotated cells of ``subset`` are none, fewer than five, or all of one kind, or a method labels none
        of them; or if ``obsm["spatial"]`` is malformed.
    """
    check_seed(seed)
    start = perf_counter()
    adata = get_table(data, table_key)
    annotation = labels_of(adata, annotation_key, run="your annotation")
    found = niche_keys(adata, keys, reference=reference, with_reference=True)
    mask = subset_mask(adata, subset, split_key=split_key)
    annotated = check_annotated(adata, annotation_key, subset=subset, split_key=split_key)
    log.info("%d of %d cells are annotated", annotated.sum(), mask.sum())
    block = np.full(adata.n_obs, -1)
    block[annotated] = spatial_blocks(centres_um(adata)[annotated], N_BLOCKS)
    rows = []
    for key in found:
        niche = labels_of(adata, key)
        kept = annotated & (niche.codes >= 0)
        if np.unique(block[kept]).size < N_BLOCKS:
            raise ValueError(
                f"obs[{key!r}] labels {kept.sum():,} of the {annotated.sum():,} annotated cells, and none in some of "
                f"the {N_BLOCKS} spatial blocks. Run the method on them, or leave {key!r} out of keys=."
            )
        f1 = _macro_f1(niche.codes[kept], annotation.codes[kept], block[kept], seed)
        rows.append({"key": key, "macro_f1": f1, "n_cells": int(kept.sum())})
    record(
        adata,
        "pathology_probe",
        seconds=perf_counter() - start,
        annotation_key=annotation_key,
        keys=found,
        subset="all" if subset is None else subset,
        seed=seed,
    )
    return pd.DataFrame(rows)


def spatial_blocks(xy: NDArray[np.float64], n_blocks: int) -> NDArray[np.intp]:
    """Block of each cell, (n,): ``n_blocks`` of equal size, one after the other along the longer side of the tissue."""
    along = xy[:, np.argmax(np.ptp(xy, axis=0))]
    rank = np.empty(len(xy), dtype=np.intp)
    rank[np.argsort(along, kind="stable")] = np.arange(len(xy))
    return rank * n_blocks // len(xy)


def check_annotated(
    adata: AnnData,
    annotation_key: str,
    *,
    subset: str | None,
    split_key: str = Keys.SPLIT,
    advice: str = "Choose another subset= (None: all cells), another split, or another annotation_key=.",
) -> NDArray[np.bool_]:
    """Which cells of ``subset`` have an annotation, (n,); ``advice`` ends the message where they are too few.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If they are too few, or of one kind.
    """
    annotation = labels_of(adata, annotation_key, run="your annotation")
    annotated = subset_mask(adata, subset, split_key=split_key) & (annotation.codes >= 0)
    kinds = pd.Series(annotation[annotated]).value_counts()
    kinds = kinds[kinds > 0]
    if annotated.sum() >= N_BLOCKS and len(kinds) >= 2:
        return annotated
    where = annotation.codes >= 0
    by_split = adata.obs[split_key][where].astype(str).value_counts().to_dict() if split_key in adata.obs else {}
    raise ValueError(
        f"obs[{annotation_key!r}] marks {annotated.sum():,} cells{'' if subset is None else f' of subset {subset!r}'}, "
        f"as {kinds.to_dict()}; the probe needs at least {N_BLOCKS} cells of 2 kinds. In all, {where.sum():,} cells "
        f"are marked, as {pd.Series(annotation).value_counts().to_dict()}, by split {by_split}. "
        f"{advice}"
    )


def _macro_f1(niche: NDArray[np.integer], annotation: NDArray[np.integer], block: NDArray[np.intp], seed: int) -> float:
    """Macro-F1 of out-of-block predictions."""
    from scipy.sparse import csr_array
    from sklearn.metrics import f1_score
    from sklearn.model_selection import GroupKFold
    from sklearn.svm import LinearSVC

    n = len(niche)
    columns, ends = niche.astype(np.int32), np.arange(n + 1, dtype=np.int32)  # sklearn takes no longer indices
    one_hot = csr_array((np.ones(n), columns, ends), shape=(n, columns.max() + 1))  # (n, n_niches)
    predicted = np.empty(n, dtype=annotation.dtype)
    for train, test in GroupKFold(N_BLOCKS).split(one_hot, annotation, block):
        if (annotation[train] == annotation[train[0]]).all():
            predicted[test] = annotation[train[0]]  # one kind is all there is to learn
            continue
        machine = LinearSVC(class_weight="balanced", random_state=seed)
        predicted[test] = machine.fit(one_hot[train], annotation[train]).predict(one_hot[test])
    return float(f1_score(annotation, predicted, average="macro"))

"""Columns of niche labels: which there are, what they hold, and on which cells they are looked at."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from nichekd._keys import Keys, Split
from nichekd._resolve import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

REFERENCE: Final = Keys.niche(Keys.TEACHER)
#: The call that writes a column; any other column of niches is taken to be the user's.
WRITERS: Final = {
    REFERENCE: "nk.tl.nolan",
    Keys.NICHE: "nk.tl.distill",
    Keys.niche(Keys.HISTOLOGY_NOLAN): "nk.tl.histology_nolan",
    Keys.niche(Keys.HISTOLOGY_LEIDEN): "nk.tl.histology_leiden",
}
#: Of whole numbers in floats: beyond it they have gaps.
LARGEST_LABEL: Final = 2**53


def labels_of(adata: AnnData, key: str, *, run: str | None = None) -> pd.Categorical:
    """``obs[key]`` as a categorical whose categories are strings, (n,).

    Categories keep their order; those of a plain column are sorted, numbers by value.

    Raises
    ------
    KeyError
        If the column is missing; names ``run``, the call that writes it.
    TypeError
        If the column holds fractions or infinite numbers, which are no labels.
    ValueError
        If categories differ in type only, as 1 and "1".
    """
    column = require(adata, "obs", key, run=run or WRITERS.get(key, "the method that writes it"))
    if isinstance(column.dtype, pd.CategoricalDtype):
        values = column.array
    else:
        if pd.api.types.is_float_dtype(column):
            known = column.dropna().astype(float)
            no_label = known[(known != known.round()) | (known.abs() > LARGEST_LABEL)]
            if len(no_label):
                raise TypeError(
                    f"obs[{key!r}] holds fractions or infinite numbers ({no_label.iloc[0]:.3g}, …), not labels. "
                    f"Name a column of labels; obs has {_label_columns(adata)}."
                )
            column = column.astype("Int64")
        text = column.astype("string")
        values = pd.Categorical(text, categories=natural_order(text.dropna().unique()))
    return values.rename_categories(distinct_names(values.categories, key))


def distinct_names(categories: Iterable[Any], key: str) -> list[str]:
    """The categories of ``obs[key]`` as text.

    Raises
    ------
    ValueError
        If some differ in type only, as 1 and "1".
    """
    if same := alike(categories):
        raise ValueError(
            f"obs[{key!r}] has categories that read alike, {same}. Make one of them: "
            f"adata.obs[{key!r}] = adata.obs[{key!r}].astype(str).astype('category'), or rename them."
        )
    return [str(name) for name in categories]


def alike(names: Iterable[Any]) -> list[Any]:
    """Those of ``names`` that read as another of them does."""
    times = Counter(map(str, names))
    return [name for name in names if times[str(name)] > 1]


def natural_order(names: Iterable[str]) -> list[str]:
    """``names`` sorted, whole numbers by value and before words."""
    return sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))


def niche_keys(
    adata: AnnData, keys: Sequence[str] | str | None, *, reference: str, with_reference: bool = False
) -> list[str]:
    """``keys``, checked; for ``None`` all columns of niches that there are.

    Those are ``niche`` and the categorical ``niche_*`` columns, the student and the two baselines first; the planted
    truth of a simulation is none of them, and ``reference`` comes before all others, or not at all.

    Raises
    ------
    KeyError
        If a key is missing, or none was named and there is none.
    ValueError
        If ``keys`` is empty or names a column twice.
    TypeError
        If ``keys`` is neither a name nor names.
    """
    if keys is None:
        others = [
            name
            for name in adata.obs.columns
            if str(name).startswith(f"{Keys.NICHE}_") and isinstance(adata.obs[name].dtype, pd.CategoricalDtype)
        ]
        first = [reference] if with_reference and reference in adata.obs else []
        known = [name for name in WRITERS if name in adata.obs]
        rest = [name for name in dict.fromkeys([*known, *others]) if name not in (reference, Keys.NICHE_TRUE)]
        found = [*first, *rest]
        if not found:
            raise KeyError(
                f"obs has no column of niches{'' if with_reference else f' besides {reference!r}'}; it has {sorted(map(str, adata.obs.columns))}. "
                "Run nk.tl.distill, or name the columns by keys=."
            )
        return found
    if not isinstance(keys, Iterable):
        raise TypeError(f"keys={keys!r}; it has to be a column of obs, or a list of columns.")
    found = [keys] if isinstance(keys, str) else list(keys)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"keys={found}: name at least one column of obs, each once; or leave keys out.")
    for key in found:
        labels_of(adata, key)
    return found


def subset_mask(adata: AnnData, subset: str | None, *, split_key: str = Keys.SPLIT) -> NDArray[np.bool_]:
    """Which cells are in ``subset`` of the split, (n,); all of them for ``None``.

    Raises
    ------
    KeyError
        If a subset is named and there is no split.
    TypeError
        If ``subset`` is no name.
    ValueError
        If the split has no such cells.
    """
    if subset is None:
        return np.ones(adata.n_obs, dtype=bool)
    if not isinstance(subset, str):
        raise TypeError(f"subset={subset!r}; it has to be one of {list(Split.ALL)}, or None for all cells.")
    if split_key not in adata.obs:
        raise KeyError(
            f"subset={subset!r}, but obs[{split_key!r}] is missing; obs has {sorted(map(str, adata.obs.columns))}. "
            "Run nk.pp.split, and after it the methods that are judged on it, or take all cells by subset=None."
        )
    split = adata.obs[split_key].astype(object)
    mask = (split == subset).to_numpy()
    if not mask.any():
        counts = {str(name): int(n) for name, n in split.value_counts().items()}
        raise ValueError(
            f"obs[{split_key!r}] has no cell {subset!r}; it has {counts}. "
            f"subset= takes one of {list(Split.ALL)}, or None for all cells."
        )
    return mask


def label_pairs(
    adata: AnnData, keys: Sequence[str] | str | None, *, reference: str, subset: str | None, split_key: str
) -> Iterator[tuple[str, pd.Categorical, pd.Categorical]]:
    """Key of each method, the reference's labels and its own, of the cells of ``subset`` that have both.

    Raises
    ------
    KeyError
        If a column, or the split of a ``subset``, is missing, or no method has been run.
    ValueError
        If no cell has both.
    """
    target = labels_of(adata, reference)
    found = niche_keys(adata, keys, reference=reference)
    mask = subset_mask(adata, subset, split_key=split_key)
    for key in found:
        labels = labels_of(adata, key)
        both = mask & (labels.codes >= 0) & (target.codes >= 0)
        if not both.any():
            raise ValueError(
                f"No cell{'' if subset is None else f' of subset {subset!r}'} has both obs[{key!r}] and "
                f"obs[{reference!r}]. Run both methods on the same cells, or leave {key!r} out of keys=."
            )
        if left_out := int(mask.sum() - both.sum()):
            log.warning("%s: %d of %d cells miss a label and are left out", key, left_out, mask.sum())
        yield key, target[both], labels[both]


def _label_columns(adata: AnnData) -> list[str]:
    return [str(name) for name, dtype in adata.obs.dtypes.items() if not pd.api.types.is_float_dtype(dtype)]

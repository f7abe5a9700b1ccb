"""What a student may be taught by: logits, probabilities, or labels; of any method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nichekd._keys import Keys
from nichekd._labels import alike, distinct_names
from nichekd._palette import palette

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

# logits of a label: a teacher that is sure, but not beyond doubt
LABEL_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Teacher:
    """Targets of a distillation.

    Attributes
    ----------
    logits
        (n, K), float32; rows of cells that don't teach are NaN.
    names, colors
        Of the K niches.
    temperature
        At which the logits' probabilities are the teacher's own; None: to be matched.
    """

    logits: NDArray[np.float32]
    names: tuple[str, ...]
    colors: tuple[str, ...]
    temperature: float | None

    @property
    def teaches(self) -> NDArray[np.bool_]:
        """Cells with a target, (n,)."""
        return np.isfinite(self.logits[:, 0])


def resolve_teacher(adata: AnnData, teacher: str | Any) -> Teacher:
    """From an ``obsm`` key, an ``obs`` key or an array to targets.

    Raises
    ------
    KeyError
        If there is no such key.
    TypeError
        If an ``obs`` column holds numbers that are no labels, or an array labels.
    ValueError
        If the array has the wrong number of rows or columns, no cell has a target, or labels or the columns of a
        ``DataFrame`` read alike.
    """
    if not isinstance(teacher, str):
        return _from_matrix(adata, teacher, "the teacher array", label_key=None)
    if teacher in adata.obsm:
        label_key = Keys.niche(teacher.removesuffix("_logits"))
        return _from_matrix(adata, adata.obsm[teacher], f"obsm[{teacher!r}]", label_key=label_key)
    if teacher in adata.obs:
        return _from_labels(adata, teacher)
    raise KeyError(
        f"There is no teacher {teacher!r}: obsm has {sorted(adata.obsm.keys())}, obs has {sorted(adata.obs.columns)}. "
        "Run nk.tl.nolan, or name an obsm matrix of logits or an obs column of labels by teacher=."
    )


def _from_matrix(adata: AnnData, matrix: Any, what: str, *, label_key: str | None) -> Teacher:
    columns = None
    if isinstance(matrix, pd.DataFrame):
        if same := alike(matrix.columns):
            raise ValueError(f"{what} has columns that read alike, {same}; they name the niches. Rename them.")
        columns = list(matrix.columns.astype(str))
        matrix = _in_order(adata, matrix, what)
    logits = _numbers(matrix, what)
    if logits.ndim != 2 or len(logits) != adata.n_obs:
        raise ValueError(
            f"{what} has shape {logits.shape}; it has to be ({adata.n_obs:,} cells, K niches), in the table's order."
        )
    n_niches = logits.shape[1]
    if n_niches < 2:
        raise ValueError(f"{what} has {n_niches} column; a teacher has at least two niches.")
    finite = np.isfinite(logits).sum(axis=1) == n_niches
    if not finite.any():
        raise ValueError(f"{what} is NaN or infinite for all cells; nobody teaches.")
    logits = np.where(finite[:, None], logits, np.nan)
    temperature = None
    known = logits[finite]
    if known.min() >= 0 and np.allclose(known.sum(1), 1, atol=1e-3):
        # probabilities: their logarithms are logits at temperature 1
        logits, temperature = np.log(np.clip(logits, 1e-6, None)), 1.0
    names = tuple(columns or (str(k) for k in range(n_niches)))
    return Teacher(logits.astype(np.float32), names, _colors(adata, label_key, n_niches), temperature)


def _in_order(adata: AnnData, frame: pd.DataFrame, what: str) -> pd.DataFrame:
    """Rows in the table's order: by their names where those are the cells', else as they are."""
    names = frame.index.astype(str)
    if names.equals(adata.obs_names) or not names.isin(adata.obs_names).any():
        return frame
    if not names.is_unique or not adata.obs_names.is_unique or set(names) != set(adata.obs_names):
        raise ValueError(
            f"{what} names {names.isin(adata.obs_names).sum():,} of the {adata.n_obs:,} cells in its {len(names):,} "
            "rows; its index has to be obs_names, each once. Take frame.reindex(adata.obs_names): NaN teaches nobody."
        )
    return frame.set_axis(names).loc[adata.obs_names]


def _numbers(matrix: Any, what: str) -> NDArray[np.float32]:
    try:
        return np.asarray(matrix, dtype=np.float32)
    except (TypeError, ValueError) as err:
        raise TypeError(
            f"{what} holds no numbers ({err}); it has to be (cells, K niches) of logits or probabilities. Labels go "
            "to a column of obs, whose name is the teacher."
        ) from err


def _from_labels(adata: AnnData, key: str) -> Teacher:
    column = adata.obs[key]
    if pd.api.types.is_float_dtype(column):
        raise TypeError(
            f"obs[{key!r}] holds floats, which are no labels. If they are, say so: "
            f"adata.obs[{key!r}] = adata.obs[{key!r}].astype('category')."
        )
    declared = column.astype("category").cat
    labels = declared.remove_unused_categories().cat
    codes, names = labels.codes.to_numpy(), tuple(distinct_names(labels.categories, key))
    if len(names) < 2:
        raise ValueError(f"obs[{key!r}] has {len(names)} label {list(names)}; a teacher has at least two niches.")
    rest = (1 - LABEL_CONFIDENCE) / (len(names) - 1)
    logits = np.full((len(codes), len(names)), np.log(rest), dtype=np.float32)
    known = codes >= 0
    logits[np.flatnonzero(known), codes[known]] = np.log(LABEL_CONFIDENCE)
    logits[~known] = np.nan
    colors = _colors(adata, key, len(declared.categories))
    place = declared.categories.get_indexer(labels.categories)
    return Teacher(logits, names, tuple(colors[i] for i in place), 1.0)


def _colors(adata: AnnData, label_key: str | None, n_niches: int) -> tuple[str, ...]:
    """The labels' own colours where they have some, one a niche."""
    from matplotlib.colors import is_color_like, to_hex

    stored = None if label_key is None else adata.uns.get(Keys.colors(label_key))
    if stored is not None and len(stored) >= n_niches and all(map(is_color_like, stored)):
        return tuple(str(color) if isinstance(color, str) else to_hex(color) for color in stored[:n_niches])
    return tuple(palette(n_niches))

"""What RankByGene is trained on: expression of training cells, and their frozen image features."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse

from nichekd._keys import Keys
from nichekd._resolve import get_table
from nichekd._sections import library_names
from nichekd.models._rank_by_gene import Branch, RankByGeneNetwork
from nichekd.pp._libraries import side_by_side
from nichekd.pp._log_normalize import expression_layer, log_normalized, panel_columns
from nichekd.tl._inputs import features_of, image_rep
from nichekd.tl._rank_by_gene_data import FeatureViews, Task
from nichekd.tl._recorded_features import record_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd.models import Encoder
    from nichekd.tl._rank_by_gene_data import RankByGeneSettings

log = logging.getLogger(__name__)

FEWEST = 4  # cells of a slide: an anchor, and three others to order
START_CELLS = 20_000


@dataclass(frozen=True)
class Expression:
    """Of the training cells that express something.

    Attributes
    ----------
    cells
        Rows of the table, (m,).
    values
        (m, G), float32.
    names, layer
        Genes, and the layer they are from.
    """

    cells: NDArray[np.intp]
    values: NDArray[np.float32]
    names: tuple[str, ...]
    layer: str | None


@dataclass(frozen=True)
class Made:
    """All that a training needs and leaves behind.

    Attributes
    ----------
    network, task
        To be trained, and on what.
    features
        What is recorded of the image features.
    use_rep
        Their key, where they are frozen.
    tuned
        Makes an encoder of the trained backbone.
    """

    network: RankByGeneNetwork
    task: Task
    features: dict[str, Any] = field(default_factory=dict)
    use_rep: str | None = None
    tuned: Callable[[Any], Encoder] | None = None


def expression_task(
    adata: AnnData, layer: str | None, genes: Sequence[str] | None, in_training: NDArray[np.bool_], *, n_genes: int
) -> Expression:
    """Expression of the training cells; those without any are left out, with a warning in the log."""
    layer = expression_layer(adata, layer)
    columns = panel_columns(adata, genes)
    values: Any = log_normalized(adata, layer)[np.flatnonzero(in_training)]
    if genes is None and len(columns) > n_genes:
        columns = np.sort(np.argsort(-_variance(values), kind="stable")[:n_genes])
        log.info("reading the %d most variable of %d genes; name a panel by genes=", n_genes, adata.n_vars)
    values = values[:, columns]
    dense = values.toarray() if sparse.issparse(values) else np.asarray(values)
    expresses = np.abs(dense).sum(axis=1) > 0
    if not expresses.all():
        log.warning("%d of %d training cells express no gene and are left out", (~expresses).sum(), len(expresses))
    cells = np.flatnonzero(in_training)[expresses]
    return Expression(cells, dense[expresses], tuple(map(str, adata.var_names[columns])), layer)


def slide_codes(
    adata: AnnData, library_key: str | None, cells: NDArray[np.intp], *, fewest: int = FEWEST
) -> NDArray[np.int64]:
    """A number for the slide of each of ``cells``; each slide has ``fewest`` of them at least.

    Raises
    ------
    KeyError
        If the column is missing.
    ValueError
        If cells have no slide, or a slide has fewer than ``fewest`` cells.
    """
    if library_key is None:
        code, names = np.zeros(len(cells), dtype=np.int64), np.array(["the section"])
    else:
        names, code = np.unique(library_names(adata, library_key)[cells], return_inverse=True)
    counts = np.bincount(code, minlength=len(names))
    if not len(cells) or (counts < fewest).any():
        few = {str(names[i]): int(counts[i]) for i in np.flatnonzero(counts < fewest)}
        raise ValueError(
            f"Too few cells to put in order: {few or 'none'}; each slide needs {fewest} that express something. Leave "
            "such slides out, or choose another library_key= or split."
        )
    return code.astype(np.int64)


def task_of(adata: AnnData, views: Any, read: Expression, library: NDArray[np.int64]) -> Task:
    """The training cells, sections side by side."""
    xy = np.asarray(adata.obsm[Keys.SPATIAL], dtype=np.float64)[read.cells] if Keys.SPATIAL in adata.obsm else None
    xy = np.zeros((len(read.cells), 2)) if xy is None else side_by_side(xy, library)[0]
    return Task(views, read.values, read.values - read.values.mean(axis=0), xy, library)


def frozen_task(
    data: AnnData | SpatialData,
    use_rep: str | None,
    read: Expression,
    library: NDArray[np.int64],
    fit: RankByGeneSettings,
    momentum: float,
    *,
    device: str | None,
    seed: int,
    table_key: str,
) -> Made:
    """On frozen features, which are read into memory."""
    adata = get_table(data, table_key)
    use_rep = image_rep(data, use_rep, device=device, table_key=table_key)
    rows = np.asarray(features_of(adata, use_rep, run="nk.pp.histology_features")[read.cells])
    check_rows(rows, f"obsm[{use_rep!r}]")
    student = Branch(rows.shape[1], fit.n_out, dropout=fit.dropout)
    network = network_of(student, rows, read, fit, momentum, seed)
    views = FeatureViews(rows, student.standardize.mean.clone(), fit.feature_dropout)
    return Made(network, task_of(adata, views, read, library), record_of(adata, use_rep), use_rep)


def network_of(
    student: Branch, rows: NDArray[np.floating], read: Expression, fit: RankByGeneSettings, momentum: float, seed: int
) -> RankByGeneNetwork:
    """Both branches start at the leading principal components of what they read, in ``rows`` and ``read``."""
    genes = Branch(read.values.shape[1], fit.n_out, dropout=fit.dropout)
    rng = np.random.default_rng(seed)
    for branch, values, alike in ((student, rows, True), (genes, read.values, False)):
        some = np.arange(len(values))
        if len(some) > START_CELLS:
            some = np.sort(rng.choice(some, START_CELLS, replace=False))
        branch.start(torch.from_numpy(np.asarray(values[some], dtype=np.float32)), alike=alike, seed=seed)
    return RankByGeneNetwork(student, genes, momentum=momentum, queue_size=fit.queue_size)


def check_rows(rows: NDArray[np.floating], where: str) -> None:
    """That each row has a direction.

    Raises
    ------
    ValueError
        If rows are NaN or infinite, or all 0.
    """
    if bad := int((~np.isfinite(rows)).any(axis=1).sum()):
        raise ValueError(f"{where} is NaN or infinite for {bad:,} of {len(rows):,} cells; make it again.")
    if zero := int((~rows.any(axis=1)).sum()):
        raise ValueError(
            f"{where} is 0 throughout for {zero:,} of {len(rows):,} cells, so that they are similar to none. Leave "
            "these cells out, or make it again."
        )


def _variance(values: Any) -> NDArray[np.float64]:
    if not sparse.issparse(values):
        return np.asarray(values.var(axis=0), dtype=np.float64)
    mean = np.asarray(values.mean(axis=0)).ravel()
    return np.asarray(values.multiply(values).mean(axis=0)).ravel() - mean**2

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nichekd._keys import Keys, Split
from nichekd._record import record
from nichekd._resolve import get_table, split_of, working_copy
from nichekd._seeds import check_seed
from nichekd.pp._counts import raw_counts

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix
    from scvi.model import SCVI
    from spatialdata import SpatialData

log = logging.getLogger(__name__)

# a variational autoencoder fitted on less says nothing, and its batch norm fails on single cells
MIN_TRAINING_CELLS = 20


def expression_features(
    data: AnnData | SpatialData,
    *,
    layer: str | None = None,
    n_latent: int = 10,
    split_key: str | None = Keys.SPLIT,
    model: SCVI | str | Path | None = None,
    batch_key: str | None = None,
    max_epochs: int | None = None,
    seed: int = 0,
    save_model: str | Path | None = None,
    key_added: str | None = None,
    device: str | None = None,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | SpatialData | None:
    r"""Expression latent of every cell: the posterior means of scVI on raw counts.

    scVI :cite:`Lopez2018` models the counts of cell :math:`i` as
    :math:`x_i \sim \mathrm{NB}(\ell_i\, f(z_i), \theta)` with library size :math:`\ell_i` and
    :math:`z_i \sim \mathcal N(0, I)`; what is written is the mean of the encoder's :math:`q(z_i \mid x_i)`.
    The model is fitted on training cells with counts, a random tenth of them held out for early stopping,
    and then frozen: test cells are encoded only.

    Parameters
    ----------
    data
        Cells with raw counts, (n_cells, n_genes).
    layer
        Layer with the raw counts; ``None`` is ``X``.
    n_latent
        Latent dimensions. A ``model`` that is handed in brings its own.
    split_key
        Column of ``obs`` with ``train`` / ``test`` / ``buffer``, from :func:`nichekd.pp.split`. Without the default
        column all cells are training cells.
    model
        A trained :class:`scvi.model.SCVI`, or the folder it was saved to: nothing is fitted then. It reads the genes
        it was trained on; further genes of ``data`` are left out.
    batch_key
        Column of ``obs`` that scVI corrects for, for example the slide.
    max_epochs
        Passes over the training cells; ``None`` chooses some 1,500 steps, at least 15 passes. It ends earlier when
        the held-out cells are no longer explained better.
    seed
        Seed of the fit. Same seed, same machine: same latent.
    save_model
        Folder to save the fitted model to, for later calls with ``model=`` and for :meth:`scvi.model.SCVI.load`.
    key_added
        Key of the latent in ``obsm`` in place of ``X_scVI``.
    device
        Lightning's accelerator that the model is fitted on; default ``nk.settings.device``. One that is handed in stays
        where it is.
    table_key
        Table of a ``SpatialData``.
    copy
        Return a new object in place of writing into ``data``.

    Returns
    -------
    ``None``, or the new object with ``copy=True``. Writes ``obsm["X_scVI"]``, (n_cells, n_latent) float32, for all
    cells, those without counts included, and ``uns["nichekd"]["expression_features"]``.

    Raises
    ------
    KeyError
        If the layer, ``batch_key``, a ``split_key`` other than the default or a column that ``model`` needs is absent.
    ValueError
        If the counts are negative, fractional or not finite; if ``n_latent`` or ``max_epochs`` is under 1; if fewer
        than 20 training cells have counts; if ``model`` is untrained or lacks genes; if a batch is missing in a cell.
    FileNotFoundError
        If ``model`` names a folder that has no scVI model.
    FileExistsError
        If ``save_model`` is there already.
    TypeError
        If ``model`` is neither an :class:`scvi.model.SCVI` nor a path.

    Warns
    -----
    UserWarning
        If cells have no counts. They are kept and encoded, but tell scVI nothing in training.

    Examples
    --------
    >>> import nichekd as nk
    >>> sdata = nk.datasets.pancreas()
    >>> nk.pp.split(sdata)
    >>> nk.pp.expression_features(sdata)  # doctest: +SKIP
    """
    check_seed(seed)
    started = time.perf_counter()
    _check_arguments(n_latent, max_epochs, model, save_model)
    data = working_copy(data, copy)
    adata = get_table(data, table_key)
    counts = raw_counts(adata, layer)
    expressed = _cells_with_counts(counts)
    key_added = key_added or Keys.SCVI

    from nichekd.pp import _scvi_fit, _scvi_model

    if model is None:
        fitted_on = _training_cells(adata, expressed, split_key)
        batch = None if batch_key is None else _batches(adata, batch_key)
        scvi_model = _scvi_fit.fit(
            counts[fitted_on],
            adata.var_names,
            layer=layer,
            batch=None if batch is None else batch[fitted_on],
            n_latent=n_latent,
            max_epochs=max_epochs,
            seed=seed,
            device=device,
        )
        origin = {"batch_key": batch_key, "split_key": split_key, "seed": seed, **_scvi_fit.summary(scvi_model)}
        if save_model is not None:
            scvi_model.save(str(save_model))
    else:
        scvi_model = _scvi_model.resolve_model(model)
        origin = {"model": str(model) if isinstance(model, (str, Path)) else "handed in"}
    adata.obsm[key_added] = _scvi_model.encode(scvi_model, counts, adata)
    n_latent = adata.obsm[key_added].shape[1]

    seconds = time.perf_counter() - started
    record(adata, "expression_features", seconds=seconds, key_added=key_added, layer=layer, n_latent=n_latent, **origin)
    log.info("scVI latent of %d cells, %d dimensions, in obsm[%r]", adata.n_obs, n_latent, key_added)
    return data if copy else None


def _check_arguments(
    n_latent: int, max_epochs: int | None, model: SCVI | str | Path | None, save_model: str | Path | None
) -> None:
    """Raise before any work is done."""
    for name, value in (("n_latent", n_latent), ("max_epochs", max_epochs)):
        if value is None and name == "max_epochs":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(
                f"{name} is {value!r}, a {type(value).__name__}; it has to be a whole number of at least 1."
            )
        if value < 1:
            raise ValueError(f"{name} is {value}; it has to be at least 1.")
    if save_model is None:
        return
    if model is not None:
        raise ValueError("save_model= saves a model fitted here, and model= brings one that is. Leave one of them out.")
    if Path(save_model).exists():
        raise FileExistsError(f"{save_model} exists already. Name a new folder by save_model=, or remove it.")


def _cells_with_counts(counts: csr_matrix) -> NDArray[np.bool_]:
    """Cells with any count, (n_cells,); the others are warned about."""
    expressed = np.asarray(counts.sum(axis=1)).ravel() > 0
    n_empty = int((~expressed).sum())
    if n_empty:
        warnings.warn(
            f"{n_empty:,} of {len(expressed):,} cells have no counts. They are kept and get a latent, "
            "but scVI is not fitted on them.",
            UserWarning,
            stacklevel=3,
        )
    return expressed


def _training_cells(adata: AnnData, expressed: NDArray[np.bool_], split_key: str | None) -> NDArray[np.bool_]:
    """Training cells with counts, (n_cells,)."""
    training = split_of(adata, split_key) == Split.TRAIN
    fitted_on = training & expressed
    if fitted_on.sum() < MIN_TRAINING_CELLS:
        raise ValueError(
            f"{fitted_on.sum()} of {training.sum():,} training cells have counts; scVI needs at least "
            f"{MIN_TRAINING_CELLS}. Check layer=, run nk.pp.split with a larger training side, or pass a trained model=."
        )
    return fitted_on


def _batches(adata: AnnData, batch_key: str) -> pd.Series:
    """The batch of each cell, complete."""
    if batch_key not in adata.obs:
        raise KeyError(
            f"obs[{batch_key!r}] is missing; obs has {sorted(map(str, adata.obs))}. Name the column with the batches by "
            "batch_key=, or leave it out."
        )
    batch = adata.obs[batch_key]
    if batch.isna().any():
        raise ValueError(
            f"obs[{batch_key!r}] is missing for {batch.isna().sum():,} of {len(batch):,} cells. Fill them in, "
            "or drop these cells."
        )
    return batch

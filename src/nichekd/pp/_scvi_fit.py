"""Fits scVI: quiet, on a schedule fit for two CPU cores, and with no trace in the global random state."""

from __future__ import annotations

import logging
import math
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from nichekd._settings import accelerator_and_devices, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning.pytorch import Callback, Trainer
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix
    from scvi.model import SCVI

log = logging.getLogger(__name__)

# Chosen on the training strips of the bundled crop by the evidence lower bound of the cells held out, never by
# niches: negative binomial 66.20 (zero-inflated 66.28), steps of 4e-3 65.65, lowered on plateaus 65.48; wider layers
# and no dropout overfit (66.3, 66.0), a second layer (65.48) leaves three of ten latent dimensions dead.
LIKELIHOOD = "nb"
LEARNING_RATE = 4e-3
N_STEPS = 1_500  # optimiser steps, where max_epochs is left open: the bound is within 0.2 of its best there
EPOCHS_RANGE = (15, 200)
BATCH_DOUBLES_AT = (2_000, 20_000, 200_000)  # training cells; from 128
HELD_OUT = 0.1
# below this the whole matrix is made dense, which halves the time of a step
DENSE_BYTES = 2**30
# on a gene panel a step is so small that threads cost more than they bring, and one thread makes
# the fit independent of the number of cores
ONE_THREAD_N_GENES = 1_000


def fit(
    counts: csr_matrix,
    genes: pd.Index,
    *,
    layer: str | None,
    batch: pd.Series | None,
    n_latent: int,
    max_epochs: int | None,
    seed: int,
    device: str | None = None,
) -> SCVI:
    """A trained scVI model of ``counts``, (n_cells, n_genes); ``layer`` and ``batch`` go into its registry."""
    table = model_table(counts, genes, layer, {} if batch is None else {str(batch.name): batch.to_numpy()})
    batch_size, epochs = schedule(table.n_obs, max_epochs)
    patience = max(3, epochs // 12)
    parts = held_out_parts(table.n_obs, batch_size, seed)
    log.info("scVI: %d training cells, %d genes, at most %d epochs", table.n_obs, table.n_vars, epochs)
    accelerator, devices = accelerator_and_devices(device)
    with quiet(), random_state_kept(seed), few_threads(table.n_vars):
        from lightning.pytorch.callbacks import EarlyStopping
        from scvi.model import SCVI

        SCVI.setup_anndata(table, layer=layer, batch_key=None if batch is None else str(batch.name))
        model = SCVI(table, n_latent=n_latent, gene_likelihood=LIKELIHOOD)
        model.train(
            max_epochs=epochs,
            batch_size=batch_size,
            accelerator=accelerator,
            devices=devices,
            datasplitter_kwargs={"external_indexing": parts},
            plan_kwargs={
                "n_epochs_kl_warmup": max(1, epochs // 4),
                "lr": LEARNING_RATE,
                "reduce_lr_on_plateau": True,
                "lr_scheduler_metric": "elbo_validation",
                "lr_factor": 0.3,
                "lr_patience": patience,
            },
            check_val_every_n_epoch=1,
            benchmark=False,
            enable_progress_bar=False,  # scvi's goes to stdout, where a command line's result belongs
            callbacks=[EarlyStopping("elbo_validation", patience=3 * patience), *progress(epochs)],
        )
        # scvi's class-wide registers would keep the counts alive for good
        model.deregister_manager(table)
    return model


def summary(model: SCVI) -> dict[str, Any]:
    """What is worth keeping of a fit: epochs, held-out ELBO, cells."""
    elbo = model.history["elbo_validation"].to_numpy(dtype=float).ravel()
    return {
        "n_training_cells": int(model.adata.n_obs),
        "epochs": len(elbo),
        "held_out_elbo": round(float(elbo[-1]), 3),
        "gene_likelihood": LIKELIHOOD,
    }


def schedule(n_cells: int, max_epochs: int | None) -> tuple[int, int]:
    """Batch size and epochs, so that sections of any size take some ``N_STEPS`` steps."""
    batch_size = 128 * 2 ** sum(n_cells >= n for n in BATCH_DOUBLES_AT)
    if max_epochs is not None:
        return batch_size, max_epochs
    steps_per_epoch = max(1, math.ceil(n_cells * (1 - HELD_OUT) / batch_size))
    return batch_size, int(np.clip(round(N_STEPS / steps_per_epoch), *EPOCHS_RANGE))


def held_out_parts(n_cells: int, batch_size: int, seed: int) -> list[NDArray[np.int64]]:
    """Cells to fit on, cells held out, and none: disjoint, together all."""
    order = np.random.default_rng(seed).permutation(n_cells)
    n_fit = n_cells - max(1, round(HELD_OUT * n_cells))
    if n_fit % batch_size < 3:  # batch norm fails on a last batch of one cell
        n_fit -= n_fit % batch_size
    return [np.sort(order[:n_fit]), np.sort(order[n_fit:]), np.array([], dtype=np.int64)]


def model_table(counts: csr_matrix, genes: pd.Index, layer: str | None, obs: dict[str, Any]) -> AnnData:
    """A table with nothing but what scVI reads: float32 counts in ``layer`` or X, and columns of ``obs``."""
    small = counts.shape[0] * counts.shape[1] * 4 <= DENSE_BYTES
    values = counts.astype(np.float32)
    matrix = values.toarray() if small else values
    names = pd.RangeIndex(counts.shape[0]).astype(str)
    return AnnData(
        X=matrix if layer is None else None,
        obs=pd.DataFrame(obs, index=names),
        var=pd.DataFrame(index=genes.astype(str)),
        layers=None if layer is None else {layer: matrix},
    )


def progress(epochs: int) -> list[Callback]:
    """A bar over the epochs, with the held-out bound."""
    from lightning.pytorch.callbacks import LambdaCallback
    from tqdm.auto import tqdm

    bar = tqdm(total=epochs, desc="scVI", unit="epoch", disable=not settings.progress)

    def step(trainer: Trainer, _: object) -> None:
        bar.update()
        bar.set_postfix(elbo=f"{float(trainer.callback_metrics['elbo_validation']):.2f}")

    return [
        LambdaCallback(on_train_epoch_end=step, on_fit_end=lambda *_: bar.close(), on_exception=lambda *_: bar.close())
    ]


@contextmanager
def random_state_kept(seed: int | None = None) -> Iterator[None]:
    """Torch's and numpy's global state seeded inside, and as before afterwards."""
    import torch

    numpy_state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        if seed is not None:
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def few_threads(n_genes: int) -> Iterator[None]:
    """One torch thread inside for gene panels; see ``ONE_THREAD_N_GENES``."""
    import torch

    before = torch.get_num_threads()
    if n_genes <= ONE_THREAD_N_GENES:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Hides what scvi-tools and Lightning say about themselves; their warnings of substance stay."""
    # importing scvi sets its logger's level, so it comes first
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        import scvi  # noqa: F401
    loggers = [logging.getLogger(name) for name in ("scvi", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of torch
            warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

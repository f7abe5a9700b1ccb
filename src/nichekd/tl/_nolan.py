from __future__ import annotations

import logging
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from nichekd._keys import Keys, Split
from nichekd._record import record
from nichekd._resolve import get_table, split_of, working_copy
from nichekd._seeds import check_seed
from nichekd.tl._expression import express
from nichekd.tl._inputs import check_n_niches, features_of, neighborhood_index
from nichekd.tl._write_niches import write_labels

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd.models import NolanSettings
    from nichekd.models._neighborhood_transformer import Preset

log = logging.getLogger(__name__)

LIVE_SHARE = 0.8


def nolan(
    data: AnnData | SpatialData,
    K: int = 10,
    *,
    use_rep: str = Keys.SCVI,
    key_added: str = Keys.TEACHER,
    split_key: str = Keys.SPLIT,
    seed: int = 0,
    n_seeds: int = 1,
    preset: Preset = "pooling",
    fit: NolanSettings | None = None,
    device: str | None = None,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | SpatialData | None:
    r"""Find K niches by self-distillation of neighborhoods: the teacher.

    A network sees two global views of a neighborhood (all of it, less what dropout takes, turned and mirrored) and
    local ones (a smaller disc off its centre). Its head gives cosines to K prototypes. An exponential moving average
    of it, which sees the global views, teaches it to give all views of a neighborhood the same prototype
    :cite:`Caron2021`. This is a re-implementation of NOLAN from its published description :cite:`Bakulin2025`; its
    code is not public. In one thing it goes its own way: training starts from the k-means partition of neighborhood
    means, since from random prototypes two seeds end at different partitions.

    Parameters
    ----------
    data
        Cells with ``obsm[use_rep]``; :func:`nichekd.pp.expression_features`, which corrects for sections if there are
        several, and :func:`nichekd.pp.neighborhoods` run where their results are missing.
    K
        Number of niches, from 2 to the number of training cells.
    use_rep
        ``obsm`` key of the cells' features, (n, F); of a panel of a few dozen genes, principal components (scanpy's
        ``"X_pca"``) did better than scVI's latent.
    key_added
        Name of the result.
    split_key
        Column of ``obs`` with ``train`` cells to fit on; absent by its default name, all cells train.
    seed
        Same seed, same CPU, same labels.
    n_seeds
        With more than one, as many teachers from ``seed`` on are trained, and the one returned starts from their
        consensus: k-means of their probabilities side by side.
    preset
        Sizes of the network, see :class:`nichekd.models.NeighborhoodConfig`.
    fit
        Training settings.
    device
        Fabric's accelerator; default ``nk.settings.device``.
    table_key
        Table of a ``SpatialData``.
    copy
        Return a new object and leave ``data`` as it is.

    Returns
    -------
    ``None``, or the new object. Writes

    - ``obsm["<key_added>_logits"]``, float32 (n, K): cosines, less the running centre that kept usage even, so that
      their argmax is the partition that was trained;
    - ``obs["niche_<key_added>"]``, categorical ``"0"`` … ``"K-1"``;
    - ``uns["nichekd"]["nolan"]``: parameters, history, ``n_live`` (niches with a training cell) and ``usage_entropy``
      (in units of log K).

    Raises
    ------
    KeyError
        If ``use_rep``, the table or a named split is missing.
    TypeError
        If K is no whole number.
    ValueError
        If K is below 2 or above the number of training cells, features are NaN, or ``key_added`` is the name of another
        method.

    Examples
    --------
    >>> import nichekd as nk
    >>> sdata = nk.datasets.simulate(n_cells=600, K=3, seed=0)
    >>> nk.tl.nolan(sdata, K=3)  # doctest: +SKIP
    """
    from nichekd.models import NolanSettings
    from nichekd.tl._consensus import consensus_partition
    from nichekd.tl._nolan_fit import fit_nolan

    check_seed(seed)
    started = time.perf_counter()
    Keys.check_name(key_added, own=Keys.TEACHER)
    data = working_copy(data, copy)
    adata = get_table(data, table_key)
    train = np.flatnonzero(split_of(adata, split_key) == Split.TRAIN)
    n_niches = check_n_niches(K, len(train))
    if n_seeds < 1:
        raise ValueError(f"n_seeds={n_seeds}; it has to be at least 1.")
    if use_rep == Keys.SCVI and Keys.SCVI not in adata.obsm:
        express(data, split_key=split_key, seed=seed, device=device, table_key=table_key)
    features = features_of(adata, use_rep, run="nk.pp.expression_features")
    index = neighborhood_index(data, split_key=split_key, table_key=table_key)
    fit = fit or NolanSettings()
    train_one = partial(fit_nolan, preset, n_niches, index, features, train, fit=fit, device=device)
    start = None
    if n_seeds > 1:
        members = [train_one(seed=s, name=f"nolan, seed {s}").logits[train] for s in range(seed, seed + n_seeds)]
        start = consensus_partition(members, fit.teacher_temperature, seed=seed)
    result = train_one(seed=seed, start=start)

    labels = result.logits.argmax(1)
    usage = _usage(labels[train], n_niches)
    adata.obsm[Keys.logits(key_added)] = result.logits
    write_labels(adata, Keys.niche(key_added), labels, n_niches=n_niches)
    parameters = {"K": n_niches, "use_rep": use_rep, "key_added": key_added, "seed": seed, "n_seeds": n_seeds}
    history = result.history.arrays()
    seconds = time.perf_counter() - started
    record(adata, "nolan", seconds=seconds, preset=preset, history=history, **parameters, **usage)
    return data if copy else None


def _usage(labels: NDArray[np.integer], n_niches: int) -> dict[str, float]:
    """How many niches have training cells, and how evenly; warns where many have none."""
    from nichekd.tl._nolan_fit import usage_entropy

    n_live, entropy = len(np.unique(labels)), usage_entropy(labels, n_niches)
    log.info("NOLAN: %d of %d niches live, usage entropy %.2f", n_live, n_niches, entropy)
    if n_live < LIVE_SHARE * n_niches:
        warnings.warn(
            f"Only {n_live} of K={n_niches} niches have cells. Ask for fewer niches, or train longer: "
            "fit=nk.models.NolanSettings(n_steps=…).",
            UserWarning,
            stacklevel=3,
        )
    return {"n_live": n_live, "usage_entropy": entropy}

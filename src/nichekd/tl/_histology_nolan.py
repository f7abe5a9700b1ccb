from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import numpy as np

from nichekd._keys import Keys, Split
from nichekd._record import record
from nichekd._resolve import get_table, split_of, working_copy
from nichekd._seeds import check_seed
from nichekd.tl._inputs import check_n_niches, features_of, image_rep, neighborhood_index
from nichekd.tl._write_niches import write_labels

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from nichekd.models import NolanSettings
    from nichekd.models._neighborhood_transformer import Preset

log = logging.getLogger(__name__)


def histology_nolan(
    data: AnnData | SpatialData,
    K: int = 10,
    *,
    use_rep: str | None = None,
    split_key: str = Keys.SPLIT,
    seed: int = 0,
    key_added: str = Keys.HISTOLOGY_NOLAN,
    preset: Preset = "pooling",
    fit: NolanSettings | None = None,
    device: str | None = None,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Baseline: NOLAN on the student's image features, with no teacher.

    Parameters
    ----------
    data
        Cells with image features.
    K
        Number of niches.
    use_rep
        ``obsm`` key of the image features; default: those written last.
    split_key
        Column of ``obs`` with ``train`` cells to fit on.
    seed
        Same seed, same CPU, same labels.
    key_added
        Name of the result.
    preset, fit, device
        As for :func:`nichekd.tl.nolan`.
    table_key
        Table of a ``SpatialData``.
    copy
        Return a new object and leave ``data`` as it is.

    Returns
    -------
    ``None``, or the new object. Writes ``obsm["histology_nolan_logits"]``, float32 (n, K), and
    ``obs["niche_histology_nolan"]``, categorical ``"0"`` … ``"K-1"``.

    Raises
    ------
    KeyError
        If the features are missing.
    TypeError
        If K is no whole number.
    ValueError
        If K is below 2 or above the number of training cells, features are NaN, or ``key_added`` is the name of another
        method.
    """
    from nichekd.models import NolanSettings
    from nichekd.tl._nolan_fit import fit_nolan

    check_seed(seed)
    started = time.perf_counter()
    Keys.check_name(key_added, own=Keys.HISTOLOGY_NOLAN)
    data = working_copy(data, copy)
    adata = get_table(data, table_key)
    train = np.flatnonzero(split_of(adata, split_key) == Split.TRAIN)
    n_niches = check_n_niches(K, len(train))
    use_rep = image_rep(data, use_rep, device=device, table_key=table_key)
    features = features_of(adata, use_rep, run="nk.pp.histology_features")
    index = neighborhood_index(data, split_key=split_key, table_key=table_key)
    fit = fit or NolanSettings()
    result = fit_nolan(
        preset, n_niches, index, features, train, fit=fit, seed=seed, device=device, name="histology-NOLAN"
    )
    adata.obsm[Keys.logits(key_added)] = result.logits
    write_labels(adata, Keys.niche(key_added), result.logits.argmax(1), n_niches=n_niches)
    parameters = {"K": n_niches, "use_rep": use_rep, "seed": seed, "key_added": key_added, "preset": preset}
    history = result.history.arrays()
    record(adata, "histology_nolan", seconds=time.perf_counter() - started, **parameters, history=history)
    return data if copy else None

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._keys import Keys
from nichekd._record import notes, record
from nichekd._resolve import get_table, working_copy
from nichekd.tl._recorded_features import ALIGNED

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd.models import AlignedEncoder

log = logging.getLogger(__name__)

ROWS = 8192


def embed_histology(
    data: AnnData | SpatialData,
    model: AlignedEncoder,
    *,
    use_rep: str | None = None,
    key_added: str = Keys.RANK_BY_GENE,
    device: str | None = None,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Image features that are ordered as the genes are, of any slide; no gene is looked at.

    Parameters
    ----------
    data
        Cells, or tiles, with image features; where those of the model's encoder are missing, they are made of the
        image.
    model
        From :func:`nichekd.tl.rank_by_gene` or :meth:`nichekd.models.AlignedEncoder.load`.
    use_rep
        ``obsm`` key of the image features; default: those of the model's encoder.
    key_added
        ``obsm`` key to write.
    device
        Fabric's accelerator; default ``nk.settings.device``.
    table_key
        Table of a ``SpatialData``.
    copy
        Leave ``data`` as it is and return a new object.

    Returns
    -------
    ``None``, or the new object for ``copy=True``. Writes ``obsm["X_rank_by_gene"]``, float32 (n, d), what it was made
    of to ``uns["nichekd"]["features"]``, and ``uns["nichekd"]["embed_histology"]``. Hand the key to others by
    ``use_rep="X_rank_by_gene"``.

    Raises
    ------
    KeyError
        If ``use_rep`` is missing.
    TypeError
        If ``model`` is none.
    ValueError
        If the features are of another encoder, crop, resolution or length than the model's, or are NaN.
    """
    from nichekd.models import AlignedEncoder
    from nichekd.tl._model_rep import features_for

    started = time.perf_counter()
    if not isinstance(model, AlignedEncoder):
        raise TypeError(
            f"model is a {type(model).__name__}; it has to be an AlignedEncoder: nk.models.AlignedEncoder.load(folder)."
        )
    data = working_copy(data, copy)
    adata = get_table(data, table_key)
    config = model.config
    use_rep, features = features_for(
        data, config.features, config.n_features, use_rep=use_rep, encoder=model.encoder, device=device,
        table_key=table_key,
    )  # fmt: skip
    adata.obsm[key_added] = _embed(model, features, device)
    about = notes(adata).setdefault(Keys.FEATURES, {}).get(use_rep, {})
    notes(adata)[Keys.FEATURES][key_added] = {
        **about, "encoder": ALIGNED, "fingerprint": model.fingerprint, "n_features": config.n_out,
        "made_of": use_rep,
    }  # fmt: skip
    record(adata, "embed_histology", seconds=time.perf_counter() - started, use_rep=use_rep, key_added=key_added)
    log.info("%d cells: obsm[%r] → obsm[%r], %d features", adata.n_obs, use_rep, key_added, config.n_out)
    return data if copy else None


def _embed(model: AlignedEncoder, features: Any, device: str | None) -> NDArray[np.float32]:
    import torch

    from nichekd.tl._loop import make_fabric

    where = make_fabric(device).device
    model.eval().to(where)
    found = np.empty((len(features), model.config.n_out), dtype=np.float32)
    try:
        with torch.inference_mode():
            for start in range(0, len(features), ROWS):
                rows = np.asarray(features[start : start + ROWS], dtype=np.float32)
                found[start : start + ROWS] = model(torch.from_numpy(rows).to(where)).float().cpu().numpy()
    finally:
        model.to("cpu")
    if bad := int((~np.isfinite(found)).any(axis=1).sum()):
        raise ValueError(f"Image features of {bad:,} cells are NaN or infinite; run nk.pp.histology_features again.")
    return found

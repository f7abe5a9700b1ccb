from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nichekd._keys import Keys
from nichekd._record import record
from nichekd._resolve import get_table
from nichekd._sections import cells_of_libraries
from nichekd.tl._model_rep import features_for

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from nichekd.models import SlideClassifier

log = logging.getLogger(__name__)


def predict_slides(
    data: AnnData | SpatialData,
    model: SlideClassifier,
    *,
    library_key: str | None = None,
    use_rep: str | None = None,
    key_added: str = Keys.ATTENTION,
    device: str | None = None,
    table_key: str = "table",
) -> pd.DataFrame:
    """Classes of slides, and the cells they were told by.

    Parameters
    ----------
    data
        Cells, or tiles, with image features.
    model
        From :func:`nichekd.tl.slide_classifier` or :meth:`nichekd.models.SlideClassifier.load`.
    library_key
        Column of ``obs`` that tells slides apart; default one slide.
    use_rep
        ``obsm`` key of the features; default: the key the classifier was trained on, or where there is none of that name,
        features of the same kind, which are made where there are none.
    key_added
        Column of ``obs`` to write.
    device
        Fabric's accelerator; default ``nk.settings.device``.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    A row per slide: ``library``, ``predicted``, ``n_cells``, and a column ``proba_<class>`` for each class. Writes
    ``obs["attention"]``, how many times the slide's mean a cell's weight is (1: neither more nor less than others),
    and ``uns["nichekd"]["predict_slides"]``.

    Raises
    ------
    KeyError
        If ``library_key`` is missing, or are features that nichekd did not make.
    TypeError
        If ``model`` is none.
    ValueError
        If the features are of another encoder, crop, resolution or length than the model's, or are NaN; if the encoder
        that would make them is not here, or here with other weights.
    """
    import torch

    from nichekd.models import SlideClassifier
    from nichekd.tl._loop import make_fabric

    started = time.perf_counter()
    if not isinstance(model, SlideClassifier):
        raise TypeError(
            f"model is a {type(model).__name__}; it has to be a SlideClassifier: nk.models.SlideClassifier.load(folder)."
        )
    adata = get_table(data, table_key)
    slides = {None: np.arange(adata.n_obs)} if library_key is None else cells_of_libraries(adata, library_key)
    config = model.config
    if use_rep is None and config.features["use_rep"] in adata.obsm:
        use_rep = config.features["use_rep"]
    key, features = features_for(
        data, config.features, config.n_features, use_rep=use_rep, device=device, table_key=table_key
    )
    where = make_fabric(device).device
    attention = np.empty(adata.n_obs, dtype=np.float32)
    rows = []
    model.eval().to(where)
    try:
        for name, cells in slides.items():
            with torch.inference_mode():
                logits, weights = model(torch.from_numpy(np.asarray(features[cells], dtype=np.float32)).to(where))
                proba = torch.softmax(logits, dim=0).cpu().numpy()
            if not np.isfinite(proba).all():
                raise ValueError(f"obsm[{key!r}] is NaN or infinite for cells of slide {name!r}; make it again.")
            attention[cells] = weights.cpu().numpy() * len(cells)
            shares = {f"proba_{one}": float(p) for one, p in zip(config.classes, proba, strict=True)}
            best = config.classes[int(proba.argmax())]
            rows.append({"library": name, "predicted": best, "n_cells": len(cells)} | shares)
    finally:
        model.to("cpu")
    adata.obs[key_added] = attention
    record(
        adata, "predict_slides", seconds=time.perf_counter() - started, use_rep=key, library_key=library_key,
        key_added=key_added,
    )  # fmt: skip
    return pd.DataFrame(rows)

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import pandas as pd

from nichekd._keys import Keys
from nichekd._record import record
from nichekd._resolve import get_table, working_copy
from nichekd.tl._model_rep import features_for

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from nichekd.models import AbundanceModel, Encoder

log = logging.getLogger(__name__)


def predict_abundance(
    data: AnnData | SpatialData,
    model: AbundanceModel,
    *,
    use_rep: str | None = None,
    key_added: str = Keys.ABUNDANCE,
    device: str | None = None,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Abundances of cell types from H&E alone.

    What is missing is done first with what the model carries: image features by its encoder, at its crop size and µm
    per pixel; and on a slide without any cells, :func:`nichekd.pp.segment_nuclei`.

    Parameters
    ----------
    data
        Cells or spots with an H&E image; their expression is not looked at.
    model
        From :func:`nichekd.tl.cuca` or :meth:`nichekd.models.AbundanceModel.load`.
    use_rep
        ``obsm`` key of the image features; default: those of the model's encoder. A model whose encoder was trained
        along makes its own.
    key_added
        ``obsm`` key of the abundances; with another than ``"abundance"``, say ``"old"``, the other is ``"X_cuca_old"``.
    device
        Fabric's accelerator; default ``nk.settings.device``.
    table_key
        Table of a ``SpatialData``.
    copy
        Return a new object and leave ``data`` as it is.

    Returns
    -------
    ``None``, or the new object. Writes

    - ``obsm["abundance"]``, a float32 ``DataFrame`` (n, K), none negative, in the unit of the training data;
    - ``obsm["X_cuca"]``, the embedding, float32 (n, width), 256 wide by default;
    - ``uns["nichekd"]["predict_abundance"]``.

    Raises
    ------
    KeyError
        If ``use_rep`` is missing.
    TypeError
        If ``model`` is none, or its encoder was trained along and ``data`` has no image.
    ValueError
        If there are no cells; if the features are of another encoder or other weights, of another crop size or µm per
        pixel than the model's, or of another length.
    """
    from nichekd.models import AbundanceModel
    from nichekd.tl._student_inputs import find_cells

    started = time.perf_counter()
    if not isinstance(model, AbundanceModel):
        raise TypeError(
            f"model is a {type(model).__name__}; it has to be an AbundanceModel: nk.models.AbundanceModel.load(folder)."
        )
    data = working_copy(data, copy)
    wanted = model.config.features
    encoder = find_cells(data, wanted, use_rep=use_rep, encoder=model.encoder, table_key=table_key, who="model")
    adata = get_table(data, table_key)
    if adata.n_obs == 0:
        raise ValueError("The table has no cells or spots; there is nothing to predict for.")
    features, use_rep = _features(data, model, use_rep, encoder=encoder, device=device, table_key=table_key)
    write_abundance(adata, model, features, device=device, key_added=key_added)
    record(
        adata, "predict_abundance", seconds=time.perf_counter() - started, use_rep=use_rep, key_added=key_added,
        types=list(model.types),
    )  # fmt: skip
    return data if copy else None


def embedding_key(key_added: str) -> str:
    """``obsm`` key of the embedding beside the abundances ``key_added``."""
    return Keys.CUCA if key_added == Keys.ABUNDANCE else f"{Keys.CUCA}_{key_added}"


def write_abundance(
    adata: AnnData, model: AbundanceModel, features: Any, *, device: str | None, key_added: str
) -> None:
    """Predict all cells and write the model's keys."""
    from nichekd.tl._loop import make_fabric

    try:
        abundance, embedding = model.predict(features, device=make_fabric(device).device)
    finally:
        model.to("cpu")
    adata.obsm[key_added] = pd.DataFrame(abundance, index=adata.obs_names, columns=list(model.types))
    adata.obsm[embedding_key(key_added)] = embedding
    log.info("abundances of %d types in %d cells or spots", len(model.types), len(abundance))


def _features(
    data: AnnData | SpatialData,
    model: AbundanceModel,
    use_rep: str | None,
    *,
    encoder: Encoder | None,
    device: str | None,
    table_key: str,
) -> tuple[Any, str | None]:
    """Features of the model's kind, made where there are none, by ``encoder`` if given, and their key."""
    if model.encoder is not None:
        if use_rep is not None:
            raise ValueError(
                f"use_rep={use_rep!r}, but the encoder of this model was trained along, and no other has its features. "
                "Leave use_rep out."
            )
        from nichekd.tl._cuca_images import crop_reader, encode_crops
        from nichekd.tl._loop import make_fabric

        reader = crop_reader(data, model.config.features, table_key=table_key)
        return encode_crops(reader, model.encoder.to(make_fabric(device).device)), None
    key, features = features_for(
        data, model.config.features, model.config.network.n_features, use_rep=use_rep, encoder=encoder,
        device=device, table_key=table_key,
    )  # fmt: skip
    return features, key

"""Image features of the kind that a trained model reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nichekd._resolve import get_table
from nichekd.tl._inputs import features_of
from nichekd.tl._recorded_features import check_kind, find_or_make

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from nichekd.models import Encoder


def features_for(
    data: AnnData | SpatialData,
    wanted: dict[str, Any],
    n_features: int,
    *,
    use_rep: str | None,
    encoder: Encoder | None = None,
    device: str | None = None,
    table_key: str = "table",
) -> tuple[str, Any]:
    """``obsm`` key and rows, (n, F), of features of the kind ``wanted``; they are made where there are none.

    Parameters
    ----------
    data
        Cells.
    wanted
        What the model recorded of the features it was trained on; empty where it knows nothing.
    n_features
        Their length.
    use_rep
        ``obsm`` key; ``None`` to look for them.
    encoder
        The encoder itself where the model carries it.
    device, table_key
        As everywhere.

    Raises
    ------
    KeyError
        If ``use_rep`` is missing, or there is nothing to go by.
    ValueError
        If the features are of another encoder, crop, resolution or length; if the encoder that would make them is not
        here, or here with other weights.
    """
    adata = get_table(data, table_key)
    key = use_rep or find_or_make(data, wanted, encoder=encoder, device=device, table_key=table_key)
    features = features_of(adata, key, run="nk.pp.histology_features")
    check_kind(adata, key, wanted, (features.shape[1], n_features))
    return key, features

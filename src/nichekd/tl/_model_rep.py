"""Image features of the kind that a trained model reads: found, made, or refused."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from nichekd._keys import Keys
from nichekd._record import notes
from nichekd._resolve import get_table
from nichekd.tl._inputs import features_of
from nichekd.tl._student_inputs import KIND, MPP_TOLERANCE, differs, same_kind

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from nichekd.models import Encoder

log = logging.getLogger(__name__)


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
        If the features are of another encoder, crop, resolution or length.
    """
    adata = get_table(data, table_key)
    key = use_rep or _found(data, adata, wanted, encoder, device, table_key)
    features = features_of(adata, key, run="nk.pp.histology_features")
    advice = "Leave use_rep out, and they are made as the model needs them."
    found = notes(adata).get(Keys.FEATURES, {}).get(key, {})
    for name in KIND:
        if differs(name, wanted, found):
            raise ValueError(
                f"obsm[{key!r}] has {name} {found.get(name)!r}; the model was trained on {wanted.get(name)!r}. {advice}"
            )
    if "mpp" in wanted and "mpp" in found and abs(float(found["mpp"]) / float(wanted["mpp"]) - 1) > MPP_TOLERANCE:
        raise ValueError(
            f"obsm[{key!r}] was made at {float(found['mpp']):.4g} µm per pixel; the model was trained at "
            f"{float(wanted['mpp']):.4g}. {advice}"
        )
    if features.shape[1] != n_features:
        raise ValueError(f"obsm[{key!r}] has {features.shape[1]} features; the model reads {n_features}. {advice}")
    return key, features


def _found(
    data: AnnData | SpatialData,
    adata: AnnData,
    wanted: dict[str, Any],
    encoder: Encoder | None,
    device: str | None,
    table_key: str,
) -> str:
    from nichekd import pp

    last = notes(adata).get(Keys.LAST_REP)
    if not wanted:
        if last is None:
            raise KeyError(
                "The model does not know which image features it was trained on, and the table has none that were "
                f"recorded; name some by use_rep=. obsm has {sorted(adata.obsm.keys())}."
            )
        return last
    for key, found in notes(adata).get(Keys.FEATURES, {}).items():
        if key in adata.obsm and same_kind(found, wanted):
            return key
    log.info("no features of the model's encoder yet: encoding crops with %s", wanted["encoder"])
    pp.histology_features(
        data,
        encoder=wanted["encoder"] if encoder is None else encoder,
        weights=wanted.get("weights") if encoder is None else None,
        crop_px=int(wanted["crop_px"]),
        mpp=float(wanted["mpp"]),
        mode=wanted.get("mode", "crop"),
        stride_px=wanted.get("stride_px"),
        stain=wanted.get("stain"),
        device=device,
        table_key=table_key,
    )
    made = notes(adata)[Keys.LAST_REP]
    if last is not None:
        notes(adata)[Keys.LAST_REP] = last  # what other functions take by default stays what the user chose
    return made

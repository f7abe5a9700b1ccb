"""Image features as a trained model recorded them: found in the table, made by the same encoder, or refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nichekd._keys import Keys
from nichekd._record import notes, plain
from nichekd._resolve import get_table
from nichekd._units import MPP_TOLERANCE

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from nichekd.models import Encoder

log = logging.getLogger(__name__)

KIND = ("encoder", "fingerprint", "crop_px", "mode", "stride_px", "stain")  # what features of one kind agree in
ALIGNED = "rank_by_gene"  # the encoder of features that nk.tl.embed_histology wrote
UNRECORDED = ("stain",)  # of these, those that are not recorded where there are none


def record_of(adata: AnnData, use_rep: str) -> dict[str, Any]:
    """What was recorded of ``obsm[use_rep]``, for a model that reads it; of features not made here, their key alone."""
    return plain(notes(adata).get(Keys.FEATURES, {}).get(use_rep, {})) or {"use_rep": use_rep}


def find_or_make(
    data: AnnData | SpatialData,
    wanted: dict[str, Any],
    *,
    encoder: Encoder | None,
    device: str | None,
    table_key: str,
    who: str = "model",
) -> str:
    """``obsm`` key of features of the kind ``wanted``, which are made where there are none.

    Parameters
    ----------
    data
        Cells.
    wanted
        What the model recorded of the features it was trained on, see :func:`record_of`; empty if it does not know.
    encoder
        The encoder itself, where the model carries it.
    device, table_key
        As everywhere.
    who
        What reads them, for messages: the model, or the student.

    Raises
    ------
    KeyError
        If there is nothing to go by.
    ValueError
        If the encoder is not here, or here with other weights.
    """
    adata = get_table(data, table_key)
    last = notes(adata).get(Keys.LAST_REP)
    if "encoder" not in wanted:
        return _named(adata, wanted.get("use_rep", last), who=who)
    for key, found in notes(adata).get(Keys.FEATURES, {}).items():
        if key in adata.obsm and same_kind(found, wanted):
            return key
    ready = recorded_encoder(wanted, encoder, who=who)
    log.info("no features of the %s's encoder yet: encoding crops with %s", who, wanted["encoder"])
    key = _free_key(adata, ready, wanted)
    encode_as_recorded(data, wanted, ready, device=device, table_key=table_key, key_added=key)
    made = notes(adata)[Keys.LAST_REP]
    if last is not None:
        notes(adata)[Keys.LAST_REP] = last  # what other functions take by default stays what the user chose
    return made


def _named(adata: AnnData, key: str | None, *, who: str) -> str:
    """``key``, of features that no encoder of ours made, if they are there."""
    if key is None:
        raise KeyError(
            f"The {who} does not know which image features it was trained on, and the table has none that were "
            f"recorded; name some by use_rep=. obsm has {sorted(adata.obsm.keys())}."
        )
    if key not in adata.obsm:
        raise KeyError(
            f"The {who} was trained on obsm[{key!r}], features that were brought along, and they are missing here. Make "
            f"them as then, or name them by use_rep=. obsm has {sorted(adata.obsm.keys())}."
        )
    return key


def encode_as_recorded(
    data: AnnData | SpatialData,
    wanted: dict[str, Any],
    encoder: Encoder,
    *,
    device: str | None,
    table_key: str,
    store: Path | None = None,
    key_added: str | None = None,
) -> None:
    """Image features of crops, or tiles, like those ``wanted``, streamed to ``store`` where one is named."""
    from nichekd import pp

    pp.histology_features(
        data,  # type: ignore[type-var]  # it says so itself
        encoder=encoder,
        crop_px=int(wanted["crop_px"]),
        mpp=float(wanted["mpp"]),
        mode=wanted.get("mode", "crop"),
        stride_px=wanted.get("stride_px"),
        stain=wanted.get("stain"),
        store=store,
        key_added=key_added,
        device=device,
        table_key=table_key,
    )


def _free_key(adata: AnnData, encoder: Encoder, wanted: dict[str, Any]) -> str:
    """The usual key of such features, numbered where the table has others, of another crop or stain, by that name."""
    usual = key = Keys.features(encoder.name if wanted.get("mode", "crop") == "crop" else f"{encoder.name}_dense")
    number = 2
    while key in adata.obsm:
        key, number = f"{usual}_{number}", number + 1
    return key


def recorded_encoder(wanted: dict[str, Any], encoder: Encoder | None, *, who: str = "model") -> Encoder:
    """The encoder of the features ``wanted``, found to be it before anything is encoded.

    Raises
    ------
    ValueError
        If it is not here, or here with other weights.
    EncoderAccessError
        If a hub refuses its weights.
    """
    from nichekd.models import get_encoder

    if encoder is not None:
        return encoder
    if wanted.get("encoder") == ALIGNED:
        raise ValueError(
            f"The {who} reads features of an aligned encoder. Make them here first: nk.tl.embed_histology(data, model), "
            f"model being that encoder, then name them: use_rep={Keys.RANK_BY_GENE!r}."
        )
    name, noted = str(wanted["encoder"]), wanted.get("weights")
    advice = (
        "With it at hand, run nk.pp.histology_features(encoder=..., weights=...), and name the features by use_rep=."
    )
    try:  # the file of its weights is where it was on the machine of the training, or nowhere
        found = get_encoder(name, weights=noted if noted is not None and Path(noted).is_file() else None)
    except (ValueError, ImportError) as err:
        raise ValueError(f"The {who} reads features of encoder {name!r}, which is not here: {err} {advice}") from err
    if wanted.get("fingerprint") not in (None, found.fingerprint):
        raise ValueError(
            f"The {who} reads features of encoder {name!r} with other weights: its fingerprint is "
            f"{wanted['fingerprint']!r}, here {found.fingerprint!r}. {advice}"
        )
    return found


def check_kind(
    adata: AnnData, use_rep: str, wanted: dict[str, Any], shape: tuple[int, int], *, who: str = "model"
) -> None:
    """Refuse features that are not of the kind ``wanted``, or ``shape`` of another length: theirs, and the model's.

    Raises
    ------
    ValueError
        If they are of another encoder, crop, resolution or length.
    """
    found = notes(adata).get(Keys.FEATURES, {}).get(use_rep, {})
    advice = f"Leave use_rep out, and they are made as the {who} needs them."
    for name in KIND:
        if _differs(name, wanted, found):
            raise ValueError(
                f"obsm[{use_rep!r}] has {name} {found.get(name)!r}; the {who} was trained on {wanted.get(name)!r}. "
                f"{advice}"
            )
    if "mpp" in wanted and "mpp" in found and not _same_mpp(found, wanted):
        raise ValueError(
            f"obsm[{use_rep!r}] was made at {float(found['mpp']):.4g} µm per pixel; the {who} was trained at "
            f"{float(wanted['mpp']):.4g}. {advice}"
        )
    n_found, n_wanted = shape
    if n_found != n_wanted:
        raise ValueError(f"obsm[{use_rep!r}] has {n_found} features; the {who} reads {n_wanted}. {advice}")


def same_kind(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether two records of features tell of the same encoder, crops and resolution."""
    same = "encoder" in wanted and all(found.get(name) == wanted.get(name) for name in KIND)
    if "mpp" not in found and "mpp" not in wanted:  # aligned ones of features that were brought along
        return same and wanted.get("fingerprint") is not None
    return same and "mpp" in found and "mpp" in wanted and _same_mpp(found, wanted)


def _same_mpp(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return abs(float(found["mpp"]) / float(wanted["mpp"]) - 1) <= MPP_TOLERANCE


def _differs(name: str, expected: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether two records of features are known to differ in ``name``."""
    both_made_here = "encoder" in expected and "encoder" in found
    known = (name in expected and name in found) or (name in UNRECORDED and both_made_here)
    return known and expected.get(name) != found.get(name)

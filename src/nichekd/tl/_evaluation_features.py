"""What the methods of an evaluation read: made once, kept in its folder, taken from there by the next call."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nichekd._files import written
from nichekd._keys import Keys
from nichekd._record import notes
from nichekd._settings import settings
from nichekd.tl._evaluation_folder import EvaluationFolder, cells_of, features_made_of, features_name
from nichekd.tl._evaluation_methods import COLOR, EXPRESSION, FROZEN, GENE_AWARE, RANDOM, SHUFFLED
from nichekd.tl._inputs import image_rep, neighborhood_index
from nichekd.tl._recorded_features import ALIGNED

if TYPE_CHECKING:
    from anndata import AnnData

    from nichekd.tl._evaluation_runs import Evaluation

log = logging.getLogger(__name__)

FEATURES, ENCODER = "features", "encoder"  # in the folder
TRAINED = (GENE_AWARE, ALIGNED)  # encoders that have seen genes: not the frozen one, though written last
FLOORS = (COLOR, RANDOM)


def prepare_features(evaluation: Evaluation, folder: EvaluationFolder) -> dict[str, str]:
    """``obsm`` key of each kind of features that the methods read, made where it is missing.

    Raises
    ------
    ValueError
        If the folder's results are of another data set, of other features or settings.
    """
    adata, wanted = evaluation.adata, {method.rep for method in evaluation.methods}
    start = evaluation.plan.gene_aware_start if GENE_AWARE in wanted else {}
    folder.check(cells_of(adata, evaluation.plan.split_key) | evaluation.plan.fits | start)
    if Keys.SCVI not in adata.obsm:
        _express(evaluation, folder)
    neighborhood_index(evaluation.data, split_key=evaluation.plan.split_key, table_key=evaluation.plan.table_key)
    reps: dict[str, str] = {EXPRESSION: Keys.SCVI}
    radius = round(float(notes(adata)[Keys.RADIUS]), 6)
    folder.check({"radius": radius} | features_made_of(adata, reps))  # before crops are encoded
    if wanted & {FROZEN, SHUFFLED}:
        reps[FROZEN] = _frozen(evaluation, folder)
    last = notes(adata).get(Keys.LAST_REP)
    for kind in (COLOR, RANDOM, GENE_AWARE):
        if kind in wanted:
            reps[kind] = Keys.features(kind)
            if reps[kind] not in adata.obsm:
                encoder = _gene_aware_encoder(evaluation, folder) if kind == GENE_AWARE else kind
                _encode(evaluation, encoder, reps[kind], folder, kind)
    if last is None:
        notes(adata).pop(Keys.LAST_REP, None)
    else:
        notes(adata)[Keys.LAST_REP] = last  # floors are not what the user works with
    folder.check(features_made_of(adata, reps))
    return reps


def _express(evaluation: Evaluation, folder: EvaluationFolder) -> None:
    """ScVI's latent, from the folder if an earlier call put it there."""
    from nichekd import pp

    if not folder.has(FEATURES, EXPRESSION):
        pp.expression_features(
            evaluation.data,
            split_key=evaluation.plan.split_key,
            seed=evaluation.plan.seeds[0],
            table_key=evaluation.plan.table_key,
        )
        folder.keep(FEATURES, EXPRESSION, latent=evaluation.adata.obsm[Keys.SCVI])
    evaluation.adata.obsm[Keys.SCVI] = folder.arrays(FEATURES, EXPRESSION)["latent"]


def _frozen(evaluation: Evaluation, folder: EvaluationFolder) -> str:
    """``obsm`` key of the frozen encoder's features."""
    from nichekd.models import get_encoder

    adata = evaluation.adata
    if evaluation.plan.use_rep is not None:
        return image_rep(
            evaluation.data, evaluation.plan.use_rep, device=evaluation.plan.device, table_key=evaluation.plan.table_key
        )
    if evaluation.plan.encoder is None and (there := _frozen_there(adata)) is not None:
        return there
    encoder = evaluation.plan.encoder or settings.encoder
    key = Keys.features(encoder)
    if key not in adata.obsm:
        ready = get_encoder(encoder, weights=evaluation.plan.weights)
        folder.check({f"features.{FROZEN}": features_name(key, ready.fingerprint)})  # before crops are encoded
        _encode(evaluation, ready, key, folder, FROZEN)
    elif evaluation.plan.weights is not None:
        _require_weights(adata, key, encoder, evaluation.plan.weights)
    return key


def _require_weights(adata: AnnData, key: str, encoder: str, weights: Any) -> None:
    """Raise ``ValueError`` if the features that are there were made with other weights than those named."""
    from nichekd.models import get_encoder

    about = notes(adata).get(Keys.FEATURES, {}).get(key, {})
    if about.get("weights") == str(Path(weights).absolute()):
        return
    if get_encoder(encoder, weights=weights).fingerprint != about.get("fingerprint"):
        raise ValueError(
            f"obsm[{key!r}] was made with weights {about.get('weights')!r}, now weights={str(weights)!r}. Leave weights "
            f"out to take those features, or remove them to make others: del adata.obsm[{key!r}]."
        )


def _frozen_there(adata: AnnData) -> str | None:
    """Features written last, or, where these have seen genes, others that have not; ``None`` where there are none."""
    known, last = notes(adata).get(Keys.FEATURES, {}), notes(adata).get(Keys.LAST_REP)
    if last in adata.obsm and known.get(last, {}).get("encoder") not in TRAINED:
        return str(last)
    frozen = [
        key for key, about in known.items() if key in adata.obsm and about.get("encoder") not in {*TRAINED, *FLOORS}
    ]
    return frozen[-1] if frozen else None


def _encode(evaluation: Evaluation, encoder: Any, key: str, folder: EvaluationFolder, kind: str) -> None:
    """Image features, in a store that a killed run goes on with."""
    from nichekd import pp

    log.info("no %s features yet", kind)
    store = None if folder.path is None else folder.path / FEATURES / kind
    pp.histology_features(
        evaluation.data, encoder=encoder, key_added=key, store=store, device=evaluation.plan.device,
        table_key=evaluation.plan.table_key,
    )  # fmt: skip


def _gene_aware_encoder(evaluation: Evaluation, folder: EvaluationFolder) -> Any:
    from nichekd.models import Encoder
    from nichekd.models._encoder_registry import remember_encoder
    from nichekd.tl._gene_aware_encoder import gene_aware_encoder

    kept = None if folder.path is None else folder.path / ENCODER
    if kept is not None and kept.is_dir():
        encoder = Encoder.load(kept)
        remember_encoder(encoder, overwrite=True)
        return encoder
    plan = evaluation.plan
    encoder = gene_aware_encoder(
        evaluation.data, encoder=plan.gene_aware, weights=plan.gene_aware_weights, lora=plan.gene_aware_lora,
        split_key=plan.split_key, seed=plan.seeds[0], fit=plan.gene_aware_fit, device=plan.device,
        table_key=plan.table_key,
    )  # fmt: skip
    if kept is not None:
        with written(kept) as new:
            encoder.save(new)
    return encoder

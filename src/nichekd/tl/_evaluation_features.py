"""What the methods of an evaluation read: made once, kept in its folder, taken from there by the next call."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from nichekd._files import written
from nichekd._keys import Keys
from nichekd._record import notes
from nichekd.tl._evaluation_made_of import cells_of, counts_of, features_made_of, features_name, graph_of
from nichekd.tl._evaluation_methods import EXPRESSION, FROZEN, GENE_AWARE
from nichekd.tl._evaluation_sources import check_gene_aware_start, find_sources
from nichekd.tl._expression import express
from nichekd.tl._inputs import neighborhood_index

if TYPE_CHECKING:
    from pathlib import Path

    from nichekd.models import Encoder
    from nichekd.tl._evaluation_folder import EvaluationFolder
    from nichekd.tl._evaluation_runs import Evaluation
    from nichekd.tl._evaluation_sources import Sources

log = logging.getLogger(__name__)

FEATURES, ENCODER = "features", "encoder"  # in the folder


def prepare_features(evaluation: Evaluation, folder: EvaluationFolder) -> dict[str, str]:
    """``obsm`` key of each kind of features that the methods read, made where it is missing.

    What can't be made is found before any is.

    Raises
    ------
    ValueError
        If the folder's results are of another data set, of other features or settings.
    """
    adata, plan = evaluation.adata, evaluation.plan
    reads_genes = any(method.rep == GENE_AWARE for method in evaluation.methods)
    folder.check(cells_of(adata, plan.split_key) | plan.fits | (plan.gene_aware_start if reads_genes else {}))
    sources = find_sources(evaluation)
    folder.check(features_made_of(adata, sources.there))
    encoders = _encoders(evaluation, folder, sources)
    neighborhood_index(evaluation.data, split_key=plan.split_key, table_key=plan.table_key)
    folder.check(graph_of(adata))
    if Keys.SCVI not in adata.obsm:
        _express(evaluation, folder)
    folder.check(features_made_of(adata, {EXPRESSION: Keys.SCVI}))  # before crops are encoded
    last = notes(adata).get(Keys.LAST_REP)
    for kind, encoder in encoders.items():
        ready = _gene_aware_encoder(evaluation, folder) if kind == GENE_AWARE else encoder
        _encode(evaluation, ready, sources.reps[kind], folder, kind)
        if kind == FROZEN:
            last = sources.reps[kind]
    if last is None:
        notes(adata).pop(Keys.LAST_REP, None)
    else:
        notes(adata)[Keys.LAST_REP] = last  # floors are not what the user works with
    folder.check(features_made_of(adata, sources.reps))
    return sources.reps


def _encoders(evaluation: Evaluation, folder: EvaluationFolder, sources: Sources) -> dict[str, Any]:
    """What makes each kind of missing features, by name or ready; the gene-aware one is trained when its turn comes."""
    from nichekd.models import get_encoder

    encoders: dict[str, Any] = dict(sources.missing)
    if FROZEN in encoders:
        ready = get_encoder(encoders[FROZEN], weights=evaluation.plan.weights)
        folder.check({f"features.{FROZEN}": features_name(sources.reps[FROZEN], ready.fingerprint)})
        encoders[FROZEN] = ready
    if GENE_AWARE in encoders and _kept_encoder(folder) is None:
        check_gene_aware_start(evaluation.plan)
    return encoders


def _express(evaluation: Evaluation, folder: EvaluationFolder) -> None:
    """ScVI's latent, from the folder if an earlier call put it there for the same counts."""
    adata, plan = evaluation.adata, evaluation.plan
    folder.check(counts_of(adata))
    if not folder.has(FEATURES, EXPRESSION):
        express(
            evaluation.data, split_key=plan.split_key, seed=plan.seeds[0], device=plan.device, table_key=plan.table_key
        )
        folder.keep(FEATURES, EXPRESSION, latent=adata.obsm[Keys.SCVI])
    adata.obsm[Keys.SCVI] = folder.arrays(FEATURES, EXPRESSION, {"latent": (adata.n_obs, None)})["latent"]


def _encode(evaluation: Evaluation, encoder: str | Encoder, key: str, folder: EvaluationFolder, kind: str) -> None:
    """Image features, in a store that a killed run goes on with."""
    from nichekd import pp

    log.info("no %s features yet", kind)
    store = None if folder.path is None else folder.path / FEATURES / kind
    pp.histology_features(
        evaluation.data, encoder=encoder, key_added=key, store=store, device=evaluation.plan.device,
        table_key=evaluation.plan.table_key,
    )  # fmt: skip


def _kept_encoder(folder: EvaluationFolder) -> Path | None:
    """Where an earlier call put the gene-aware encoder, if one did."""
    kept = None if folder.path is None else folder.path / ENCODER
    return kept if kept is not None and kept.is_dir() else None


def _gene_aware_encoder(evaluation: Evaluation, folder: EvaluationFolder) -> Encoder:
    from nichekd.models import Encoder
    from nichekd.models._encoder_registry import remember_encoder
    from nichekd.tl._gene_aware_encoder import gene_aware_encoder

    if (kept := _kept_encoder(folder)) is not None:
        encoder = Encoder.load(kept)
        remember_encoder(encoder, overwrite=True)
        return encoder
    plan = evaluation.plan
    encoder = gene_aware_encoder(
        evaluation.data, encoder=plan.gene_aware, weights=plan.gene_aware_weights, lora=plan.gene_aware_lora,
        split_key=plan.split_key, seed=plan.seeds[0], fit=plan.gene_aware_fit, device=plan.device,
        table_key=plan.table_key,
    )  # fmt: skip
    if folder.path is not None:
        with written(folder.path / ENCODER) as new:
            encoder.save(new)
    return encoder

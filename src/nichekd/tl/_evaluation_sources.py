"""Which features the methods of an evaluation read, and which of them have yet to be made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anndata import AnnData

from nichekd._image import get_image
from nichekd._keys import Keys
from nichekd._record import notes
from nichekd._settings import settings
from nichekd.pp._counts import has_counts
from nichekd.tl._evaluation_methods import COLOR, EXPRESSION, FROZEN, GENE_AWARE, RANDOM, SHUFFLED
from nichekd.tl._inputs import image_rep
from nichekd.tl._recorded_features import ALIGNED

if TYPE_CHECKING:
    from nichekd.tl._evaluation_plan import Plan
    from nichekd.tl._evaluation_runs import Evaluation

TRAINED = (GENE_AWARE, ALIGNED)  # encoders that have seen genes: not the frozen one, though written last
FLOORS = (COLOR, RANDOM)


@dataclass
class Sources:
    """Features by kind.

    Attributes
    ----------
    reps
        ``obsm`` key of each kind.
    missing
        Kinds that are not there yet, and the name of the encoder of each.
    """

    reps: dict[str, str] = field(default_factory=lambda: {EXPRESSION: Keys.SCVI})
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def there(self) -> dict[str, str]:
        """``obsm`` key of each kind of image features that is there."""
        return {kind: key for kind, key in self.reps.items() if kind not in (*self.missing, EXPRESSION)}


def find_sources(evaluation: Evaluation) -> Sources:
    """What is there, and what has to be made; sees that it can be.

    Raises
    ------
    KeyError
        If features that were named are missing.
    TypeError
        If features are missing, and there is no image.
    ValueError
        If features that are there are of other weights than those named; if scVI has no counts to read; or if the image
        can't be used.
    """
    adata, wanted, found = evaluation.adata, {method.rep for method in evaluation.methods}, Sources()
    if wanted & {FROZEN, SHUFFLED}:
        found.reps[FROZEN], encoder = _frozen(evaluation)
        if encoder is not None:
            found.missing[FROZEN] = encoder
    for kind in (COLOR, RANDOM, GENE_AWARE):
        if kind in wanted:
            found.reps[kind] = Keys.features(kind)
            if found.reps[kind] not in adata.obsm:
                found.missing[kind] = kind
    if found.missing:
        _require_image(evaluation, found)
    if Keys.SCVI not in adata.obsm and not has_counts(adata):
        raise ValueError(
            f"obsm[{Keys.SCVI!r}] is missing, and X holds no raw counts to make it of (whole numbers, none negative). If "
            "a layer has them, run nk.pp.expression_features(data, layer=...) first; else put them in X."
        )
    return found


def check_gene_aware_start(plan: Plan) -> None:
    """Build the gene-aware encoder as it starts, and let it go: that fails now rather than after scVI.

    Raises
    ------
    ValueError
        If there is no such encoder, or none that a gene-aware one can be made of.
    FileNotFoundError
        If its weights are no file.
    """
    from nichekd.tl._gene_aware_start import start_encoder
    from nichekd.tl._loop import seeded

    with seeded(plan.seeds[0]):
        start_encoder(
            plan.gene_aware, weights=plan.gene_aware_weights, lora=plan.gene_aware_lora, n_targets=2, n_clusters=2,
            n_niches=0,
        )  # fmt: skip


def _frozen(evaluation: Evaluation) -> tuple[str, str | None]:
    """``obsm`` key of the frozen encoder's features, and the encoder's name where it has yet to make them."""
    adata, plan = evaluation.adata, evaluation.plan
    if plan.use_rep is not None:
        return image_rep(evaluation.data, plan.use_rep, device=plan.device, table_key=plan.table_key), None
    if plan.encoder is None and (there := _frozen_there(adata)) is not None:
        return there, None
    encoder = plan.encoder or settings.encoder
    key = Keys.features(encoder)
    if key not in adata.obsm:
        return key, encoder
    if plan.weights is not None:
        _require_weights(adata, key, encoder, plan.weights)
    return key, None


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


def _require_image(evaluation: Evaluation, found: Sources) -> None:
    """Refuse to begin where features are missing and there is no image that they could be made of."""
    if not isinstance(evaluation.data, AnnData):
        get_image(evaluation.data, evaluation.adata)
        return
    keys = [found.reps[kind] for kind in found.missing]
    raise TypeError(
        f"obsm lacks the image features {keys}, and data is an AnnData, which has no image to make them of; obsm has "
        f"{sorted(map(str, evaluation.adata.obsm))}. Make a SpatialData: nk.io.paired(adata, image); or name features "
        "that are there by use_rep=, and methods that read them by methods=."
    )

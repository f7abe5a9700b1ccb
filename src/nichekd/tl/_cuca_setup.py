"""From a table to what CUCA trains on, and the model it trains."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nichekd._abundance import abundance_of
from nichekd._keys import Split
from nichekd._resolve import split_of
from nichekd.models import AbundanceModel, CucaConfig, Whiten
from nichekd.models._abundance_model import AbundanceConfig, adapted_encoder
from nichekd.tl._cuca_fit import CucaData, FeatureRows
from nichekd.tl._cuca_images import CropRows, crop_reader
from nichekd.tl._cuca_inputs import log_normalized
from nichekd.tl._inputs import features_of
from nichekd.tl._recorded_features import record_of

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd._abundance import Abundance
    from nichekd.models import Encoder, LoraSettings
    from nichekd.tl._cuca_inputs import Genes
    from nichekd.tl._cuca_settings import CucaSettings

log = logging.getLogger(__name__)

MARGIN_UM = 50.0  # around squares that validate, where nobody noted how large the crops were
SCALE_CELLS = 20_000  # that means and variances of features are taken over
NEEDED = ("encoder", "fingerprint", "crop_px", "mpp")  # to make crops and features again


@dataclass(frozen=True)
class CucaInputs:
    """What the table has.

    Attributes
    ----------
    abundance, genes, features
        (n, K); (n, G), or none; (n, F), in memory or lazy.
    train
        Cells that train: those with both modalities.
    described
        The record of the features; empty for a user's own.
    """

    abundance: Abundance
    genes: Genes | None
    features: Any
    train: NDArray[np.intp]
    described: dict[str, Any]

    @property
    def margin(self) -> float:
        """µm at which two crops share nothing."""
        known = self.described.get("crop_px", 0) * float(self.described.get("mpp", 0))
        return float(known) or MARGIN_UM


def read_inputs(
    adata: AnnData, *, abundance_key: str, use_rep: str, layer: str | None, n_genes: int | None, split_key: str
) -> CucaInputs:
    """All of them, checked; no genes for ``n_genes=None``."""
    abundance = abundance_of(adata, abundance_key)
    is_train = split_of(adata, split_key) == Split.TRAIN
    run = "nk.pp.histology_features (or name other features by use_rep=)"
    features = features_of(adata, use_rep, run=run)
    genes = None if n_genes is None else log_normalized(adata, layer, is_train, n_genes)
    kept = is_train if genes is None else is_train & genes.measured
    if lost := int(is_train.sum() - kept.sum()):
        log.warning("%d of %d training cells have no counts and are left out", lost, is_train.sum())
    train = np.flatnonzero(kept)
    if len(train) < 2:
        raise ValueError(f"{len(train)} training cells or spots are not enough to learn from; it takes two at least.")
    if (np.ptp(abundance.values[train], axis=0) == 0).all():
        raise ValueError(
            f"All {len(abundance.types)} types are constant over the {len(train):,} training cells: there is nothing to "
            "learn. Choose another abundance_key= or split."
        )
    return CucaInputs(abundance, genes, features, train, record_of(adata, use_rep))


def build_model(
    inputs: CucaInputs,
    facts: dict[str, Any],
    *,
    fit: CucaSettings,
    lora: LoraSettings | None,
    encoder: Encoder | None,
) -> AbundanceModel:
    """The model before training; ``facts`` are noted in its card.

    Raises
    ------
    KeyError
        If ``lora`` is given and nobody noted what made the features.
    ValueError
        If ``lora`` meets features of another mode, another encoder or no ViT, or ``encoder`` comes without it.
    """
    n_features = inputs.features.shape[1]
    n_components = min(fit.n_components, n_features) if fit.scale and fit.n_components else None
    config = AbundanceConfig(
        network=CucaConfig(
            n_features, len(inputs.abundance.types), fit.width, fit.gene_width, fit.dropout, n_components
        ),
        types=inputs.abundance.types,
        genes=() if inputs.genes is None else inputs.genes.names,
        lora=lora,
        features=inputs.described,
        training=facts,
    )
    model = AbundanceModel(config, encoder=_trained_along(inputs.described, facts["use_rep"], lora, encoder))
    if fit.scale:
        train = inputs.train
        step = max(1, len(train) // SCALE_CELLS)
        model.network.scale_features(np.asarray(inputs.features[train[::step]], dtype=np.float32))
        model.network.scale_types(inputs.abundance.values[train].std(axis=0))
    return model


def _trained_along(
    described: dict[str, Any], use_rep: str, lora: LoraSettings | None, encoder: Encoder | None
) -> Encoder | None:
    if lora is None:
        if encoder is not None:
            raise ValueError("encoder= is looked at with lora= alone; the features of use_rep= are what is read.")
        return None
    if missing := [name for name in NEEDED if name not in described]:
        raise KeyError(
            f"lora= trains the encoder of obsm[{use_rep!r}] along, but its {missing} were not noted. Make the features "
            "by nk.pp.histology_features."
        )
    for name, plain_one in (("mode", "crop"), ("stain", None)):
        if described.get(name, plain_one) != plain_one:
            raise ValueError(
                f"lora= reads crops as they are, but obsm[{use_rep!r}] was made with {name}={described[name]!r}. Run "
                "nk.pp.histology_features without it, under another key."
            )
    return adapted_encoder(described, lora, encoder)


def feature_rows(features: Any, model: AbundanceModel) -> FeatureRows:
    """Features in memory; their components, where the model reads those, are made once."""
    scale = model.network.standardize
    if isinstance(scale, Whiten):
        return FeatureRows(scale.rows(features))
    # a copy, for the network's own may go to a GPU
    return FeatureRows(np.asarray(features), copy.deepcopy(scale))


def training_data(
    data: AnnData | SpatialData,
    inputs: CucaInputs,
    model: AbundanceModel,
    *,
    fit: CucaSettings,
    seed: int,
    table_key: str,
) -> CucaData:
    """Features, or crops for an encoder that trains along, with abundances and genes."""
    source: FeatureRows | CropRows
    if model.encoder is None:
        source = feature_rows(inputs.features, model)
    else:
        reader = crop_reader(data, inputs.described, table_key=table_key)
        source = CropRows(reader, model.encoder, fit.augmentation, torch.Generator().manual_seed(seed))
    genes = None if inputs.genes is None else inputs.genes.values
    return CucaData(source, inputs.abundance.values.astype(np.float32), genes)

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd._abundance import abundance_of
from nichekd._keys import Keys
from nichekd._record import record
from nichekd._resolve import get_table
from nichekd._seeds import check_seed
from nichekd.tl._cuca_inputs import validation_cells
from nichekd.tl._predict_abundance import write_abundance

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from nichekd.models import AbundanceModel, Encoder, LoraSettings
    from nichekd.models._cuca import Align
    from nichekd.tl._cuca_settings import CucaSettings


def cuca(
    data: AnnData | SpatialData,
    *,
    abundance_key: str,
    use_rep: str | None = None,
    layer: str | None = None,
    library_key: str | None = None,
    align: Align | None = "infonce",
    loss_weights: tuple[float, float, float] = (0.3, 0.6, 0.1),
    lora: LoraSettings | None = None,
    split_key: str = Keys.SPLIT,
    seed: int = 0,
    validation_key: str | None = None,
    n_genes: int = 250,
    encoder: Encoder | None = None,
    fit: CucaSettings | None = None,
    key_added: str = Keys.ABUNDANCE,
    device: str | None = None,
    table_key: str = "table",
) -> AbundanceModel:
    r"""Teach a model that sees H&E only how much there is of each cell type, with expression as a second modality.

    After CUCA :cite:`Yan2025`. Image features become an embedding z, and z abundances; in training, a gene branch
    makes an embedding g of the cell's or spot's expression and decodes it again, and z is drawn towards g:

    .. math:: L = \lambda_1 \, \mathrm{rmse}(\hat Y, Y) + \lambda_2 \, \mathrm{rmse}(\hat X, X) + \lambda_3 \,
              \mathrm{align}(z, g)

    Genes reach the image side by the last term only; what they are worth there is in the documentation, for
    ``align=None`` does without them. The epoch is chosen by the mean correlation over types on training cells that are
    held back, never on test cells.

    Parameters
    ----------
    data
        Cells or spots with abundances, counts and image features.
    abundance_key
        ``obsm`` key of the abundances, (n, K): of :func:`nichekd.pp.neighborhood_composition`, or a deconvolution's
        such as cell2location's.
    use_rep
        ``obsm`` key of the image features; default: those written last, or those of ``nk.settings.encoder``.
    layer
        Of the raw counts; ``X`` if left out. They are scaled to the median total of the training cells, log(1 + x).
    library_key
        Column of ``obs`` that tells sections (or patients) apart; with several of them in training, one validates.
    align
        ``"infonce"``: symmetric, contrastive; ``"rmse"``: as published; ``"cosine"``; ``None``: no gene branch.
    loss_weights
        :math:`\lambda_1, \lambda_2, \lambda_3`.
    lora
        Train low-rank adapters in the encoder of the features along, through peft; ``None`` leaves it frozen.
    split_key
        Column of ``obs`` with ``train`` cells; absent by its default name, all cells train.
    seed
        Same seed, same CPU, same model.
    validation_key
        Column of ``obs`` with True for the training cells to select by.
    n_genes
        Genes of the gene branch, those that training cells express most.
    encoder
        The encoder of the features for ``lora``, where no registry has it.
    fit
        Training settings; :meth:`nichekd.tl.CucaSettings.published` are the paper's.
    key_added
        ``obsm`` key of the predictions, see :func:`nichekd.tl.predict_abundance`.
    device
        Fabric's accelerator; default ``nk.settings.device``.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    The model, in evaluation mode. Writes for all cells ``obsm["abundance"]``, a float32 ``DataFrame`` (n, K), none
    negative; ``obsm["X_cuca"]``, float32 (n, 256); and ``uns["nichekd"]["cuca"]``: parameters and history.

    Raises
    ------
    KeyError
        If abundances, features, layer or a named column is missing.
    TypeError
        If abundances are not numbers, or ``lora`` is given and ``data`` has no image.
    ValueError
        If abundances are NaN, negative, of other rows, or of no or repeated types; if the counts are none, or names of
        genes repeat; if fewer than two training cells are left, or all types are constant in them; if a library is in
        training and validation, or fewer than three cells validate; if ``key_added`` is what is read; if ``align`` or
        ``loss_weights`` are none; if ``lora`` meets no ViT.
    ImportError
        If ``lora`` is given and peft is not installed.

    Examples
    --------
    >>> import nichekd as nk
    >>> sdata = nk.datasets.pancreas()
    >>> nk.pp.split(sdata)
    >>> nk.pp.histology_features(sdata, encoder="color")
    >>> nk.pp.neighborhood_composition(sdata, cell_type_key="cell_type", radius=27.5)
    >>> model = nk.tl.cuca(sdata, abundance_key="cell_abundance")  # doctest: +SKIP
    """
    from nichekd.models._cuca import CucaObjective
    from nichekd.tl._cuca_fit import fit_cuca
    from nichekd.tl._cuca_images import CropRows, encode_crops
    from nichekd.tl._cuca_settings import CucaSettings
    from nichekd.tl._cuca_setup import build_model, read_inputs, training_data
    from nichekd.tl._inputs import image_rep
    from nichekd.tl._loop import make_fabric, seeded

    check_seed(seed)
    started = time.perf_counter()
    fit = fit or CucaSettings()
    weights = _check_options(align, loss_weights)
    adata = get_table(data, table_key)
    Keys.check_added(key_added, abundance_key, *filter(None, [use_rep]))
    abundance_of(adata, abundance_key)  # before crops are encoded
    use_rep = image_rep(data, use_rep, device=device, table_key=table_key)
    Keys.check_added(key_added, use_rep)
    inputs = read_inputs(
        adata, abundance_key=abundance_key, use_rep=use_rep, layer=layer, split_key=split_key,
        n_genes=None if align is None else n_genes,
    )  # fmt: skip
    fitted, held_back = validation_cells(
        adata, inputs.train, library_key=library_key, validation_key=validation_key, share=fit.validation,
        margin=inputs.margin, rng=np.random.default_rng(seed),
    )  # fmt: skip
    facts = {"n_cells": len(inputs.train), "align": str(align), "seed": seed, "use_rep": use_rep}
    with seeded(seed):
        model = build_model(inputs, facts, fit=fit, lora=lora, encoder=encoder)
        n_genes = len(model.config.genes)
        objective = CucaObjective(
            model.config.network, n_genes, align=align, weights=weights, temperature=fit.temperature
        )
        fabric = make_fabric(device)
        learnt = training_data(data, inputs, model, fit=fit, seed=seed, table_key=table_key)
        history = fit_cuca(
            model, objective, learnt, fitted, held_back, all_train=inputs.train, fit=fit, seed=seed, fabric=fabric
        )
    model.history = history.columns
    features = inputs.features
    if isinstance(learnt.images, CropRows):  # those of the encoder as it was
        features = encode_crops(learnt.images.reader, learnt.images.encoder.to(fabric.device))
    write_abundance(adata, model.eval(), features, device=device, key_added=key_added)
    record(
        adata, "cuca" if key_added == Keys.ABUNDANCE else f"cuca_{key_added}", seconds=time.perf_counter() - started,
        abundance_key=abundance_key, use_rep=use_rep, align=str(align), loss_weights=list(weights), seed=seed,
        n_train=len(inputs.train), n_validation=len(held_back), n_genes=n_genes,
        lora=None if lora is None else vars(lora), history=history.arrays(),
    )  # fmt: skip
    return model


def _check_options(align: Any, loss_weights: Any) -> tuple[float, float, float]:
    from nichekd.models._cuca import ALIGNMENTS

    if align is not None and align not in ALIGNMENTS:
        raise ValueError(f"align={align!r}; there are {list(ALIGNMENTS)}, and None for no gene branch.")
    weights = tuple(float(value) for value in loss_weights)
    if len(weights) != 3 or not all(0 <= value < float("inf") for value in weights) or weights[0] == 0:
        raise ValueError(
            f"loss_weights={loss_weights}; it takes three numbers that are not negative, of abundances (above 0), genes "
            "and alignment."
        )
    return weights  # type: ignore[return-value]  # three, as was just seen

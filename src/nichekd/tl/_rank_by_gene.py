from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from nichekd._keys import Keys, Split
from nichekd._record import plain, record
from nichekd._resolve import get_table, split_of
from nichekd._seeds import check_seed
from nichekd.tl._rank_by_gene_data import SCALES, Losses, RankByGeneSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData
    from torch import nn

    from nichekd.models import AlignedEncoder, Encoder
    from nichekd.models._rank_losses import RankLoss

log = logging.getLogger(__name__)


def rank_by_gene(
    data: AnnData | SpatialData,
    *,
    use_rep: str | None = None,
    encoder: str | nn.Module | Encoder | None = None,
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    rank_loss: RankLoss = "hinge",
    rank_weight: float = 5.0,
    distill_weight: float = 1.0,
    temperature: float = 0.1,
    momentum: float = 0.996,
    scales: Sequence[str] = ("slide", "across"),
    library_key: str | None = None,
    split_key: str = Keys.SPLIT,
    seed: int = 0,
    crop_px: int = 224,
    image_key: str | None = None,
    fit: RankByGeneSettings | None = None,
    device: str | None = None,
    table_key: str = "table",
) -> AlignedEncoder:
    r"""Train image features whose order of similarity follows that of gene expression.

    Seen from a cell, the cells that express alike should look alike, in the same order. A projection of the image
    features is trained by

    .. math:: \mathcal L = \mathrm{NCE}(s, g) + \alpha L_{rank} + \beta \, \mathrm{NCE}(s, t)

    :cite:`Huang2024`: s is the student's projection of strongly changed features, t that of its moving average, the
    teacher, of the features as they are, and g one of the expression. With ``rank_loss="hinge"``,

    .. math:: L_{rank} = \mathrm{mean} \, \max(0, -\mathrm{sign}(\Delta G) \, \Delta I + |\Delta G|)

    over pairs of cells drawn for each anchor, :math:`\Delta` the difference of the anchor's two cosine similarities,
    I of the student's projections and G of the expression (less its mean over the training cells), into which no
    gradient goes. What is kept is the teacher.

    Parameters
    ----------
    data
        Cells, or spots, with image features and expression.
    use_rep
        ``obsm`` key of the image features; default: those written last, or those of ``nk.settings.encoder``.
    encoder
        Train this image encoder itself, on crops, rather than a projection of frozen features: a name, a module or an
        :class:`nichekd.models.Encoder`; ``data`` then is a ``SpatialData`` with the image.
    layer
        Layer with the expression; default ``layers["smoothed"]``, see :func:`nichekd.pp.smooth_expression`, or else
        ``X``. Counts are normalised.
    genes
        Panel; default the ``fit.n_genes`` most variable ones.
    rank_loss
        ``"hinge"``; ``"soft_rank"``, 1 − Spearman's correlation with differentiable ranks; ``"published"``, what the
        public code does, which does not see whether an order is reversed.
    rank_weight, distill_weight
        :math:`\alpha` and :math:`\beta`; 0 leaves a term out.
    temperature
        :math:`\tau` of the contrastive terms.
    momentum
        Share of itself the teacher keeps at a step.
    scales
        Among which cells an anchor's order is compared: of its ``"neighborhood"``, its ``"slide"``, or ``"across"``
        slides. The published loss knows one, the batch.
    library_key
        Column of ``obs`` that tells slides apart.
    split_key
        Column of ``obs`` with ``train`` cells; absent by its default name, all cells train.
    seed
        Same seed, same CPU, same model.
    crop_px, image_key
        Side of the crops in pixels, and the image, for ``encoder``.
    fit
        Training settings.
    device
        Fabric's accelerator; default ``nk.settings.device``.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    The model, for :func:`nichekd.tl.embed_histology`. Writes ``uns["nichekd"]["rank_by_gene"]``: parameters, history.

    Raises
    ------
    KeyError
        If the features, the layer, genes of the panel, or a named column is missing.
    TypeError
        If ``encoder`` is given, and ``data`` has no image.
    ValueError
        If a parameter is out of its range, a slide has fewer than 4 training cells, image features are NaN or all
        0 for a cell, or both ``use_rep`` and ``encoder`` are given.

    Warns
    -----
    UserWarning
        If the held-back cells of a slide all express the same, which leaves nothing to judge by there; for
        ``encoder``, if the split leaves less room between training and test cells than their crops take.

    Examples
    --------
    >>> import nichekd as nk
    >>> sdata = nk.datasets.pancreas()
    >>> nk.pp.split(sdata)
    >>> nk.pp.histology_features(sdata, encoder="color")
    >>> nk.pp.neighborhoods(sdata)
    >>> nk.pp.smooth_expression(sdata)
    >>> model = nk.tl.rank_by_gene(sdata)  # doctest: +SKIP
    >>> nk.tl.embed_histology(sdata, model)  # doctest: +SKIP
    """
    from nichekd.tl._loop import seeded
    from nichekd.tl._rank_by_gene_fit import fit_rank_by_gene
    from nichekd.tl._rank_by_gene_task import expression_task, frozen_task, slide_codes

    check_seed(seed)
    started = time.perf_counter()
    fit = fit or RankByGeneSettings()
    losses = _losses(rank_loss, rank_weight, distill_weight, temperature, scales)
    _check(momentum, fit, use_rep, encoder)
    adata = get_table(data, table_key)
    in_training = split_of(adata, split_key) == Split.TRAIN
    genes_read = expression_task(adata, layer, genes, in_training, n_genes=fit.n_genes)
    library = slide_codes(adata, library_key, genes_read.cells)
    losses = _possible(losses, library)
    parameters = {
        "rank_loss": rank_loss, "rank_weight": rank_weight, "distill_weight": distill_weight, "scales": losses.scales,
        "temperature": temperature, "momentum": momentum, "seed": seed, "n_train": len(genes_read.cells),
    }  # fmt: skip
    with seeded(seed):
        if encoder is None:
            made = frozen_task(
                data, use_rep, genes_read, library, fit, momentum, device=device, seed=seed, table_key=table_key
            )
        else:
            from nichekd.tl._rank_by_gene_crops import crop_task

            made = crop_task(
                data, encoder, genes_read, library, fit, momentum,
                crop_px=crop_px, image_key=image_key, device=device, seed=seed, table_key=table_key,
            )  # fmt: skip
        slides = None if library_key is None else _names(adata.obs[library_key].iloc[genes_read.cells], library)
        history = fit_rank_by_gene(made.network, made.task, losses, fit=fit, seed=seed, device=device, slides=slides)
        model = _model(made, genes_read.names, parameters)
    model.history = history.columns
    record(
        adata, "rank_by_gene", seconds=time.perf_counter() - started, use_rep=made.use_rep, layer=genes_read.layer,
        n_genes=len(genes_read.names), history=history.arrays(), **parameters,
    )  # fmt: skip
    return model


def _losses(
    kind: RankLoss, rank_weight: float, distill_weight: float, temperature: float, scales: Sequence[str]
) -> Losses:
    from nichekd.models._rank_losses import RankLoss as kinds

    if kind not in get_args(kinds):
        raise ValueError(f"rank_loss={kind!r}; choose one of {list(get_args(kinds))}.")
    scales = (scales,) if isinstance(scales, str) else tuple(scales)
    if not scales or set(scales) - set(SCALES):
        raise ValueError(f"scales={scales}; name one or more of {list(SCALES)}.")
    for name, weight in (("rank_weight", rank_weight), ("distill_weight", distill_weight)):
        if not np.isfinite(weight) or weight < 0:
            raise ValueError(f"{name}={weight}; it has to be 0 or more.")
    if not np.isfinite(temperature) or temperature <= 0:
        raise ValueError(f"temperature={temperature}; it has to be above 0. The published one is 0.1.")
    return Losses(kind, float(rank_weight), float(distill_weight), float(temperature), scales)


def _check(momentum: float, fit: RankByGeneSettings, use_rep: str | None, encoder: Any) -> None:
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum}; it has to be in [0, 1): at 1 the teacher would never learn.")
    if fit.batch_size < 4 or fit.accumulate < 1 or not 0 <= fit.feature_dropout < 1:
        raise ValueError(
            f"batch_size={fit.batch_size}, accumulate={fit.accumulate}, feature_dropout={fit.feature_dropout}: a batch "
            "has 4 cells or more, accumulate is 1 or more, and feature_dropout in [0, 1)."
        )
    if encoder is not None and use_rep is not None:
        raise ValueError(
            f"encoder= is trained on crops, use_rep={use_rep!r} are features that are there. Give one of them."
        )


def _possible(losses: Losses, library: NDArray[np.int64]) -> Losses:
    """Without what one slide has no use for: across slides is then within the slide."""
    if library.max() > 0 or losses.scales == ("across",):
        return losses
    scales = tuple(scale for scale in losses.scales if scale != "across")
    return Losses(losses.kind, losses.rank_weight, losses.distill_weight, losses.temperature, scales)


def _names(column: pd.Series, library: NDArray[np.int64]) -> list[str]:
    """Of the slides, by their number."""
    return [str(column.iloc[i]) for i in np.unique(library, return_index=True)[1]]


def _model(made: Any, genes: tuple[str, ...], parameters: dict[str, Any]) -> AlignedEncoder:
    from nichekd.models import AlignedEncoder
    from nichekd.models._aligned_encoder import AlignedConfig

    config = AlignedConfig(
        n_features=made.network.teacher.standardize.mean.shape[0],
        n_out=made.network.teacher.head.norm.normalized_shape[0],
        features=plain(made.features),
        genes=genes,
        training=plain(
            {name: list(value) if isinstance(value, tuple) else value for name, value in parameters.items()}
        ),
    )
    encoder = None if made.tuned is None else made.tuned(made.network.teacher.backbone)
    if encoder is not None:
        config.features.update(fingerprint=encoder.fingerprint)
    model = AlignedEncoder(config, encoder=encoder)
    state = made.network.teacher.state_dict()
    model.branch.load_state_dict({name: value for name, value in state.items() if not name.startswith("backbone.")})
    return model.eval()

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import numpy as np

from nichekd._keys import Keys, Split
from nichekd._record import record
from nichekd._resolve import centres_um, get_table, split_of
from nichekd._seeds import check_seed
from nichekd.tl._expression import express
from nichekd.tl._gene_aware_start import check_start, start_encoder
from nichekd.tl._inputs import features_of, neighborhood_index
from nichekd.tl._teacher import resolve_teacher

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd.models import Encoder, LoraSettings
    from nichekd.pp._stain import Stain
    from nichekd.tl._gene_aware_fit import GeneAwareSettings

log = logging.getLogger(__name__)

KMEANS_CELLS = 50_000


def gene_aware_encoder(
    sdata: SpatialData,
    *,
    encoder: str = "small_cnn",
    weights: str | Path | None = None,
    lora: LoraSettings | None = None,
    target: str = Keys.SCVI,
    teacher: str | None = None,
    split_key: str = Keys.SPLIT,
    seed: int = 0,
    n_clusters: int = 16,
    crop_px: int = 224,
    mpp: float | None = None,
    stain: Stain | None = None,
    image_key: str | None = None,
    fit: GeneAwareSettings | None = None,
    device: str | None = None,
    table_key: str = "table",
) -> Encoder:
    """Train an image encoder to predict what cells express: image features that have seen genes.

    A frozen encoder of photographs or of histology knows nothing of what tells niches apart in expression. This one is
    trained on crops of the training cells to predict, of every training cell it shows, the expression latent, the mean
    latent of its neighborhood, and its expression cluster; with turns, mirroring and stain as augmentation. Where
    there are 10,000 training cells, some squares of tissue are held back to stop by. A crop's feature is the
    embedding of its centre, from which these are predicted.

    Of a convolutional network it reads feature maps at strides 8, 16 and 32, of a vision transformer the last block's
    patch tokens, each beside the CLS token. The encoder is as free as what it started from: it keeps that one's
    ``license``. UNI2-h's, CC-BY-NC-ND-4.0, lets nobody share what was made of it by training, and the encoder's folder,
    as a student's that it travels in, holds all of its weights.

    Parameters
    ----------
    sdata
        Cells with an H&E image and with ``obsm[target]``; :func:`nichekd.pp.expression_features` and
        :func:`nichekd.pp.neighborhoods` run where their results are missing.
    encoder
        Where it starts: ``"small_cnn"`` from nothing, which takes no weights, but far more training than one section
        gives to tell as much as a pretrained start; ``"efficientnet_lite0"`` from its ImageNet weights, ``"uni2"``, a registered encoder or a model of the hub, ``"hf-hub:..."``, from theirs; a convolutional model or a ViT of
        timm from ``weights``, or from nothing. Crops for a ViT are multiples of its patch.
    weights
        Weights file of the encoder, see :func:`nichekd.models.get_encoder`.
    lora
        Train low-rank adapters in the last blocks of a ViT, through peft, and the heads; all else stays bit for bit.
        The adapters are added to the layers in the end, so that the encoder is an ordinary one and needs no peft.
        ``None`` trains the whole network.
    target
        ``obsm`` key of the expression latent, (n, d).
    teacher
        ``obsm`` key of a teacher's logits or probabilities, or ``obs`` key of labels, as in :func:`nichekd.tl.distill`:
        the encoder learns to tell its softened niches too, which distils them into the encoder itself, beside the
        expression. Features made so are for this teacher alone; default none.
    split_key
        Column of ``obs`` with ``train`` cells; absent by its default name, all cells train.
    seed
        Same seed, same CPU, same encoder.
    n_clusters
        Expression clusters, k-means on the latent.
    crop_px, mpp, stain
        Side of a crop, pixels; µm per pixel of the crops, default the image's; normalisation of their colours, default
        none: as :func:`nichekd.pp.histology_features` takes them, and has to be given the same afterwards.
    image_key
        Image; default the only one.
    fit
        Training settings.
    device
        Fabric's accelerator; default ``nk.settings.device``.
    table_key
        Table of the ``SpatialData``.

    Returns
    -------
    A frozen encoder named ``"gene_aware"``, to hand to :func:`nichekd.pp.histology_features`; it is known by its name
    for the rest of the session, and travels in the folder of a student that was trained on its features. Writes
    ``uns["nichekd"]["gene_aware_encoder"]`` with the history.

    Raises
    ------
    KeyError
        If ``target``, ``teacher``, the image or a named split is missing.
    ValueError
        If there is no such encoder, it shows no maps at strides 8, 16 and 32 and is no ViT, or takes no crops of
        ``crop_px``; if ``mpp`` is no resolution or ``stain`` no normalisation; if ``lora`` meets no ViT, too few
        blocks, or no weights; if the targets are NaN.
    TypeError
        If ``sdata`` is no ``SpatialData``, ``encoder`` no name, or ``lora`` no settings.
    FileNotFoundError
        If ``weights`` is no file.
    ImportError
        If ``lora`` is given and peft is not installed.
    EncoderAccessError
        If the hub that has the weights refuses or can't be reached.

    Examples
    --------
    >>> import nichekd as nk
    >>> sdata = nk.datasets.pancreas()
    >>> nk.pp.split(sdata)
    >>> encoder = nk.tl.gene_aware_encoder(sdata, encoder="efficientnet_lite0")  # doctest: +SKIP
    >>> nk.pp.histology_features(sdata, encoder=encoder)  # doctest: +SKIP
    """
    from nichekd._image import get_image
    from nichekd.models._encoder_registry import remember_encoder
    from nichekd.pp._overlap import warn_if_crops_overlap
    from nichekd.pp._plan import make_reader
    from nichekd.tl._gene_aware_crops import CropTask
    from nichekd.tl._gene_aware_fit import GeneAwareSettings, fit_gene_aware
    from nichekd.tl._loop import seeded
    from nichekd.tl._neighborhood_means import neighborhood_means

    check_seed(seed)
    started = time.perf_counter()
    check_start(encoder, weights, lora)
    adata = get_table(sdata, table_key)
    image = get_image(sdata, adata, image_key=image_key)
    is_train = split_of(adata, split_key) == Split.TRAIN
    train = np.flatnonzero(is_train & _are_counted(adata))
    if target == Keys.SCVI and target not in adata.obsm:
        express(sdata, split_key=split_key, seed=seed, device=device, table_key=table_key)
    latent = np.asarray(features_of(adata, target, run="nk.pp.expression_features"), dtype=np.float32)
    index = neighborhood_index(sdata, split_key=split_key, table_key=table_key)
    around = neighborhood_means(index, latent)
    clusters, n_clusters = _clusters(latent, train, n_clusters, seed)
    niches = None if teacher is None else _niche_probabilities(adata, teacher, train)
    reader = make_reader(image, crop_px, mpp, stain)
    warn_if_crops_overlap(adata, image, side_px=reader.crop_px, mpp=reader.mpp)
    targets = np.concatenate([_unit(latent, train), _unit(around, train)], axis=1)
    with seeded(seed):
        ready = start_encoder(
            encoder, weights=weights, lora=lora, n_targets=targets.shape[1], n_clusters=n_clusters,
            n_niches=0 if niches is None else niches.shape[1],
        )  # fmt: skip
        ready.check(reader.crop_px)
        history = fit_gene_aware(
            ready,
            CropTask(reader, image.xy_px * (image.mpp / reader.mpp), targets, clusters, niches),
            centres_um(adata),
            train,
            all_train=np.flatnonzero(is_train),
            margin=crop_px / 2 * reader.mpp,
            fit=fit or GeneAwareSettings(),
            seed=seed,
            device=device,
            lora=lora,
        )
    remember_encoder(ready, overwrite=True)
    record(
        adata, "gene_aware_encoder", seconds=time.perf_counter() - started, encoder=encoder, target=target, seed=seed,
        n_clusters=n_clusters, crop_px=reader.crop_px, mpp=reader.mpp, stain=stain, teacher=teacher,
        weights=None if weights is None else str(weights),
        lora=None if lora is None else vars(lora), fingerprint=ready.fingerprint, history=history.arrays(),
    )  # fmt: skip
    return ready


def _are_counted(adata: AnnData) -> NDArray[np.bool_]:
    """Cells with a transcript at all, (n,): of the others the latent says nothing. All, where there is no expression."""
    from nichekd.pp._counts import _in_memory

    if adata.X is None or adata.n_vars == 0:
        return np.ones(adata.n_obs, dtype=bool)
    x = _in_memory(adata.X) if adata.isbacked else adata.X
    found = np.asarray((x != 0).sum(axis=1)).ravel() > 0
    if not found.any():
        return np.ones(adata.n_obs, dtype=bool)
    if not found.all():
        log.info("%d of %d cells have no transcript and teach nothing", (~found).sum(), len(found))
    return found


def _unit(values: NDArray[np.float32], train: NDArray[np.integer]) -> NDArray[np.float32]:
    """Columns of mean 0 and standard deviation 1 on the training cells."""
    here = values[train]
    return ((values - here.mean(0)) / np.maximum(here.std(0), 1e-6)).astype(np.float32)


def _niche_probabilities(adata: AnnData, teacher: str, train: NDArray[np.integer]) -> NDArray[np.float32]:
    """The teacher's niches as the student is taught them, (n, K); 0 where it doesn't teach."""
    import torch

    from nichekd.models._distillation import matched_temperature

    target = resolve_teacher(adata, teacher)
    teaching = train[target.teaches[train]]
    if not len(teaching):
        raise ValueError(f"The teacher {teacher!r} has a target for none of the {len(train):,} training cells.")
    tau = target.temperature or matched_temperature(torch.from_numpy(target.logits[teaching]))
    return np.nan_to_num(torch.softmax(torch.from_numpy(target.logits / tau), dim=1).numpy())


def _clusters(
    latent: NDArray[np.float32], train: NDArray[np.integer], n_clusters: int, seed: int
) -> tuple[NDArray[np.int64], int]:
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(seed)
    sample = train if len(train) <= KMEANS_CELLS else rng.choice(train, KMEANS_CELLS, replace=False)
    n_clusters = min(n_clusters, len(sample))
    fitted = KMeans(n_clusters, n_init=5, random_state=seed).fit(latent[sample])
    return fitted.predict(latent).astype(np.int64), n_clusters

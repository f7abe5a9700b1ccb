from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from anndata import AnnData

from nichekd._image import get_image
from nichekd._keys import Keys
from nichekd._record import notes, record
from nichekd._resolve import get_table, working_copy
from nichekd._settings import settings
from nichekd.pp._cluster import Cluster, require_client
from nichekd.pp._crops import SEGMENT
from nichekd.pp._dense import DensePlan
from nichekd.pp._encode import ready_encoder, with_progress
from nichekd.pp._feature_store import FeatureStore
from nichekd.pp._overlap import warn_if_crops_overlap
from nichekd.pp._plan import describe, make_plan, make_reader

if TYPE_CHECKING:
    from pathlib import Path

    import dask.array as da
    import torch
    from distributed import Client
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd.models import Encoder
    from nichekd.models._precision import Precision
    from nichekd.pp._encode import Plan
    from nichekd.pp._stain import Stain


log = logging.getLogger(__name__)

# what tells the features of one store from those of another; besides, the precision
MADE_OF = ("image_fingerprint", "cells", "fingerprint", "crop_px", "mpp", "mode", "stride_px", "stain")
ABOUT = ("encoder", "weights", "license", "image")  # what the store notes besides


def histology_features(
    sdata: SpatialData,
    *,
    encoder: str | torch.nn.Module | Encoder | None = "uni2",
    weights: str | Path | None = None,
    image_key: str | None = None,
    crop_px: int = 224,
    mpp: float | None = None,
    store: str | Path | None = None,
    key_added: str | None = None,
    device: str | None = None,
    mode: Literal["crop", "dense"] = "crop",
    stride_px: int | None = None,
    stain: Stain | None = None,
    precision: Precision = "auto",
    batch_size: int = 64,
    num_workers: int = 2,
    client: Client | None = None,
    table_key: str = "table",
    copy: bool = False,
) -> SpatialData | None:
    """Describe each cell by a frozen encoder's features of the H&E crop around it.

    The crop has the rows and columns [c − ``crop_px`` // 2, c + ``crop_px`` // 2) around the pixel c in which the
    cell's centre lies, found through SpatialData's transformations, and is white beyond the image. Crops are read tile
    by tile along a space-filling curve, ahead of the encoder, and normalised on its device.

    Parameters
    ----------
    sdata
        Cells and their image.
    encoder
        ``"uni2"`` (the paper's; gated), ``"efficientnet_lite0"``, ``"color"``, ``"random"``, a model of timm, a
        ``torch.nn.Module`` from normalised crops (b, 3, h, w) to features (b, F), or an
        :class:`nichekd.models.Encoder`. ``None`` is ``nk.settings.encoder``.
    weights
        Weights file of a named encoder.
    image_key
        Image of the ``SpatialData``; may be left out where there is one.
    crop_px
        Side of a crop.
    mpp
        µm per pixel of the crops. If it differs from the image's by more than 2 %, they are cut out of the image
        resampled, by area, to this resolution; otherwise the image's own pixels are taken.
    store
        Folder that the features are streamed to, committed every 1,024 crops. ``obsm`` then holds a lazy array over
        it, and memory does not grow with the number of cells. The same call after an interruption goes on where the
        first stopped, and ends with the same bits; a store that is complete is taken as it is.
    key_added
        Key of the features; ``"X_<encoder>"`` if left out, ``"X_histology"`` for a module; with ``"_dense"`` at its
        end for ``mode="dense"``.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; ``nk.settings.device`` if left out.
    mode
        ``"crop"``: a crop a cell, its features those of the crop. ``"dense"``: tiles of ``crop_px`` on a grid are
        encoded once, and a cell gets the mean of the patch tokens (or feature map) within an eighth of a tile around
        it, followed by its tile's features: twice as many numbers, at a fraction of the time, for models of timm; of a
        gene-aware encoder, what it reads off its map at the cell.
    stride_px
        Distance of the tiles of ``mode="dense"``; five sevenths of ``crop_px`` if left out, 160 of 224.
    stain
        Bring the slide's colours to those of a fixed reference first: ``"macenko"`` :cite:`Macenko2009` by its two
        stains, ``"reinhard"`` :cite:`Reinhard2001` by mean and spread, both as found around 64 of the cells. ``None``
        leaves them. A student repeats it on new slides.
    precision
        ``"auto"`` is bf16 for encoders known to bear it where the hardware has it, else float32; with a ``store``
        that exists, what it was made with.
    batch_size
        Most crops that are encoded at once, up to 1,024.
    num_workers
        Threads that read crops; 0 reads and encodes in turn. Doesn't change the features.
    client
        Of a dask cluster whose workers encode blocks of cells and write them to ``store``, a folder that all of them
        see; ``device`` is theirs. Blocks of a worker that is lost are done again by another. On equal hardware the
        bits are those that one process writes. Workers open the image by the path that it was opened by here; one that
        lies in memory is sent to them whole. The encoder is sent to them, too.
    table_key
        Table of the ``SpatialData``.
    copy
        Return a new object instead of writing in place.

    Returns
    -------
    Nothing, or the copy. Writes ``obsm["X_<encoder>"]``, float16 (n, F); ``uns["nichekd"]["features"]`` under that
    key: encoder, fingerprint, weights, licence, mode, crop, mpp, precision, image; and ``uns["nichekd"]["use_rep"]``,
    the key, which ``nk.tl`` takes for ``use_rep=None``. An :class:`nichekd.models.Encoder` that is handed in is known
    by its name for the rest of the session.

    Warns
    -----
    UserWarning
        If crops, or tiles, of training and test cells share pixels, because :func:`nichekd.pp.split` was told of
        smaller ones.

    Raises
    ------
    TypeError
        If ``sdata`` is an ``AnnData``, which has no image, ``encoder`` is nothing of the above, or ``client`` no
        ``dask.distributed.Client``.
    KeyError
        If the table or image is missing.
    FileNotFoundError
        If ``weights`` is no file, or a worker of ``client`` does not see the image or the ``store``.
    ValueError
        If the image can't be used or cells lie outside it; if the encoder is unknown, its weights don't fit, it does
        not take such crops, shows no feature map for ``mode="dense"``, or returns features that are NaN, infinite or
        beyond float16; if the ``store`` belongs to another image, encoder, cell set, crop, mode or precision, or
        ``client`` comes without one.
    EncoderAccessError
        If a hub refuses the encoder's weights or can't be reached.
    RuntimeError
        If another process is writing to the ``store``; if workers of ``client`` have another version of nichekd, or
        all of them are lost time and again.

    Examples
    --------
    >>> import nichekd as nk
    >>> sdata = nk.datasets.pancreas()
    >>> nk.pp.histology_features(sdata, encoder="color")
    >>> sdata["table"].obsm["X_color"].shape
    (5797, 42)
    """
    start = time.perf_counter()
    if isinstance(sdata, AnnData):
        raise TypeError("sdata is an AnnData, which has no image. Make a SpatialData: nk.io.paired(adata, image).")
    if not 1 <= batch_size <= SEGMENT or num_workers < 0:
        raise ValueError(
            f"batch_size={batch_size}, num_workers={num_workers}; a batch has 1 to {SEGMENT:,} crops, and num_workers "
            "is 0 or more."
        )
    if key_added == Keys.SPATIAL:
        raise ValueError(
            f"key_added={key_added!r} holds the cells' centres, which features would replace. Name another."
        )
    device = device or settings.device
    cluster = None if client is None else Cluster(require_client(client, store), device)
    sdata = working_copy(sdata, copy)
    adata = get_table(sdata, table_key)
    if adata.n_obs == 0:
        raise ValueError(f"Table {table_key!r} has no cells. For a slide without any, run nk.pp.segment_nuclei first.")
    image = get_image(sdata, adata, image_key=image_key)
    reader = make_reader(image, crop_px, mpp, stain)
    network = ready_encoder(
        settings.encoder if encoder is None else encoder,
        weights=weights,
        device=device if cluster is None else "cpu",  # from where it is sent
        crop_px=reader.crop_px,
    )
    plan = make_plan(reader, network, mode, stride_px, batch_size, num_workers)
    side_px = reader.crop_px + (plan.stride_px if isinstance(plan, DensePlan) else 0)
    warn_if_crops_overlap(adata, image, side_px=side_px, mpp=reader.mpp)
    about = describe(image, reader, plan, stain)
    features: NDArray[np.float16] | da.Array
    used: Precision
    if store is None:
        used = network.precision(precision)
        features = _in_memory(plan, used)
    else:
        kept = FeatureStore(store)
        known = kept.precision if precision == "auto" else None
        used = known or (network.precision(precision) if cluster is None else cluster.precision(network, precision))
        features = _in_store(plan, kept, about, used, cluster)
        about["store"] = str(kept.path)
    key = key_added or Keys.features(network.name if mode == "crop" else f"{network.name}_dense")
    adata.obsm[key] = features
    notes(adata).setdefault(Keys.FEATURES, {})[key] = about | {"precision": used}
    notes(adata)[Keys.LAST_REP] = key
    seconds = time.perf_counter() - start
    where = str(network.device) if cluster is None else device
    parameters = {"key_added": key, "batch_size": batch_size, "num_workers": num_workers, "device": where}
    record(adata, "histology_features", seconds=seconds, **parameters)
    log.info("%d crops → obsm[%r], %d features, %.1f s on %s", len(features), key, features.shape[1], seconds, where)
    return sdata if copy else None


def _in_memory(plan: Plan, precision: Precision) -> NDArray[np.float16]:
    order = plan.order()
    features = np.empty((len(order), plan.n_features), dtype=np.float16)
    for cells, batch in with_progress(plan.encoded(order, precision=precision), len(order)):
        features[cells] = batch
    return features


def _in_store(
    plan: Plan, store: FeatureStore, about: dict[str, Any], precision: Precision, cluster: Cluster | None
) -> da.Array:
    made_of = {name: about[name] for name in MADE_OF if name in about} | {"precision": precision}
    store.check(made_of)
    if store.is_complete:
        log.info("all %d cells are in %s", store.n_done, store.path)
        return store.array()
    shown: dict[str, Any] = {name: about[name] for name in ABOUT if name in about}
    with store.writing(made_of, order=plan.order(), n_features=plan.n_features, about=shown):
        n_done = store.n_done
        if n_done:
            log.info("%d cells are in %s; going on from there", n_done, store.path)
        if cluster is not None:
            cluster.fill(plan, store, made_of, precision)
            return store.array()
        batches = plan.encoded(store.order, precision=precision, n_done=n_done)
        for _, features in with_progress(batches, len(store.order), n_done):
            store.append(features)
    return store.array()

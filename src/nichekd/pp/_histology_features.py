from __future__ import annotations

import logging
import re
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from anndata import AnnData

from nichekd._image import get_image, image_fingerprint
from nichekd._keys import Keys
from nichekd._record import notes, record
from nichekd._resolve import get_table, working_copy
from nichekd._settings import settings
from nichekd.pp._crops import SEGMENT, CropReader
from nichekd.pp._encode import encoded, ready_encoder
from nichekd.pp._feature_store import FeatureStore, cells_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import dask.array as da
    import torch
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from nichekd._image import CellImage
    from nichekd.models import Encoder

    Encode = Callable[..., Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]]

log = logging.getLogger(__name__)

# what tells the features of one store from those of another; besides, the precision
MADE_OF = ("image_fingerprint", "cells", "fingerprint", "crop_px", "mpp")


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
    precision: Literal["auto", "32", "bf16"] = "auto",
    batch_size: int = 64,
    num_workers: int = 2,
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
        Key of the features; ``"X_<encoder>"`` if left out, ``"X_histology"`` for a module.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; ``nk.settings.device`` if left out.
    precision
        ``"auto"`` is bf16 for encoders known to bear it where the hardware has it, else float32; with a ``store``
        that exists, what it was made with.
    batch_size
        Most crops that are encoded at once, up to 1,024.
    num_workers
        Threads that read crops; 0 reads and encodes in turn. Doesn't change the features.
    table_key
        Table of the ``SpatialData``.
    copy
        Return a new object instead of writing in place.

    Returns
    -------
    Nothing, or the copy. Writes ``obsm["X_<encoder>"]``, float16 (n, F); ``uns["nichekd"]["features"]`` under that
    key: encoder, fingerprint, weights, licence, crop, mpp, precision, image; and ``uns["nichekd"]["use_rep"]``, the
    key, which ``nk.tl`` takes for ``use_rep=None``.

    Raises
    ------
    TypeError
        If ``sdata`` is an ``AnnData``, which has no image, or ``encoder`` is nothing of the above.
    KeyError
        If the table or image is missing.
    FileNotFoundError
        If ``weights`` is no file.
    ValueError
        If the image can't be used or cells lie outside it; if the encoder is unknown, its weights don't fit, it does
        not take such crops, or returns features that are NaN, infinite or beyond float16; if the ``store`` belongs to
        another image, encoder, cell set, crop or precision.
    EncoderAccessError
        If a hub refuses the encoder's weights or can't be reached.
    RuntimeError
        If another process is writing to the ``store``.

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
    sdata = working_copy(sdata, copy)
    adata = get_table(sdata, table_key)
    if adata.n_obs == 0:
        raise ValueError(f"Table {table_key!r} has no cells. For a slide without any, run nk.pp.segment_nuclei first.")
    image = get_image(sdata, adata, image_key=image_key)
    reader = CropReader(image, crop_px=crop_px, mpp=mpp)
    network = ready_encoder(
        settings.encoder if encoder is None else encoder,
        weights=weights,
        device=device or settings.device,
        crop_px=reader.crop_px,
    )
    about = _about(image, reader, network)
    encode = partial(_encode, reader, network, batch_size=batch_size, num_workers=num_workers)
    if store is None:
        used = network.precision(precision)
        features = _in_memory(encode, reader.order(), network.n_features, used)
    else:
        kept = FeatureStore(store)
        used = kept.precision if precision == "auto" and kept.precision else network.precision(precision)
        features = _in_store(encode, kept, reader.order(), about, used)
    key = key_added or Keys.features(re.sub(r"[^\w.\-]", "_", network.name))  # a name of a hub has slashes
    adata.obsm[key] = features
    about |= {"precision": used} | ({} if store is None else {"store": str(kept.path)})
    notes(adata).setdefault(Keys.FEATURES, {})[key] = about
    notes(adata)[Keys.LAST_REP] = key
    seconds = time.perf_counter() - start
    parameters = {"key_added": key, "batch_size": batch_size, "num_workers": num_workers, "device": str(network.device)}
    record(adata, "histology_features", seconds=seconds, **parameters)
    log.info("%d crops → obsm[%r], %d features, %.1f s on %s", len(features), key, features.shape[1], seconds, network.device)
    return sdata if copy else None


def _about(image: CellImage, reader: CropReader, encoder: Encoder) -> dict[str, Any]:
    """What a student has to know to use these features."""
    return {
        "encoder": encoder.name,
        "fingerprint": encoder.fingerprint,
        "weights": encoder.weights,
        "license": encoder.license,
        "n_features": encoder.n_features,
        "crop_px": reader.crop_px,
        "mpp": float(f"{reader.mpp:.6g}"),  # rounding of the transformations must not make another store
        "image": image.key,
        "image_fingerprint": image_fingerprint(image),
        "cells": cells_hash(reader.centre_px),
    }


def _encode(
    reader: CropReader,
    encoder: Encoder,
    order: NDArray[np.int64],
    *,
    precision: str,
    batch_size: int,
    num_workers: int,
    n_done: int = 0,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
    """Features of ``order``, but for the first ``n_done``, with a progress bar."""
    from tqdm.auto import tqdm

    with tqdm(total=len(order), initial=n_done, unit="crop", desc=encoder.name, disable=not settings.progress) as bar:
        options = {"precision": precision, "batch_size": batch_size, "num_workers": num_workers}
        for cells, features in encoded(reader, encoder, order[n_done:], **options):
            yield cells, features
            bar.update(len(cells))


def _in_memory(encode: Encode, order: NDArray[np.int64], n_features: int, precision: str) -> NDArray[np.float16]:
    features = np.empty((len(order), n_features), dtype=np.float16)
    for cells, batch in encode(order, precision=precision):
        features[cells] = batch
    return features


def _in_store(
    encode: Encode, store: FeatureStore, order: NDArray[np.int64], about: dict[str, Any], precision: str
) -> da.Array:
    made_of = {name: about[name] for name in MADE_OF} | {"precision": precision}
    store.check(made_of)
    if store.is_complete:
        log.info("all %d cells are in %s", store.n_done, store.path)
        return store.array()
    shown = {name: about[name] for name in ("encoder", "weights", "license", "image")}
    with store.writing(made_of, order=order, n_features=about["n_features"], about=shown):
        if store.n_done:
            log.info("%d cells are in %s; going on from there", store.n_done, store.path)
        for _, features in encode(store.order, precision=precision, n_done=store.n_done):
            store.append(features)
    return store.array()

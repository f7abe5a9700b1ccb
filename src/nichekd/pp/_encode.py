"""From crops to checked float16 features, batch by batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from nichekd.models import Encoder
    from nichekd.pp._crops import CropReader

LARGEST = float(np.finfo(np.float16).max)  # 65,504


def ready_encoder(
    encoder: str | torch.nn.Module | Encoder, *, weights: str | Path | None, device: str, crop_px: int
) -> Encoder:
    """The encoder on its device, found to take crops of this size."""
    from nichekd.models import get_encoder
    from nichekd.models._precision import resolve_device

    there = resolve_device(device)  # before weights are loaded, for it fails sooner
    ready = get_encoder(encoder, weights=weights).to(there)
    ready.check(crop_px)
    return ready


def encoded(
    reader: CropReader,
    encoder: Encoder,
    order: NDArray[np.int64],
    *,
    precision: str,
    batch_size: int,
    num_workers: int,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
    """Cells and their features, (b,) and (b, F), along ``order``.

    The features of a batch are waited for when the next is on its way, so that a GPU is never idle in between.

    Raises
    ------
    ValueError
        If features are NaN, infinite or beyond float16.
    """
    waiting = None
    for cells, crops in reader.batches(order, batch_size=batch_size, num_workers=num_workers):
        features = encoder.encode(crops, precision=precision)
        if waiting is not None:
            yield waiting[0], as_float16(waiting[1].cpu().numpy(), encoder.name)
        waiting = (cells, features)
    if waiting is not None:
        yield waiting[0], as_float16(waiting[1].cpu().numpy(), encoder.name)


def as_float16(features: NDArray[np.float32], encoder: str) -> NDArray[np.float16]:
    """``features`` in the type they are kept in.

    Raises
    ------
    ValueError
        If a number is NaN, infinite, or too large for it.
    """
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        raise ValueError(
            f"Encoder {encoder!r} returned NaN or infinite features for {bad.sum():,} of {len(bad):,} crops of a "
            "batch. Check its weights; precision='32' helps where numbers overflow."
        )
    largest = float(np.abs(features).max(initial=0))
    if largest > LARGEST:
        raise ValueError(
            f"Encoder {encoder!r} returned features up to {largest:.3g}; they are kept as float16, which ends at "
            f"{LARGEST:,.0f}. Scale its output, e.g. by a LayerNorm at its end."
        )
    return features.astype(np.float16)

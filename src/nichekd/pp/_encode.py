"""From crops to checked float16 features, batch by batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from nichekd.pp._crops import SEGMENT

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from nichekd.models import Encoder
    from nichekd.models._precision import Precision
    from nichekd.pp._crops import CropReader

    Batch = tuple[NDArray[np.int64], NDArray[np.float16]]

LARGEST = float(np.finfo(np.float16).max)  # 65,504


class Plan(Protocol):
    """How cells are encoded."""

    @property
    def encoder(self) -> Encoder:
        """By what."""

    @property
    def n_features(self) -> int:
        """Length of a cell's features."""

    @property
    def block_cells(self) -> int:
        """Cells that are worth encoding apart from the rest."""

    def order(self) -> NDArray[np.int64]:
        """The cells as they are best encoded."""

    def encoded(
        self, order: NDArray[np.int64], *, precision: Precision, n_done: int = 0, stop: int | None = None
    ) -> Generator[tuple[NDArray[np.int64], NDArray[np.float16]], None, None]:
        """Cells and their features along ``order``, but for the first ``n_done``, and up to ``stop``."""


def ready_encoder(
    encoder: str | torch.nn.Module | Encoder, *, weights: str | Path | None, device: str, crop_px: int
) -> Encoder:
    """The encoder on its device, found to take crops of this size."""
    from nichekd.models import Encoder, get_encoder
    from nichekd.models._encoder_registry import remember_encoder
    from nichekd.models._precision import resolve_device

    there = resolve_device(device)  # before weights are loaded, for it fails sooner
    ready = get_encoder(encoder, weights=weights).to(there)
    ready.check(crop_px)
    if isinstance(encoder, Encoder) and encoder.weights is None:  # else found by its name and their file
        remember_encoder(encoder)
    return ready


@dataclass(frozen=True)
class CropPlan:
    """A crop a cell."""

    reader: CropReader
    encoder: Encoder
    batch_size: int = 64
    num_workers: int = 2

    @property
    def n_features(self) -> int:
        """Length of a cell's features."""
        return self.encoder.n_features or self.encoder.check(self.reader.crop_px)

    @property
    def block_cells(self) -> int:
        """A segment, over whose end no batch reaches."""
        return SEGMENT

    def order(self) -> NDArray[np.int64]:
        """The cells as they are best encoded, a permutation, (n,)."""
        return self.reader.order()

    def encoded(
        self, order: NDArray[np.int64], *, precision: Precision, n_done: int = 0, stop: int | None = None
    ) -> Generator[tuple[NDArray[np.int64], NDArray[np.float16]], None, None]:
        """Cells and their features, (b,) and (b, F), along ``order``.

        Batches are the same whether or not the first ``n_done`` cells, and those from ``stop`` on, both multiples of
        1,024, are left out.
        """
        batches = self.reader.batches(order[n_done:stop], batch_size=self.batch_size, num_workers=self.num_workers)
        for cells, features in one_behind(
            (cells, self.encoder.encode(crops, precision=precision)) for cells, crops in batches
        ):
            yield cells, as_float16(features, self.encoder.name)


def one_behind(
    batches: Iterator[tuple[NDArray[np.int64], torch.Tensor]],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Results on the host, each waited for when the next is on its way, so that a GPU is never idle in between."""
    waiting = None
    for batch in batches:
        if waiting is not None:
            yield waiting[0], waiting[1].cpu().numpy()
        waiting = batch
    if waiting is not None:
        yield waiting[0], waiting[1].cpu().numpy()


def as_float16(features: NDArray[np.float32], encoder: str) -> NDArray[np.float16]:
    """``features`` in the type they are kept in.

    Raises
    ------
    ValueError
        If a number is NaN, infinite, or too large for it.
    """
    n_bad = int(np.sum(~np.isfinite(features).all(axis=1)))
    if n_bad:
        raise ValueError(
            f"Encoder {encoder!r} returned NaN or infinite features for {n_bad:,} of {len(features):,} crops of a "
            "batch. Check its weights; precision='32' helps where numbers overflow."
        )
    largest = float(np.abs(features).max(initial=0))
    if largest > LARGEST:
        raise ValueError(
            f"Encoder {encoder!r} returned features up to {largest:.3g}; they are kept as float16, which ends at "
            f"{LARGEST:,.0f}. Scale its output, e.g. by a LayerNorm at its end."
        )
    return features.astype(np.float16)


def with_progress(batches: Iterator[Batch], n_cells: int, n_done: int = 0) -> Iterator[Batch]:
    """``batches``, with a progress bar that counts their cells."""
    from tqdm.auto import tqdm

    from nichekd._settings import settings

    with tqdm(total=n_cells, initial=n_done, unit="crop", desc="features", disable=not settings.progress) as bar:
        for cells, features in batches:
            yield cells, features
            bar.update(len(cells))

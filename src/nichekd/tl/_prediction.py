"""Logits of many cells, place by place and with neighborhoods padded little."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from nichekd._settings import settings
from nichekd.tl._batches import prediction_order

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from nichekd.models import NeighborhoodBatch, NeighborhoodIndex

BATCH = 256


@torch.inference_mode()
def predict_logits(
    network: nn.Module,
    index: NeighborhoodIndex,
    features: Any,
    cells: NDArray[np.integer] | None = None,
    *,
    device: torch.device | str = "cpu",
    forward: Callable[[NeighborhoodBatch], Tensor] | None = None,
    progress: str | None = None,
) -> NDArray[np.float32]:
    """Logits (B, K) of ``cells`` (B,), or of all.

    Cells are taken place by place, so that neighborhoods of a batch share most of their cells, and those of a place
    are halved by their neighborhoods' size, so that little is padding; neither changes a result. Larger places, cut
    more finely by size, would be padded less, but each half of two would have most of the place's cells to work out.

    Parameters
    ----------
    network
        Reads a batch of neighborhoods, gives logits; set to evaluation mode here.
    index, features
        Neighborhoods, and feature rows (n, F) in memory or lazy.
    forward
        What is called with a batch, a method of ``network``; default the network itself.
    progress
        Label of a progress bar; none without.
    """
    training = network.training
    network.eval().to(device)
    forward = forward or network
    cells = np.arange(len(index.xy)) if cells is None else cells
    ordered = prediction_order(index.xy[cells])
    sizes = index.sizes[cells]
    parts: list[Tensor] = []
    places: list[NDArray[np.integer]] = []
    bar = tqdm(total=len(cells), desc=progress, unit="cell", disable=progress is None or not settings.progress)
    for start in range(0, len(cells), 2 * BATCH):
        place = ordered[start : start + 2 * BATCH]
        place = place[np.argsort(sizes[place], kind="stable")]
        for half in np.array_split(place, -(-len(place) // BATCH)):
            batch = index.batch(cells[half], features).to(torch.device(device))
            parts.append(forward(batch).float())
            places.append(half)
            bar.update(len(half))
    bar.close()
    network.train(training)
    logits = torch.cat(parts).cpu().numpy()
    out = np.empty_like(logits)
    out[np.concatenate(places)] = logits
    return out

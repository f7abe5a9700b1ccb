"""Training of the slide classifier."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from nichekd._settings import settings as package_settings
from nichekd.tl._loop import History, make_fabric, warm_cosine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nichekd.models import SlideClassifier
    from nichekd.tl._slide_classifier import SlideSettings


def fit_slides(
    model: SlideClassifier,
    features: Any,
    slides: dict[str, NDArray[np.intp]],
    target: dict[str, int],
    *,
    fit: SlideSettings,
    seed: int,
    device: str | None,
) -> History:
    """Train ``model`` in place on the class ``target`` of each of ``slides``.

    Returns
    -------
    Loss and accuracy, an entry an epoch.
    """
    fabric = make_fabric(device)
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=fit.learning_rate, weight_decay=fit.weight_decay)
    network, optimizer = fabric.setup(model, optimizer)
    names = list(slides)
    steps = math.ceil(len(names) / fit.slides_per_step)
    schedule = warm_cosine(optimizer, fit.max_epochs * steps, fit.warmup)
    counts = np.bincount(list(target.values()), minlength=len(model.config.classes))
    weights = torch.tensor(len(names) / (len(counts) * counts), dtype=torch.float32, device=fabric.device)
    history = History()
    for epoch in tqdm(range(fit.max_epochs), desc="slides", unit="epoch", disable=not package_settings.progress):
        model.train()
        losses, right = [], 0
        for step in np.array_split(rng.permutation(len(names)), steps):
            for name in (names[i] for i in step):
                logits, _ = network(_bag(features, slides[name], fit.max_cells, rng).to(fabric.device))
                wanted = torch.tensor(target[name], device=fabric.device)
                loss = weights[wanted] * F.cross_entropy(logits[None], wanted[None])
                fabric.backward(loss / len(step))
                losses.append(loss.detach())
                right += int(logits.argmax() == wanted)
            fabric.clip_gradients(network, optimizer, max_norm=fit.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        history.add(epoch=epoch + 1, train_loss=torch.stack(losses).mean().item(), train_accuracy=right / len(names))
    model.eval().to("cpu")
    return history


def _bag(features: Any, cells: NDArray[np.intp], most: int, rng: np.random.Generator) -> torch.Tensor:
    if len(cells) > most:
        cells = rng.choice(cells, most, replace=False)
    return torch.from_numpy(np.asarray(features[np.sort(cells)], dtype=np.float32))

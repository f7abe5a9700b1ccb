"""The training loop of the student: Lightning Fabric, early stopping, a recorded history."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from nichekd._settings import settings as package_settings
from nichekd.models._distillation import distillation_loss
from nichekd.models._neighborhood_batch import random_rotations
from nichekd.tl._batches import spatial_batches
from nichekd.tl._prediction import predict_logits

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from numpy.typing import NDArray

    from nichekd.models import NeighborhoodBatch, NeighborhoodIndex, NicheStudent

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitSettings:
    """How a student is trained.

    Attributes
    ----------
    max_epochs, batch_size
        Passes over the training cells at most, and cells a step.
    min_steps
        Steps at least before it may stop: a small section has few in an epoch.
    learning_rate, weight_decay, clip, warmup
        AdamW's; the rate falls along a cosine after ``warmup``, a share of all steps.
    patience
        Epochs without a lower validation loss after which training stops.
    validation
        Share of the training cells held back, as one band of tissue; 0 trains on all for ``max_epochs``.
    feature_dropout
        Share of feature dimensions that a step does without.
    rotate
        Turn and mirror neighborhoods at random: tissue has no up.
    """

    max_epochs: int = 40
    batch_size: int = 256
    min_steps: int = 400
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    clip: float = 3.0
    warmup: float = 0.1
    patience: int = 8
    validation: float = 0.1
    feature_dropout: float = 0.1
    rotate: bool = True


@dataclass
class History:
    """Loss and agreement, an entry an epoch."""

    columns: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        """Append an epoch."""
        for name, value in values.items():
            self.columns.setdefault(name, []).append(float(value))

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """For ``uns``."""
        return {name: np.asarray(values) for name, values in self.columns.items()}


def make_fabric(device: str | None = None, **options: Any) -> Fabric:
    """Fabric on ``device`` (Fabric's accelerator names; None: ``nk.settings.device``), launched."""
    import warnings

    from lightning.fabric import Fabric

    with warnings.catch_warnings():
        # it advises on data loaders we don't use and GPUs the user may have left out on purpose
        warnings.filterwarnings("ignore", module="lightning")
        fabric = Fabric(accelerator=device or package_settings.device, **({"devices": 1} | options))
        fabric.launch()
    return fabric


def fit_student(
    student: NicheStudent,
    index: NeighborhoodIndex,
    features: Any,
    targets: NDArray[np.floating],
    *,
    train: NDArray[np.integer],
    validation: NDArray[np.integer],
    fit: FitSettings,
    seed: int,
    device: str | None = None,
) -> History:
    """Train ``student`` in place on ``targets`` (n, K), the teacher's logits; keeps the weights that validated best.

    Parameters
    ----------
    index, features
        Neighborhoods, and feature rows (n, F) in memory or lazy.
    train, validation
        Cells to train on and to stop by; with none of the latter the last weights are kept.
    """
    fabric = make_fabric(device)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(student.parameters(), lr=fit.learning_rate, weight_decay=fit.weight_decay)
    network, optimizer = fabric.setup(student, optimizer)
    steps_per_epoch = max(1, round(len(train) / fit.batch_size))
    n_epochs = max(fit.max_epochs, math.ceil(fit.min_steps / steps_per_epoch))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step / (n_epochs * steps_per_epoch), fit.warmup)
    )
    history, best, best_epoch = History(), math.inf, 0
    best_state = copy.deepcopy(student.state_dict())
    for epoch in tqdm(range(n_epochs), desc="distil", unit="epoch", disable=not package_settings.progress):
        student.train()
        losses = []
        for cells in spatial_batches(index.xy, train, fit.batch_size, rng):
            batch = augment(index.batch(cells, features), fit, generator).to(fabric.device)
            target = torch.as_tensor(targets[cells], dtype=torch.float32, device=fabric.device)
            loss = distillation_loss(network(batch), target, student.config.temperature)
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(loss)
            fabric.clip_gradients(network, optimizer, max_norm=fit.clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        entry = {"epoch": epoch + 1, "train_loss": torch.stack(losses).mean().item()}
        if len(validation):
            logits = predict_logits(student, index, features, validation, device=fabric.device)
            entry |= validation_scores(logits, targets[validation], student.config.temperature)
        history.add(**entry)
        score = entry.get("validation_loss", -float(epoch))
        if score < best:
            best, best_epoch, best_state = score, epoch, copy.deepcopy(student.state_dict())
        elif epoch - best_epoch >= fit.patience and (epoch + 1) * steps_per_epoch >= fit.min_steps:
            break
    student.load_state_dict(best_state)
    student.eval().to("cpu")
    log.info("student: %d epochs, best at %d", len(history.columns["epoch"]), best_epoch + 1)
    return history


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine down to 1 %; ``progress`` in [0, 1]."""
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / max(1 - warmup, 1e-9))))


def augment(batch: NeighborhoodBatch, fit: FitSettings, generator: torch.Generator) -> NeighborhoodBatch:
    """Turn and mirror each neighborhood, and drop feature dimensions; the niche stays the same."""
    features, offset = batch.features, batch.offset
    if fit.rotate:
        offset = offset @ random_rotations(len(offset), generator)
    if fit.feature_dropout > 0:
        alive = torch.rand(features.shape[1], generator=generator) >= fit.feature_dropout
        features = torch.where(alive, features, features.mean(0))
    return replace(batch, features=features, offset=offset)


def validation_scores(
    logits: NDArray[np.floating], targets: NDArray[np.floating], temperature: float
) -> dict[str, float]:
    """Loss, and agreement of the argmax, on the validation cells."""
    from sklearn.metrics import adjusted_rand_score

    loss = distillation_loss(torch.as_tensor(logits), torch.as_tensor(targets, dtype=torch.float32), temperature)
    return {
        "validation_loss": loss.item(),
        "validation_ari": adjusted_rand_score(targets.argmax(1), logits.argmax(1)),
    }

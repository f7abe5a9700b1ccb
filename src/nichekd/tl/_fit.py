"""The training loop of the student: Lightning Fabric, early stopping, a recorded history."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from nichekd._settings import settings as package_settings
from nichekd.models._distillation import distillation_loss
from nichekd.models._neighborhood_batch import random_rotations
from nichekd.tl._batches import ENOUGH_TO_HOLD_BACK, spatial_batches, taught_parts
from nichekd.tl._loop import BestEpoch, HeldOut, History, make_fabric, warm_cosine
from nichekd.tl._ranks import mean_over_all, predict_together, share_of

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from numpy.typing import NDArray

    from nichekd.models import NeighborhoodBatch, NeighborhoodIndex, NicheStudent
    from nichekd.tl._fit_settings import FitSettings

log = logging.getLogger(__name__)

FEWEST_HELD_BACK = 10  # cells with a target; the loss of fewer tells no epoch from another


def fit_student(
    student: NicheStudent,
    index: NeighborhoodIndex,
    components: NDArray[np.float32],
    targets: NDArray[np.floating],
    train: NDArray[np.integer],
    *,
    all_train: NDArray[np.integer] | None = None,
    embedding: NDArray[np.floating] | None = None,
    fit: FitSettings,
    seed: int,
    fabric: Fabric | None = None,
) -> tuple[History, HeldOut | None]:
    """Train ``student`` in place on ``targets`` (n, K), the teacher's logits, of the cells ``train``.

    Some squares of tissue are held back, to keep the epoch that validated best. A small section can't spare them: a
    second run, from the same start, takes as many epochs on all of ``train``. With nothing to hold back there is one
    run of ``max_epochs``; so there is where the targets lie such that the squares hold fewer than 10 of them, or leave
    less than half.

    Parameters
    ----------
    index, components
        Neighborhoods, and the student's whitened features (n, C).
    all_train
        Training cells with those that have no target, if there are some: the squares are found among them, so that they
        are those that an encoder held back.
    embedding
        What the teacher makes its niches of, (n, E), to be learned beside them; none without.
    fit, seed
        Settings and seed.
    fabric
        Launched; with several processes, each takes its share of every batch. Default: one on ``nk.settings.device``.

    Returns
    -------
    The history of the first run, and its logits of what it was validated on, which calibrate the probabilities.
    """
    fabric = fabric or make_fabric()
    if fabric.world_size > 1:
        student.load_state_dict(fabric.broadcast(student.state_dict()))
        torch.manual_seed(seed + fabric.global_rank)  # dropout, where there is any, of other cells
    among = train if all_train is None else all_train
    fitted, held_back = _parts(index, train, among, fit.validation)
    start = copy.deepcopy(student.state_dict())
    run = _Run(fabric, student, index, components, targets, embedding, fit, seed)
    history = run.epochs(fitted, held_back)
    if len(held_back):
        log.info("student: lowest validation loss after %d epochs", run.best.n_epochs)
        if len(train) < ENOUGH_TO_HOLD_BACK:
            student.load_state_dict(start)
            run.epochs(train, held_back[:0], n_epochs=run.best.n_epochs)
        else:
            student.load_state_dict(run.best.state)
    student.eval().to("cpu")
    return history, HeldOut(held_back, run.best_logits) if run.best_logits is not None else None


def _parts(
    index: NeighborhoodIndex, train: NDArray[np.integer], among: NDArray[np.integer], share: float
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Cells that train and cells that validate; all and none where the squares hold too few of ``train``, or too many."""
    fitted, held_back = taught_parts(index.xy, train, among, share=share, margin=index.radius)
    if share == 0 or (len(held_back) >= FEWEST_HELD_BACK and 2 * len(fitted) >= len(train)):
        return fitted, held_back
    log.info(
        "student: nothing is held back: %d of %d cells with a target would train, %d validate",
        len(fitted),
        len(train),
        len(held_back),
    )
    return train, train[:0]


class Pupil(nn.Module):
    """The student in training: with a head for the teacher's embedding, (B, E), which it leaves behind afterwards."""

    def __init__(self, student: NicheStudent, n_embedding: int) -> None:
        super().__init__()
        self.student = student
        self.beside = nn.Linear(student.config.network.d_model, n_embedding) if n_embedding else None

    def forward(self, batch: NeighborhoodBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits (B, K) and embedding (B, E), of whitened features."""
        embedding = self.student.backbone(batch)
        return self.student.classify(embedding), None if self.beside is None else self.beside(embedding)


class _Run:
    """What the epochs of one training share."""

    def __init__(
        self,
        fabric: Fabric,
        student: NicheStudent,
        index: NeighborhoodIndex,
        components: NDArray[np.float32],
        targets: NDArray[np.floating],
        embedding: NDArray[np.floating] | None,
        fit: FitSettings,
        seed: int,
    ) -> None:
        self.fabric, self.student, self.index, self.components = fabric, student, index, components
        self.targets, self.embedding, self.fit, self.seed = targets, embedding, fit, seed
        self.best = BestEpoch()
        self.best_logits: NDArray[np.float32] | None = None  # of the validation cells, after that epoch
        self.is_silent = not (package_settings.progress and fabric.is_global_zero)

    def epochs(
        self, train: NDArray[np.integer], validation: NDArray[np.integer], *, n_epochs: int | None = None
    ) -> History:
        """Train until the validation loss has not fallen for ``patience`` epochs, or for ``n_epochs``."""
        fit, history = self.fit, History()
        max_epochs, batch_size = fit.pace(len(train))
        steps = max(1, round(len(train) / batch_size))
        limit = max(max_epochs, math.ceil(fit.min_steps / steps))
        pupil = Pupil(self.student, 0 if self.embedding is None else self.embedding.shape[1])
        optimizer = torch.optim.AdamW(pupil.parameters(), lr=fit.learning_rate, weight_decay=fit.weight_decay)
        network, optimizer = self.fabric.setup(pupil, optimizer)
        schedule = warm_cosine(optimizer, limit * steps, fit.warmup)
        rng, generator = np.random.default_rng(self.seed), torch.Generator().manual_seed(self.seed)
        name = "distil" if n_epochs is None else "distil, all cells"
        total = n_epochs or limit
        for epoch in tqdm(range(total), desc=name, unit="epoch", disable=self.is_silent):
            self.student.train()
            losses = []
            for cells in spatial_batches(self.index.xy, train, batch_size, rng, block_cells=fit.block_cells):
                loss = self.loss(network, cells, generator)
                optimizer.zero_grad(set_to_none=True)
                self.fabric.backward(loss)
                self.clip(network, optimizer)
                optimizer.step()
                schedule.step()
                losses.append(loss.detach())
            train_loss = mean_over_all(self.fabric, torch.stack(losses))
            history.add(epoch=epoch + 1, train_loss=train_loss, **self.scores(validation))
            if len(validation) and self.best.was(fit.patience) and (epoch + 1) * steps >= fit.min_steps:
                break
        return history

    def clip(self, network: Any, optimizer: Any) -> None:
        """Clip the gradients; raises ``ValueError`` where they are not finite, before they spoil the weights."""
        norm = self.fabric.clip_gradients(network, optimizer, max_norm=self.fit.clip, error_if_nonfinite=False)
        if norm is not None and not torch.isfinite(norm):
            largest = float(np.abs(self.components).max())
            raise ValueError(
                f"The student's loss is no longer finite; its whitened features reach {largest:.3g}. Look for outliers "
                "among the image features (use_rep=), or lower FitSettings(learning_rate=...)."
            )

    def loss(self, network: Any, cells: NDArray[np.integer], generator: torch.Generator) -> torch.Tensor:
        """Of one batch, or of this process' share of it, so weighted that the mean over processes is the batch's."""
        # drawn for the whole batch, so that the number of processes changes none of it
        whole = augment(self.index.batch(cells, self.components), self.fit, generator)
        batch, cells, weight = share_of(whole, cells, self.fabric.global_rank, self.fabric.world_size)
        tau = self.student.config.temperature
        logits, embedding = network(batch.to(self.fabric.device))
        loss = weight * distillation_loss(logits, self.wanted(self.targets, cells), tau)
        if self.embedding is None:
            return loss
        error = F.smooth_l1_loss(embedding, self.wanted(self.embedding, cells))
        return loss + weight * self.fit.embedding_weight * tau**2 * error  # the distillation's loss has that factor

    def wanted(self, values: NDArray[np.floating], cells: NDArray[np.integer]) -> torch.Tensor:
        """Rows of a target, on the device."""
        return torch.as_tensor(values[cells], dtype=torch.float32, device=self.fabric.device)

    def scores(self, validation: NDArray[np.integer]) -> dict[str, float]:
        """Of the validation cells, where there are any."""
        if not len(validation):
            return {}
        logits = predict_together(
            self.fabric, self.student, self.index, self.components, validation, forward=self.student.read
        )
        found = validation_scores(logits, self.targets[validation], self.student.config.temperature)
        if self.best.see(found["validation_loss"], lambda: copy.deepcopy(self.student.state_dict())):
            self.best_logits = logits
        return found


def augment(batch: NeighborhoodBatch, fit: FitSettings, generator: torch.Generator) -> NeighborhoodBatch:
    """Turn and mirror each neighborhood, and drop components; the niche stays the same."""
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

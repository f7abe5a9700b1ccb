"""The training loop of NOLAN, for the teacher and for its histology baseline alike."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from nichekd._settings import settings as package_settings
from nichekd.models._neighborhood_transformer import NeighborhoodConfig
from nichekd.models._nolan import MeanTeacher, NolanLoss, NolanNetwork, ViewMaker, cosine
from nichekd.models._whiten import Whiten
from nichekd.tl._batches import spatial_batches
from nichekd.tl._kmeans import kmeans_partition
from nichekd.tl._loop import History, make_fabric, seeded
from nichekd.tl._neighborhood_means import neighborhood_means
from nichekd.tl._prediction import predict_logits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning.fabric import Fabric
    from numpy.typing import NDArray

    from nichekd.models import NeighborhoodBatch, NeighborhoodIndex, NolanSettings
    from nichekd.models._neighborhood_transformer import Preset

log = logging.getLogger(__name__)

FIT_CELLS = 50_000  # more change k-means centres and components less than the seed does
N_COMPONENTS = 64
# few features need no wide network, and the network is run eight times a step
NOLAN_SIZES: dict[str, dict[str, Any]] = {"pooling": {"d_model": 64, "mlp_ratio": 2.0}}


@dataclass(frozen=True)
class NolanResult:
    """Logits (n, K) of all cells, and how the training went."""

    logits: NDArray[np.float32]
    history: History


def fit_nolan(
    preset: Preset,
    n_niches: int,
    index: NeighborhoodIndex,
    features: Any,
    train: NDArray[np.integer],
    *,
    fit: NolanSettings,
    seed: int,
    device: str | None = None,
    name: str = "nolan",
    start: NDArray[np.integer] | None = None,
) -> NolanResult:
    """Train NOLAN on the cells ``train`` and give the logits of all.

    Parameters
    ----------
    preset, n_niches
        Sizes of the network, which reads 64 principal components of the features at most, and K.
    index, features
        Neighborhoods, and feature rows (n, F) in memory or lazy.
    fit, seed, device
        Settings, seed, and Fabric's accelerator.
    name
        Label of the progress bar.
    start
        Partition of ``train`` for the warm start; None: k-means of neighborhood means.
    """
    fabric = make_fabric(device)
    sizes = NOLAN_SIZES.get(preset, {})
    config = NeighborhoodConfig.preset(preset, min(features.shape[1], N_COMPONENTS), **sizes)
    total = fit.n_warm_start + fit.n_steps
    with seeded(seed), tqdm(total=total, desc=name, unit="step", disable=not package_settings.progress) as bar:
        run = _Run(fabric, NolanNetwork(config, n_niches), index, features, train, fit, seed)
        if fit.n_warm_start:
            run.warm_start(run.neighborhood_kmeans(n_niches, seed) if start is None else start, bar)
        teacher, loss = run.distil(bar)
    logits = predict_logits(teacher.network, index, run.components, device=fabric.device)
    if fit.balance == "centering":
        # the partition that training balanced is the centred one; the raw argmax would be another
        logits = logits - loss.center.cpu().numpy()
    return NolanResult(logits, run.history)


class _Run:
    """State of one training."""

    def __init__(
        self,
        fabric: Fabric,
        network: NolanNetwork,
        index: NeighborhoodIndex,
        features: Any,
        train: NDArray[np.integer],
        fit: NolanSettings,
        seed: int,
    ) -> None:
        self.fabric, self.fit, self.index, self.train = fabric, fit, index, train
        self.network = network
        rng = np.random.default_rng(seed)
        self.views = ViewMaker(fit, torch.Generator().manual_seed(seed))
        sample = train if len(train) <= FIT_CELLS else np.sort(rng.choice(train, FIT_CELLS, replace=False))
        n_components = network.backbone.config.n_features
        reduce = Whiten(features.shape[1], n_components, equal=False).fit(np.asarray(features[sample]), seed=seed)
        self.components = reduce.rows(features)  # once a cell, where batches would do it once a neighborhood
        self.few = features if features.shape[1] <= N_COMPONENTS else None
        self.batches = _endless(index, train, fit.batch_size, rng)
        self.history = History()

    def next_batch(self) -> tuple[NDArray[np.integer], NeighborhoodBatch]:
        cells = next(self.batches)
        return cells, self.index.batch(cells, self.components)

    def neighborhood_kmeans(self, n_niches: int, seed: int) -> NDArray[np.int32]:
        """k-means partition of the training cells' neighborhood means, (n_train,), the best of many starts."""
        if self.few is None:
            means = neighborhood_means(self.index, self.components, self.train)
        else:  # a short latent's dimensions count alike
            means = neighborhood_means(self.index, self.few, self.train)
            means = (means - means.mean(0)) / np.maximum(means.std(0), 1e-6)
        return kmeans_partition(means, n_niches, seed)

    def warm_start(self, labels: NDArray[np.integer], bar: tqdm[Any]) -> None:
        """Learn a partition of the training cells, so that every prototype starts on a niche of its own."""
        label = np.zeros(len(self.index.xy), dtype=np.int64)
        label[self.train] = labels
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=2e-3, weight_decay=self.fit.weight_decay[0])
        network, optimizer = self.fabric.setup(self.network, optimizer)
        for step in range(self.fit.n_warm_start):
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * cosine(1, 0.1, step / self.fit.n_warm_start)
            cells, batch = self.next_batch()
            target = torch.from_numpy(label[cells]).to(self.fabric.device)
            views = [self.views.global_view(batch), self.views.local_view(batch)]
            losses = [
                F.cross_entropy(network(v.to(self.fabric.device)) / self.fit.student_temperature, target) for v in views
            ]
            loss = torch.stack(losses).mean()
            self.step(network, optimizer, loss)
            bar.update()

    def distil(self, bar: tqdm[Any]) -> tuple[MeanTeacher, NolanLoss]:
        """Self-distillation; the teacher and its centre are the result."""
        fit = self.fit
        teacher = MeanTeacher(self.network)
        loss_of = NolanLoss(fit, self.network.head.prototypes.shape[0]).to(self.fabric.device)
        teacher.network.to(self.fabric.device)
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=fit.learning_rate)
        network, optimizer = self.fabric.setup(self.network, optimizer)
        for step in range(fit.n_steps):
            progress = step / fit.n_steps
            for group in optimizer.param_groups:
                group["lr"] = fit.learning_rate * min(1.0, progress / max(fit.warmup, 1e-9)) * cosine(1, 0.01, progress)
                group["weight_decay"] = cosine(*fit.weight_decay, progress)
            _, batch = self.next_batch()
            views = [self.views.global_view(batch) for _ in range(2)]
            views += [self.views.local_view(batch) for _ in range(fit.n_local)]
            views = [view.to(self.fabric.device) for view in views]
            with torch.no_grad():
                targets = [teacher.network(view) for view in views[:2]]
            loss = loss_of([network(view) for view in views], targets)
            self.step(network, optimizer, loss)
            teacher.update(self.network, cosine(fit.momentum, 1, progress))
            if step % 20 == 0:
                labels = loss_of.target(targets[0]).argmax(1).cpu()
                usage = usage_entropy(labels, targets[0].shape[1])
                self.history.add(step=step, train_loss=loss.item(), usage_entropy=usage)
            bar.update()
        return teacher, loss_of

    def step(self, network: Any, optimizer: Any, loss: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        self.fabric.clip_gradients(network, optimizer, max_norm=self.fit.clip)
        optimizer.step()


def _endless(
    index: NeighborhoodIndex, train: NDArray[np.integer], batch_size: int, rng: np.random.Generator
) -> Iterator[NDArray[np.integer]]:
    while True:
        yield from spatial_batches(index.xy, train, batch_size, rng)


def usage_entropy(labels: torch.Tensor | NDArray[np.integer], n_niches: int) -> float:
    """Entropy of how often labels occur, in units of log K; 1: all alike, 0: one takes all."""
    if n_niches < 2:
        return 0.0
    count = np.bincount(np.asarray(labels), minlength=n_niches)
    share = count[count > 0] / count.sum()
    return float(-(share * np.log(share)).sum() / np.log(n_niches))

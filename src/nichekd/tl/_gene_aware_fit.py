"""Training of the gene-aware encoder: crops of training cells, and all training cells that lie in them."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch.nn import functional as F
from tqdm.auto import tqdm

from nichekd._settings import settings as package_settings
from nichekd.models._stain import CropAugmentation
from nichekd.tl._batches import validation_part
from nichekd.tl._loop import History, learning_rate_factor, make_fabric

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from nichekd.models import Encoder
    from nichekd.models._gene_aware import GeneAwareNetwork
    from nichekd.pp._crops import CropReader

log = logging.getLogger(__name__)

ENOUGH_TO_HOLD_BACK = 10_000
MOST_CROPS = 2_500  # an epoch: sections of many cells need not show them all each time
CHECKED_CELLS = 1_000  # of those held back; more tell epochs apart no better, and cost a crop each
EDGE_PX = 8  # cells nearer to a crop's edge than a step of the map are not read off


@dataclass(frozen=True)
class GeneAwareSettings:
    """How a gene-aware encoder is trained.

    Attributes
    ----------
    max_epochs, crops_per_epoch
        Epochs at most, and crops in each; default as many as show each training cell two and a half times, up to 2,500.
    batch_size
        Crops a step.
    learning_rate, backbone_learning_rate, weight_decay, clip, warmup
        AdamW's; a pretrained backbone moves slower.
    cluster_weight, niche_weight
        Of the cross-entropy of clusters, and of a teacher's niches, beside the error of the targets.
    validation, patience
        Share of the training cells held back, as squares of tissue, and epochs without a lower loss there after which
        training stops. Sections of fewer than 10,000 training cells need them all, and are trained to the end.
    augmentation
        Random changes of the crops.
    """

    max_epochs: int = 8
    crops_per_epoch: int | None = None
    batch_size: int = 8
    learning_rate: float = 2e-3
    backbone_learning_rate: float = 5e-4
    weight_decay: float = 0.05
    clip: float = 5.0
    warmup: float = 0.15
    cluster_weight: float = 0.3
    niche_weight: float = 0.3
    validation: float = 0.1
    patience: int = 5
    augmentation: CropAugmentation = CropAugmentation()


@dataclass(frozen=True)
class CropTask:
    """What is to be predicted, where.

    Attributes
    ----------
    reader
        Crops around the cells.
    xy_px
        Cell centres in the crops' pixels, (n, 2), column and row.
    targets, clusters
        (n, T) of unit variance, and (n,).
    niches
        A teacher's probabilities, (n, K), all 0 for cells that don't teach; ``None`` without a teacher.
    """

    reader: CropReader
    xy_px: NDArray[np.float64]
    targets: NDArray[np.float32]
    clusters: NDArray[np.int64]
    niches: NDArray[np.float32] | None = None

    def batch(
        self, anchors: NDArray[np.integer], members: list[NDArray[np.integer]]
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Crops (b, 3, p, p), points (b, m, 2), where there is one (b, m), and what is wanted of those, flat."""
        size = max(len(cells) for cells in members)
        points = np.zeros((len(anchors), size, 2), dtype=np.float32)
        there = np.zeros((len(anchors), size), dtype=bool)
        corners = self.reader.centre_px[anchors] - self.reader.crop_px // 2
        for i, cells in enumerate(members):
            points[i, : len(cells)] = self.xy_px[cells] - corners[i]
            there[i, : len(cells)] = True
        cells = np.concatenate(members)
        return (
            torch.from_numpy(self.reader.read(np.asarray(anchors, dtype=np.int64))),
            torch.from_numpy(points),
            torch.from_numpy(there),
            [torch.from_numpy(w[cells]) for w in (self.targets, self.clusters, self.niches) if w is not None],
        )


def fit_gene_aware(
    encoder: Encoder,
    task: CropTask,
    xy: NDArray[np.floating],
    train: NDArray[np.integer],
    *,
    margin: float,
    fit: GeneAwareSettings,
    seed: int,
    device: str | None = None,
) -> History:
    """Train ``encoder.module`` in place; it keeps the weights that validated best, and is frozen again.

    Parameters
    ----------
    encoder
        Around a :class:`nichekd.models._gene_aware.GeneAwareNetwork`.
    task
        Crops and targets.
    xy
        Centres, (n, 2), µm.
    train
        Training cells; no other is looked at, and no crop is centred elsewhere.
    margin
        µm around validation squares whose cells do not teach: with half a crop, both parts see tissue of their own.
    """
    fabric = make_fabric(device)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    share = fit.validation if len(train) >= ENOUGH_TO_HOLD_BACK else 0.0
    fitted, held_back = validation_part(xy, train, share=share, margin=margin)
    network: Any = encoder.module
    network.requires_grad_(True)
    network.to(memory_format=torch.channels_last)  # a quarter faster, on CPUs too
    backbone = {id(p) for p in network.backbone.parameters()}
    groups = [
        {"params": list(network.backbone.parameters()), "lr": fit.backbone_learning_rate},
        {"params": [p for p in network.parameters() if id(p) not in backbone], "lr": fit.learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=fit.weight_decay)
    wrapped, optimizer = fabric.setup(network, optimizer)
    wrapped.mark_forward_method("at")
    wrapped.mark_forward_method("predict")
    sampler = CropSampler(task, fitted, rng)
    n_crops = fit.crops_per_epoch or sampler.n_covering
    steps = max(1, n_crops // fit.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step / (fit.max_epochs * steps), fit.warmup)
    )
    checked = rng.choice(held_back, min(CHECKED_CELLS, len(held_back)), replace=False)
    check = CropSampler(task, checked, rng) if len(checked) else None
    history, best, best_state = History(), math.inf, copy.deepcopy(network.state_dict())
    bar = tqdm(
        total=fit.max_epochs * steps, desc="gene-aware encoder", unit="step", disable=not package_settings.progress
    )
    for epoch in range(fit.max_epochs):
        network.train()
        losses = []
        for anchors, members in sampler.batches(n_crops, fit.batch_size):
            crops, points, there, wanted = task.batch(anchors, members)
            crops, points = fit.augmentation(crops, points, generator)
            loss = loss_of(wrapped, encoder, crops, points, there, wanted, fit)
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(loss)
            fabric.clip_gradients(wrapped, optimizer, max_norm=fit.clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            bar.update()
        entry = {"epoch": epoch + 1, "train_loss": torch.stack(losses).mean().item()}
        if check is not None:
            entry["validation_loss"] = check.loss(network, encoder, fit)
        history.add(**entry)
        score = entry.get("validation_loss", -float(epoch))
        if score < best:
            best, best_state, best_epoch = score, copy.deepcopy(network.state_dict()), epoch
        elif epoch - best_epoch >= fit.patience:
            break
    bar.close()
    network.load_state_dict(best_state)
    network.eval().requires_grad_(False)
    log.info("gene-aware encoder: %d epochs, best after %d", len(history.columns["epoch"]), best_epoch + 1)
    return history


class CropSampler:
    """Crops centred on some cells, and the cells among them that each crop shows."""

    def __init__(self, task: CropTask, cells: NDArray[np.integer], rng: np.random.Generator) -> None:
        self.task, self.cells, self.rng = task, cells, rng
        self.tree = cKDTree(task.xy_px[cells])
        self.reach = task.reader.crop_px / 2 - EDGE_PX

    @property
    def n_covering(self) -> int:
        """Crops that show each cell two and a half times on average, or as many as an epoch has."""
        some = self.cells[self.rng.choice(len(self.cells), min(500, len(self.cells)), replace=False)]
        shown = self.tree.query_ball_point(self.task.xy_px[some], self.reach, p=np.inf, return_length=True).mean()
        return min(MOST_CROPS, max(64, math.ceil(2.5 * len(self.cells) / shown)))

    def batches(self, n_crops: int, batch_size: int) -> Any:
        """Anchors and members, crop by crop at random."""
        n = min(n_crops, len(self.cells))
        anchors = self.cells[self.rng.choice(len(self.cells), n, replace=False)]
        for start in range(0, n - n % batch_size or n, batch_size):
            some = anchors[start : start + batch_size]
            found = self.tree.query_ball_point(self.task.xy_px[some], self.reach, p=np.inf)
            yield some, [self.cells[np.asarray(members)] for members in found]

    @torch.no_grad()
    def loss(self, network: GeneAwareNetwork, encoder: Encoder, fit: GeneAwareSettings) -> float:
        """Mean loss over all these cells, each at the centre of a crop, as it will be encoded."""
        network.eval()
        total = 0.0
        for start in range(0, len(self.cells), 64):
            cells = self.cells[start : start + 64]
            crops, points, there, wanted = self.task.batch(cells, [cells[i : i + 1] for i in range(len(cells))])
            total += loss_of(network, encoder, crops, points, there, wanted, fit).item() * len(cells)
        return total / len(self.cells)


def loss_of(
    network: Any,
    encoder: Encoder,
    crops: Tensor,
    points: Tensor,
    there: Tensor,
    wanted: list[Tensor],
    fit: GeneAwareSettings,
) -> Tensor:
    """Smooth L1 of the targets, and cross-entropy of the clusters and, with a teacher, of its softened niches."""
    pixels = encoder.normalise(crops)
    embedding = network.at(pixels, points.to(pixels.device))[there.to(pixels.device)]  # (cells, d)
    found = network.predict(embedding)
    targets, *classes = (part.to(pixels.device) for part in wanted)
    loss = F.smooth_l1_loss(found[0], targets)
    for weight, logits, truth in zip((fit.cluster_weight, fit.niche_weight), found[1:], classes, strict=False):
        loss = loss + weight * F.cross_entropy(logits, truth)
    return loss

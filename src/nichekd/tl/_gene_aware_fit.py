"""Training of the gene-aware encoder: crops of training cells, and all training cells that lie in them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from nichekd._settings import settings as package_settings
from nichekd.models._lora import add_lora, merge_lora
from nichekd.models._stain import CropAugmentation
from nichekd.tl._batches import ENOUGH_TO_HOLD_BACK, taught_parts
from nichekd.tl._fit_settings import MANY_CELLS
from nichekd.tl._gene_aware_crops import CropSampler
from nichekd.tl._loop import BestEpoch, History, make_fabric, warm_cosine
from nichekd.tl._settings_ranges import WithRanges

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from nichekd.models import Encoder, LoraSettings
    from nichekd.models._gene_aware import GeneAwareNetwork
    from nichekd.tl._gene_aware_crops import CropTask

log = logging.getLogger(__name__)

CHECKED_CELLS = 1_000  # of those held back; more tell epochs apart no better, and cost a crop each


@dataclass(frozen=True)
class GeneAwareSettings(WithRanges):
    """How a gene-aware encoder is trained.

    Attributes
    ----------
    max_epochs, crops_per_epoch
        Epochs at most, by default 8, or 10 of 30,000 cells or more; and crops in each, by default as many as show each
        training cell two and a half times, up to 2,500.
    batch_size
        Crops a step.
    learning_rate, backbone_learning_rate, weight_decay, clip, warmup
        AdamW's; a pretrained backbone, and adapters in it, move slower. A ViT that is trained whole from its weights
        usually wants a ``backbone_learning_rate`` of 1e-5 to 1e-4.
    cluster_weight, niche_weight
        Of the cross-entropy of clusters, and of a teacher's niches, beside the error of the targets.
    validation, patience
        Share of the training cells held back, as squares of tissue, and epochs without a lower loss there after which
        training stops. Sections of fewer than 10,000 training cells need them all, and are trained to the end.
    augmentation
        Random changes of the crops.
    """

    max_epochs: int | None = None
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

    def n_epochs(self, n_cells: int) -> int:
        """``max_epochs`` of a training on ``n_cells``."""
        return (10 if n_cells >= MANY_CELLS else 8) if self.max_epochs is None else self.max_epochs


def fit_gene_aware(
    encoder: Encoder,
    task: CropTask,
    xy: NDArray[np.floating],
    train: NDArray[np.integer],
    *,
    all_train: NDArray[np.integer],
    margin: float,
    fit: GeneAwareSettings,
    seed: int,
    device: str | None = None,
    lora: LoraSettings | None = None,
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
        Training cells with targets; no other is looked at, and no crop is centred elsewhere.
    all_train
        With those that have none: the squares are found among them, as a student finds them.
    margin
        µm around validation squares whose cells do not teach: with half a crop, both parts see tissue of their own.
    lora
        Train adapters in the ViT in place of its weights, and add them to these in the end.
    """
    fabric = make_fabric(device)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    fitted, held_back = encoder_parts(xy, train, all_train, share=fit.validation, margin=margin)
    network: Any = encoder.module
    network.requires_grad_(True)
    if lora is not None:
        add_lora(network.backbone.vit, lora)
    network.to(memory_format=torch.channels_last)  # a quarter faster, on CPUs too
    sampler = CropSampler(task, fitted, rng)
    n_crops = fit.crops_per_epoch or sampler.n_covering
    n_epochs = fit.n_epochs(len(fitted))
    shown = n_crops * n_epochs * sampler.n_shown / max(len(fitted), 1)
    log.info(
        "gene-aware encoder: a crop shows %.1f cells; each of %d is seen %.1f times",
        sampler.n_shown,
        len(fitted),
        shown,
    )
    if shown < 1:
        log.warning(
            "Crops show so few cells that most are never seen (%.2f times on average). Take coarser crops, mpp=, or more of "
            "them: fit=GeneAwareSettings(crops_per_epoch=...).",
            shown,
        )
    checked = rng.choice(held_back, min(CHECKED_CELLS, len(held_back)), replace=False)
    check = CropSampler(task, checked, rng) if len(checked) else None
    n_steps = n_epochs * max(1, n_crops // fit.batch_size)
    run = _Run(fabric, encoder, fit, n_steps=n_steps, generator=generator)
    history, best = History(), BestEpoch()
    for epoch in range(n_epochs):
        entry = {"epoch": epoch + 1, "train_loss": run.epoch(sampler, n_crops)}
        if check is not None:
            entry["validation_loss"] = mean_loss(check, network, encoder, fit)
            best.see(entry["validation_loss"], lambda: trained_state(network))
        history.add(**entry)
        if check is not None and best.was(fit.patience):
            break
    run.bar.close()
    if check is not None:
        network.load_state_dict(best.state, strict=False)
    if lora is not None:
        merge_lora(network.backbone.vit)
    network.eval().requires_grad_(False)
    ran = len(history.columns["epoch"])
    log.info("gene-aware encoder: %d epochs, best after %d", ran, best.n_epochs or ran)
    return history


def encoder_parts(
    xy: NDArray[np.floating],
    train: NDArray[np.integer],
    all_train: NDArray[np.integer],
    *,
    share: float,
    margin: float,
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Of the cells ``train``, those that train an encoder and those that validate it, in the student's squares."""
    share = share if len(all_train) >= ENOUGH_TO_HOLD_BACK else 0.0
    return taught_parts(xy, train, all_train, share=share, margin=margin)


class _Run:
    """What the epochs of one training share."""

    def __init__(
        self, fabric: Fabric, encoder: Encoder, fit: GeneAwareSettings, *, n_steps: int, generator: torch.Generator
    ) -> None:
        self.fabric, self.encoder, self.fit, self.generator = fabric, encoder, fit, generator
        network: Any = encoder.module
        backbone = {id(p) for p in network.backbone.parameters()}
        groups = [
            {"params": [p for p in network.backbone.parameters() if p.requires_grad], "lr": fit.backbone_learning_rate},
            {"params": [p for p in network.parameters() if id(p) not in backbone], "lr": fit.learning_rate},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=fit.weight_decay)
        self.network, self.optimizer = fabric.setup(network, optimizer)
        self.network.mark_forward_method("at")
        self.network.mark_forward_method("predict")
        self.schedule = warm_cosine(self.optimizer, n_steps, fit.warmup)
        is_silent = not package_settings.progress
        self.bar = tqdm(total=n_steps, desc="gene-aware encoder", unit="step", disable=is_silent)

    def epoch(self, sampler: CropSampler, n_crops: int) -> float:
        """Train on so many crops; returns the mean loss."""
        self.network.train()
        losses = []
        for anchors, members in sampler.batches(n_crops, self.fit.batch_size):
            crops, points, there, wanted = sampler.task.batch(anchors, members)
            crops, points = self.fit.augmentation(crops, points, self.generator)
            loss = loss_of(self.network, self.encoder, crops, points, there, wanted, self.fit)
            self.optimizer.zero_grad(set_to_none=True)
            self.fabric.backward(loss)
            self.fabric.clip_gradients(self.network, self.optimizer, max_norm=self.fit.clip)
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.detach())
            self.bar.update()
        return torch.stack(losses).mean().item()


def trained_state(network: nn.Module) -> dict[str, Tensor]:
    """A copy of all that training changes; what is frozen may be large."""
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return {name: value.clone() for name, value in network.state_dict().items() if name not in frozen}


@torch.no_grad()
def mean_loss(sampler: CropSampler, network: GeneAwareNetwork, encoder: Encoder, fit: GeneAwareSettings) -> float:
    """Of all the sampler's cells, each at the centre of a crop, as it will be encoded."""
    network.eval()
    total = 0.0
    for start in range(0, len(sampler.cells), 64):
        cells = sampler.cells[start : start + 64]
        crops, points, there, wanted = sampler.task.batch(cells, [cells[i : i + 1] for i in range(len(cells))])
        total += loss_of(network, encoder, crops, points, there, wanted, fit).item() * len(cells)
    return total / len(sampler.cells)


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

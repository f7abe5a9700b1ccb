"""Training of RankByGene: Lightning Fabric, an exact moving average, batches of cells from all over the tissue."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from nichekd._settings import settings as package_settings
from nichekd._triplets import FEWEST, draw_triplets, gaps, order_agreement, unit_rows
from nichekd.models._rank_by_gene import rank_by_gene_loss
from nichekd.tl._batches import validation_part
from nichekd.tl._loop import BestEpoch, History, make_fabric, warm_cosine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from nichekd.models._rank_by_gene import RankByGeneNetwork
    from nichekd.tl._rank_by_gene_data import Losses, RankByGeneSettings, Task

log = logging.getLogger(__name__)

CHECK_EVERY = 25  # batches after which the held-back cells are looked at, at an epoch's end
FEWEST_HELD_BACK = 32  # fewer would decide by chance
N_TRIPLETS = 20_000


def fit_rank_by_gene(
    network: RankByGeneNetwork,
    task: Task,
    losses: Losses,
    *,
    fit: RankByGeneSettings,
    seed: int,
    device: str | None,
    slides: Sequence[str] | None = None,
) -> History:
    """Train ``network`` in place; its teacher is the result, with the weights that ordered held-back cells best.

    Returns
    -------
    Mean loss and terms, and the order agreement of the held-back cells, an entry an epoch.

    Warns
    -----
    UserWarning
        If held-back cells of a slide (by its name in ``slides``) all express the same, so that they have no order.
    """
    rng, everyone = np.random.default_rng(seed), np.arange(len(task.library))
    fitted, held_back = validation_part(task.xy, everyone, share=fit.validation, margin=fit.margin)
    check = None
    if len(held_back) >= FEWEST_HELD_BACK:
        check = HeldBack(task, held_back, losses.scales, rng, slides)
        if check.tied:
            what = "all express the same, so that there is no order to judge by: they are left out of it"
            warnings.warn(f"The held-back cells of {', '.join(check.tied)} {what}.", UserWarning, stacklevel=3)
        check = check if check.scales else None
    run = _Run(network, task, losses, fitted if check else everyone, fit, rng, seed, device)
    if check:
        check.look(network, run.fabric.device)
    history, since = History(), 0
    bar = tqdm(total=run.n_epochs * run.steps, desc="rank by gene", unit="batch", disable=not package_settings.progress)
    for epoch in range(run.n_epochs):
        means = run.epoch(bar)
        since += run.steps
        if check and (since >= CHECK_EVERY or epoch + 1 == run.n_epochs):
            check.look(network, run.fabric.device)
            since = 0
        history.add(epoch=epoch + 1, train_loss=means.pop("loss"), **means, **(check.entry() if check else {}))
    bar.close()
    if check:
        network.teacher.load_state_dict(check.best.state)
        log.info(
            "rank by gene: order agreement of held-back cells %.3f, at the start %.3f", -check.best.score, check.first
        )
    network.eval().requires_grad_(False).to("cpu")
    return history


class HeldBack:
    """Training cells that do not teach: how well the teacher orders them, and its weights when it did best.

    Slides differ by stain and batch, so what orders the cells of all of them need not order those of one: triplets are
    drawn on the scales that are trained, and the scales count alike. Slides whose cells all express the same are
    ``tied``: they have no order, and their agreement would be NaN.
    """

    def __init__(
        self,
        task: Task,
        cells: NDArray[np.integer],
        scales: tuple[str, ...],
        rng: np.random.Generator,
        slides: Sequence[str] | None = None,
    ) -> None:
        n = task.views.n_checked
        self.task, self.cells = task, np.sort(rng.choice(cells, n, replace=False)) if len(cells) > n else cells
        self.scales: list[list[tuple[Any, ...]]] = []
        self.tied: list[str] = []
        for members in _members(task.library[self.cells], scales):
            parts = []
            for some in members:
                triplets = draw_triplets(len(some), N_TRIPLETS // len(members), rng)
                wanted = gaps(unit_rows(task.target[self.cells[some]]), triplets)
                if wanted.any():
                    parts.append((some, triplets, wanted))
                else:
                    codes = np.unique(task.library[self.cells[some]])
                    self.tied.append("+".join(repr(slides[i]) if slides else f"slide {i}" for i in codes))
            if parts:
                self.scales.append(parts)
        self.last = self.first = float("nan")
        self.best = BestEpoch()

    @torch.no_grad()
    def look(self, network: RankByGeneNetwork, device: torch.device) -> None:
        """Judge the teacher as it is now."""
        found = []
        network.teacher.eval()
        for part in np.array_split(self.cells, max(1, len(self.cells) // 256)):
            weak = self.task.views.plain(part)
            found.append(network.teacher(weak.to(device)).float().cpu())
        self.last = self._agreement(torch.cat(found).numpy())
        if not self.best.n_seen:
            self.first = self.last
        self.best.see(-self.last, lambda: copy.deepcopy(network.teacher.state_dict()))

    def _agreement(self, projections: NDArray[np.floating]) -> float:
        """Mean over scales of the mean over their slides."""
        of_scales = [
            np.mean([order_agreement(gaps(unit_rows(projections[some]), t), wanted)[0] for some, t, wanted in parts])
            for parts in self.scales
        ]
        return float(np.mean(of_scales))

    def entry(self) -> dict[str, float]:
        """For the history."""
        return {"validation_agreement": self.last}


def _members(library: NDArray[np.int64], scales: tuple[str, ...]) -> list[list[NDArray[np.intp]]]:
    """For each scale, the held-back cells among whom an order is asked; neighbors are cells of a slide here."""
    found = []
    slides = [np.flatnonzero(library == one) for one in np.unique(library)]
    enough = [cells for cells in slides if len(cells) >= FEWEST]
    if enough and set(scales) & {"neighborhood", "slide"}:
        found.append(enough)
    if "across" in scales or not found:
        found.append([np.arange(len(library))])
    return found


class _Run:
    """Optimizer, schedule and sources of chance of one training."""

    def __init__(
        self,
        network: RankByGeneNetwork,
        task: Task,
        losses: Losses,
        fitted: NDArray[np.integer],
        fit: RankByGeneSettings,
        rng: np.random.Generator,
        seed: int,
        device: str | None,
    ) -> None:
        self.network, self.task, self.losses, self.fitted, self.fit, self.rng = network, task, losses, fitted, fit, rng
        self.fabric = make_fabric(device, precision=fit.precision)
        self.generator = torch.Generator().manual_seed(seed)
        self.steps = max(1, len(fitted) // fit.batch_size)  # batches an epoch
        self.n_epochs = max(fit.max_epochs, math.ceil(fit.min_steps * fit.accumulate / self.steps))
        total = self.n_epochs * self.steps / fit.accumulate
        optimizer = torch.optim.AdamW(_parameter_groups(network, fit), weight_decay=fit.weight_decay)
        self.wrapped, self.optimizer = self.fabric.setup(network, optimizer)
        self.schedule = warm_cosine(self.optimizer, total, fit.warmup)
        self.per_block = fit.cells_per_block if "neighborhood" in losses.scales else None
        self.n_batches = 0

    def epoch(self, bar: Any) -> dict[str, float]:
        """Once through the cells; mean of the loss and its terms."""
        _train_mode(self.network)
        seen: list[dict[str, Tensor]] = []
        for cells, block in self.task.batches(self.fitted, self.fit.batch_size, self.per_block, self.rng):
            terms = self.loss(cells, block)
            self.fabric.backward(terms["loss"] / self.fit.accumulate)
            self.n_batches += 1
            if self.n_batches % self.fit.accumulate == 0:
                self.step()
            seen.append({name: term.detach() for name, term in terms.items()})
            bar.update()
        return {name: torch.stack([terms[name] for terms in seen]).mean().item() for name in seen[0]}

    def step(self) -> None:
        """Of the optimizer, and then of the teacher."""
        self.fabric.clip_gradients(self.wrapped, self.optimizer, max_norm=self.fit.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.network.update_teacher()

    def loss(self, cells: NDArray[np.integer], block: NDArray[np.int64]) -> dict[str, Tensor]:
        """And its terms, of one batch."""
        strong, weak = self.task.views(cells, self.generator)
        expression = torch.from_numpy(self.task.expression[cells])
        target = torch.from_numpy(self.task.target[cells])
        strong, weak, expression, target = self.fabric.to_device((strong, weak, expression, target))
        student, taught, genes = (projection.float() for projection in self.wrapped(strong, weak, expression))
        parts = {"neighborhood": block, "slide": self.task.library[cells], "across": np.zeros_like(block)}
        terms = rank_by_gene_loss(
            self.network,
            (student, taught, genes),
            target,
            [torch.from_numpy(parts[scale]) for scale in self.losses.scales],
            temperature=self.losses.temperature,
            rank_weight=self.losses.rank_weight,
            distill_weight=self.losses.distill_weight,
            kind=self.losses.kind,
            n_pairs=self.fit.n_pairs,
            generator=self.generator,
        )
        self.network.remember(genes, taught)
        return terms


def _parameter_groups(network: RankByGeneNetwork, fit: RankByGeneSettings) -> list[dict[str, Any]]:
    backbone = [] if network.student.backbone is None else list(network.student.backbone.parameters())
    slow = {id(p) for p in backbone}
    heads = [p for part in (network.student, network.genes) for p in part.parameters() if id(p) not in slow]
    groups = [{"params": heads, "lr": fit.learning_rate}]
    if backbone:
        groups.append({"params": backbone, "lr": fit.backbone_learning_rate})
    return groups


def _train_mode(network: RankByGeneNetwork) -> None:
    """Training, but for the backbone's batch norms: statistics of a few crops would be worse than those it has."""
    network.train()
    if network.student.backbone is not None:
        network.student.backbone.eval()

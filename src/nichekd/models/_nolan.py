"""NOLAN: self-distillation of neighborhoods onto K prototypes, after the description of Bakulin et al."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nichekd.models._neighborhood_batch import NeighborhoodBatch, random_rotations
from nichekd.models._neighborhood_transformer import NeighborhoodConfig, neighborhood_network

Balance = Literal["centering", "sinkhorn"]


@dataclass(frozen=True)
class NolanSettings:
    """How NOLAN is trained.

    Attributes
    ----------
    n_steps, batch_size
        Gradient steps, and neighborhoods in one.
    n_local
        Local crops beside the two global ones.
    local_radius, local_shift
        Radius of a local crop, and how far its centre may lie from the cell's, both in radii.
    cell_dropout
        Range of the share of cells that a view loses.
    feature_dropout
        Share of feature dimensions that a view loses.
    student_temperature, teacher_temperature
        Of the two softmaxes over the prototypes.
    balance
        What keeps prototypes alive: ``"centering"`` of the teacher's logits or ``"sinkhorn"`` over a batch.
    center_momentum
        Of the running centre.
    momentum
        Of the teacher's weights at the start; it goes to 1 along a cosine.
    learning_rate, weight_decay, clip, warmup
        AdamW's; weight decay goes from its first to its second value, ``warmup`` is a share of ``n_steps``.
    n_warm_start
        Steps in which the network first learns the k-means partition of neighborhood means, so that runs from
        different seeds start, and so end, at the same prototypes; 0 starts from random ones.
    """

    n_steps: int = 300
    batch_size: int = 192
    n_local: int = 2
    local_radius: float = 0.75
    local_shift: float = 0.25
    cell_dropout: tuple[float, float] = (0.1, 0.3)
    feature_dropout: float = 0.2
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    balance: Balance = "centering"
    center_momentum: float = 0.9
    momentum: float = 0.996
    learning_rate: float = 5e-4
    weight_decay: tuple[float, float] = (0.04, 0.4)
    clip: float = 3.0
    warmup: float = 0.1
    n_warm_start: int = 150

    def __post_init__(self) -> None:
        if self.balance not in get_args(Balance):
            raise ValueError(f"balance={self.balance!r}; choose from {list(get_args(Balance))}.")
        if self.batch_size < 1 or self.n_steps < 0 or self.n_warm_start < 0:
            raise ValueError(
                f"batch_size={self.batch_size}, n_steps={self.n_steps}, n_warm_start={self.n_warm_start}; a batch has at "
                "least one cell, and steps are not negative."
            )


class PrototypeHead(nn.Module):
    """Three-layer MLP, L2 norm, cosines to K unit prototypes: the cosines are the niche logits."""

    def __init__(self, d_model: int, n_prototypes: int, *, d_hidden: int = 256, d_bottleneck: int = 64) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(d_model, d_hidden),
            nn.GELU(),
            nn.Linear(d_hidden, d_hidden),
            nn.GELU(),
            nn.Linear(d_hidden, d_bottleneck),
        )
        self.prototypes = nn.Parameter(torch.randn(n_prototypes, d_bottleneck))

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, d) → (B, K), in [-1, 1]."""
        return F.normalize(self.mlp(embedding), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class NolanNetwork(nn.Module):
    """Neighborhood network and prototype head, on standardised features."""

    def __init__(self, config: NeighborhoodConfig, n_prototypes: int) -> None:
        super().__init__()
        self.backbone = neighborhood_network(config)
        self.head = PrototypeHead(config.d_model, n_prototypes)

    def forward(self, batch: NeighborhoodBatch) -> Tensor:
        """Logits, (B, K)."""
        return self.head(self.backbone(batch))


class ViewMaker:
    """Random views of a batch of neighborhoods."""

    def __init__(self, settings: NolanSettings, generator: torch.Generator) -> None:
        self.settings, self.generator = settings, generator

    def global_view(self, batch: NeighborhoodBatch) -> NeighborhoodBatch:
        """All of the neighborhood, less what dropout takes, rotated and perhaps reflected."""
        return self._augment(batch)

    def local_view(self, batch: NeighborhoodBatch) -> NeighborhoodBatch:
        """A smaller disc around another cell near the centre."""
        s = self.settings
        near = batch.mask & (batch.offset.norm(dim=-1) <= s.local_shift)  # (B, L); the centre is always near
        chosen = torch.where(near, self._rand(near.shape), -1.0).argmax(1)  # (B,)
        row = torch.arange(len(chosen))
        offset = batch.offset - batch.offset[row, chosen][:, None]
        mask = batch.mask & (offset.norm(dim=-1) <= s.local_radius)
        swap = torch.arange(mask.shape[1]).repeat(len(chosen), 1)
        swap[:, 0], swap[row, chosen] = chosen, 0
        return self._augment(
            NeighborhoodBatch(
                batch.features,
                batch.token.gather(1, swap),
                offset.gather(1, swap.unsqueeze(-1).expand(-1, -1, 2)),
                mask.gather(1, swap),
            )
        )

    def _augment(self, batch: NeighborhoodBatch) -> NeighborhoodBatch:
        s, n = self.settings, len(batch.token)
        low, high = s.cell_dropout
        share = low + (high - low) * self._rand((n, 1))
        kept = self._rand(batch.mask.shape) >= share
        kept[:, 0] = True
        # one draw a view, not a cell: the network has to do without these dimensions everywhere
        alive = self._rand((batch.features.shape[1],)) >= s.feature_dropout
        return NeighborhoodBatch(
            batch.features * alive / max(1 - s.feature_dropout, 1e-6),
            batch.token,
            batch.offset @ random_rotations(n, self.generator),
            batch.mask & kept,
        )

    def _rand(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        return torch.rand(shape, generator=self.generator)


class NolanLoss(nn.Module):
    """Cross-entropy between the teacher's and the student's view of a neighborhood, over pairs of different views."""

    center: Tensor

    def __init__(self, settings: NolanSettings, n_prototypes: int) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("center", torch.zeros(n_prototypes))

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Mean over pairs; ``teacher`` holds the logits (B, K) of the global views, ``student`` those of all views."""
        targets = [self.target(logits) for logits in teacher]
        log_q = [F.log_softmax(logits / self.settings.student_temperature, dim=-1) for logits in student]
        terms = [-(p * q).sum(-1).mean() for i, p in enumerate(targets) for j, q in enumerate(log_q) if i != j]
        self.update_center(torch.cat(teacher))
        return torch.stack(terms).mean()

    @torch.no_grad()
    def target(self, logits: Tensor) -> Tensor:
        """The teacher's distribution over prototypes, (B, K)."""
        tau = self.settings.teacher_temperature
        if self.settings.balance == "sinkhorn":
            return sinkhorn(logits / tau)
        return F.softmax((logits - self.center) / tau, dim=-1)

    @torch.no_grad()
    def update_center(self, logits: Tensor) -> None:
        """Running mean of the teacher's logits."""
        m = self.settings.center_momentum
        self.center.mul_(m).add_(logits.mean(0), alpha=1 - m)


def sinkhorn(scores: Tensor, n_iterations: int = 3) -> Tensor:
    """Distributions over prototypes, (B, K), in which a batch uses every prototype alike :cite:`Caron2020`."""
    log_q = scores  # in logarithms: a dying prototype's column may be too small for float32
    for _ in range(n_iterations):
        log_q = F.log_softmax(log_q, dim=0)
        log_q = F.log_softmax(log_q, dim=1)
    return log_q.exp()


class MeanTeacher:
    """The exponential moving average of a network, which gives the targets."""

    def __init__(self, network: NolanNetwork) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, network: NolanNetwork, momentum: float) -> None:
        """Move towards ``network`` by ``1 - momentum``."""
        for mine, theirs in zip(self.network.parameters(), network.parameters(), strict=True):
            mine.lerp_(theirs, 1 - momentum)


def cosine(start: float, end: float, progress: float) -> float:
    """From ``start`` to ``end`` along half a cosine, ``progress`` in [0, 1]."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))

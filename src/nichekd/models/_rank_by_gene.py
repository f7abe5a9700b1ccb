"""RankByGene: image features whose similarity order follows that of gene expression."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nichekd.models._rank_losses import cosine_similarity, info_nce, rank_loss

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nichekd.models._rank_losses import RankLoss

SMALL = 0.1
CONSTANT = 1e-6  # standard deviation, relative to the mean, below which a column says nothing


class Standardize(nn.Module):
    """Columns of mean 0 and standard deviation 1 on the training cells; constant ones are 0."""

    mean: Tensor
    scale: Tensor

    def __init__(self, n_columns: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_columns))
        self.register_buffer("scale", torch.ones(n_columns))

    def fit(self, mean: NDArray[np.floating], sd: NDArray[np.floating]) -> Standardize:
        """Take means and standard deviations, (n_columns,) each."""
        average, spread = torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(sd, dtype=torch.float64)
        varies = spread > CONSTANT * average.abs().clamp_min(1)
        self.mean.copy_(average)
        self.scale.copy_(torch.where(varies, 1 / torch.where(varies, spread, 1.0), 0.0))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_columns) → the same shape."""
        return (x - self.mean) * self.scale


class ProjectionHead(nn.Module):
    r""":math:`P(x) = \mathrm{LN}(V \, \mathrm{GELU}(W x) + W x)`, a linear map and a correction of it.

    Parameters
    ----------
    n_in, n_out
        Lengths of the vectors it takes and returns.
    dropout
        Of what the correction adds, in training.
    """

    def __init__(self, n_in: int, n_out: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        self.hidden = nn.Linear(n_out, n_out)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(n_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in) → (B, n_out)."""
        linear = self.linear(x)
        return self.norm(linear + self.dropout(self.hidden(F.gelu(linear))))


class Branch(nn.Module):
    """Numbers of a cell, or its crop where there is a backbone, to its projection.

    Parameters
    ----------
    n_in
        Features, or genes.
    n_out
        Length of the projection.
    backbone
        Crops, normalised, to features; ``None`` where features are handed in.
    dropout
        Of the head.
    """

    def __init__(self, n_in: int, n_out: int, *, backbone: nn.Module | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.standardize = Standardize(n_in)
        self.head = ProjectionHead(n_in, n_out, dropout=dropout)

    def start(self, rows: Tensor, *, alike: bool = False, seed: int = 0) -> Branch:
        """Begin at the leading principal components of ``rows``, (m, n_in): at the order that is there already.

        Few cells would otherwise have to find again what the features know; the correction starts small. ``alike``
        divides all columns by one standard deviation rather than each by its own, which keeps the rows' cosines.
        """
        from sklearn.decomposition import PCA

        values = rows.numpy()
        mean, sd = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
        if alike:
            sd = np.full_like(sd, np.sqrt((sd**2).mean()))
        self.standardize.fit(mean, sd)
        scaled = self.standardize(rows)
        linear = self.head.linear
        n_components = min(linear.out_features, len(rows) - 1, linear.in_features)
        solver = "randomized" if n_components < 0.8 * min(scaled.shape) else "full"
        pca = PCA(n_components, svd_solver=solver, random_state=seed).fit(scaled.numpy())
        unit = max(float(pca.explained_variance_.mean()), 1e-12) ** 0.5
        with torch.no_grad():
            linear.weight[:n_components] = torch.from_numpy(pca.components_ / unit).float()
            linear.bias.zero_()
            self.head.hidden.weight.mul_(SMALL)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in), or crops (B, 3, h, w) → (B, n_out)."""
        if self.backbone is not None:
            x = self.backbone(x).float()
        return self.head(self.standardize(x))


class RankByGeneNetwork(nn.Module):
    """A student that sees strongly changed images, its moving average that sees them as they are, and the genes.

    Parameters
    ----------
    student
        The image branch; its teacher starts as a copy of it, head included.
    genes
        The expression branch.
    momentum
        Share of the teacher that a step keeps.
    queue_size
        Projections of earlier batches that the contrastive terms are told apart from; 0 for none.
    """

    queue_genes: Tensor
    queue_teacher: Tensor

    def __init__(self, student: Branch, genes: Branch, *, momentum: float, queue_size: int = 0) -> None:
        super().__init__()
        self.student, self.genes, self.momentum = student, genes, momentum
        self.teacher = copy.deepcopy(student).requires_grad_(False)
        self.queue_size = queue_size
        n_out = student.head.norm.normalized_shape[0]
        self.register_buffer("queue_genes", torch.zeros(0, n_out), persistent=False)
        self.register_buffer("queue_teacher", torch.zeros(0, n_out), persistent=False)

    def forward(self, strong: Tensor, weak: Tensor, expression: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projections of student, teacher and genes, (B, n_out) each."""
        with torch.no_grad():
            self.teacher.eval()
            taught = self.teacher(weak)
        return self.student(strong), taught, self.genes(expression)

    @torch.no_grad()
    def update_teacher(self) -> None:
        r"""After a step of the optimizer: :math:`\theta_t \leftarrow m \theta_t + (1 - m) \theta_s`, exactly."""
        for taught, learned in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            taught.lerp_(learned.detach(), 1 - self.momentum)
        for kept, current in zip(self.teacher.buffers(), self.student.buffers(), strict=True):
            kept.copy_(current)

    @torch.no_grad()
    def remember(self, genes: Tensor, taught: Tensor) -> None:
        """Put a batch's projections at the end of the queues; the oldest leave."""
        if self.queue_size:
            self.queue_genes = torch.cat([self.queue_genes, genes.detach()])[-self.queue_size :]
            self.queue_teacher = torch.cat([self.queue_teacher, taught.detach()])[-self.queue_size :]


def rank_by_gene_loss(
    network: RankByGeneNetwork,
    projections: tuple[Tensor, Tensor, Tensor],
    target: Tensor,
    groups: list[Tensor],
    *,
    temperature: float,
    rank_weight: float,
    distill_weight: float,
    kind: RankLoss,
    n_pairs: int,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    r"""The terms of :math:`\mathrm{NCE}(s, g) + \alpha L_{rank} + \beta \mathrm{NCE}(s, t)` :cite:`Huang2024`.

    Parameters
    ----------
    network
        Whose queues are read.
    projections
        s, t and g, (B, d) each.
    target
        Standardised expression, (B, G), whose similarities set the order; the published loss takes g's instead.
    groups
        A partition of the batch for each scale, see :func:`nichekd.models._rank_losses.rank_loss`.
    temperature, rank_weight, distill_weight
        :math:`\tau`, :math:`\alpha` and :math:`\beta`; a term of weight 0 is not computed.
    kind, n_pairs, generator
        As of the rank loss.

    Returns
    -------
    ``loss`` and its terms ``contrastive``, ``rank`` and ``distill``, scalars.
    """
    student, taught, genes = projections
    terms = {"contrastive": info_nce(student, genes, temperature, queue=network.queue_genes)}
    if rank_weight:
        wanted = cosine_similarity(genes if kind == "published" else target)
        ranked = rank_loss(cosine_similarity(student), wanted, groups, kind=kind, n_pairs=n_pairs, generator=generator)
        terms["rank"] = ranked
    if distill_weight:
        terms["distill"] = info_nce(student, taught, temperature, queue=network.queue_teacher)
    weights = {"contrastive": 1.0, "rank": rank_weight, "distill": distill_weight}
    return {"loss": torch.stack([weights[name] * term for name, term in terms.items()]).sum()} | {
        name: term.detach() for name, term in terms.items()
    }

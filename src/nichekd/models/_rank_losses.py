"""Losses that make one similarity order follow another, and the contrastive one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

RankLoss = Literal["hinge", "soft_rank", "published"]

SOFTNESS = 0.1  # of a soft rank, in standard deviations of the row's similarities
FEWEST = 4  # cells of a group: an anchor, and three others to order


def cosine_similarity(x: Tensor) -> Tensor:
    """Between all rows of (B, d), (B, B)."""
    unit = F.normalize(x, dim=-1)
    return unit @ unit.T


def info_nce(query: Tensor, key: Tensor, temperature: float, *, queue: Tensor | None = None) -> Tensor:
    r"""Contrastive loss of pairs, one way :cite:`Oord2018`.

    :math:`-\frac{1}{B} \sum_i \log \frac{\exp(\cos(q_i, k_i) / \tau)}{\sum_j \exp(\cos(q_i, k_j) / \tau)}`.

    Parameters
    ----------
    query, key
        (B, d); row i of one belongs to row i of the other.
    temperature
        :math:`\tau`.
    queue
        Keys of earlier batches :cite:`He2020`, (Q, d): more to tell the right one from, and no gradient into them.

    Returns
    -------
    Scalar, nats.
    """
    keys = key if queue is None else torch.cat([key, queue.detach()])
    logits = F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).T / temperature  # (B, B + Q)
    return F.cross_entropy(logits, torch.arange(len(query), device=query.device))


def candidates(group: Tensor, n_candidates: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Members of each anchor's own group, drawn at random, the anchor itself never among them.

    Parameters
    ----------
    group
        Group of each row, (B,).
    n_candidates
        To draw for each anchor, with replacement.

    Returns
    -------
    Anchors, (A,), those whose group has four members or more; and their candidates, (A, ``n_candidates``).
    """
    group = group.cpu()
    _, code, size = torch.unique(group, return_inverse=True, return_counts=True)
    order = torch.argsort(code, stable=True)  # members of a group side by side
    start = size.cumsum(0) - size
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))  # where a row is in ``order``
    anchors = torch.nonzero(size[code] >= FEWEST).squeeze(1)
    n, first = size[code[anchors]][:, None], start[code[anchors]][:, None]
    step = 1 + (torch.rand(len(anchors), n_candidates, generator=generator) * (n - 1)).long().clamp(max=n - 2)
    return anchors, order[first + (place[anchors][:, None] - first + step) % n]


def hinge_rank_loss(image: Tensor, genes: Tensor) -> Tensor:
    r"""How far the image's order of pairs, and the gaps between them, fall short of the genes'.

    :math:`\max(0, -\mathrm{sign}(\Delta G) \Delta I + |\Delta G|)`, :math:`\Delta` the difference of an anchor's
    similarities to the two candidates of a pair, G in genes and I in image. It is 0 where every gap is as wide as the
    genes' and of the same sign. No gradient goes into the genes.

    Parameters
    ----------
    image, genes
        Similarities of each anchor to its candidates, (A, 2 P): the first P and the last P are compared one by one.

    Returns
    -------
    Scalar; the mean over pairs that differ in genes.
    """
    gap = _gaps(genes.detach())
    short = F.relu(gap.abs() - gap.sign() * _gaps(image))
    return short.sum() / (gap != 0).sum().clamp_min(1)


def soft_rank_loss(image: Tensor, genes: Tensor, *, softness: float = SOFTNESS) -> Tensor:
    r"""1 − Spearman's correlation of an anchor's similarities, the image's ranks made differentiable.

    A soft rank is :math:`\sum_j \sigma((s_i - s_j) / \tau)` :cite:`Qin2010`, :math:`\tau` a share ``softness`` of the
    row's standard deviation, so that the spread of the similarities plays no part. About 0 for the same order, 1 where
    all similarities are the same, 2 for the reverse. No gradient goes into the genes.

    Parameters
    ----------
    image, genes
        Similarities of each anchor to its candidates, (A, C).
    """
    spread = image.std(dim=1, keepdim=True).clamp_min(1e-6)
    scaled = image / (softness * spread)
    soft = torch.sigmoid(scaled[:, :, None] - scaled[:, None, :]).sum(-1)  # (A, C)
    target = genes.detach()
    hard = (target[:, :, None] > target[:, None, :]).float().sum(-1)
    hard = hard + 0.5 * (target[:, :, None] == target[:, None, :]).float().sum(-1)  # ties share their ranks
    return (
        1 - F.cosine_similarity(soft - soft.mean(1, keepdim=True), hard - hard.mean(1, keepdim=True), eps=1e-6).mean()
    )


def published_rank_loss(image: Tensor, genes: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    r"""The loss as the public code of RankByGene :cite:`Huang2024` has it, kept to be compared with.

    Rows of both similarity matrices become probabilities (softmax), rows are permuted alike, and each entry is
    compared with the one before it in the flattened matrix: :math:`\frac{1}{B} \sum \max(0, |\Delta A^I| - |\Delta
    A^G|)`. It does not see signs: a fully reversed order costs nothing, nor do similarities that are all the same.
    Gradients go into the genes, too.

    Parameters
    ----------
    image, genes
        All similarities of a batch, (B, B).
    """
    order = torch.randperm(len(image), generator=generator).to(image.device)
    gaps = [_gaps_to_previous(similarity.softmax(dim=1)[order]) for similarity in (image, genes)]
    return F.relu(gaps[0].abs() - gaps[1].abs()).sum() / len(image)


def _gaps(similarity: Tensor) -> Tensor:
    first, second = similarity.chunk(2, dim=1)
    return first - second


def _gaps_to_previous(matrix: Tensor) -> Tensor:
    flat = matrix.flatten()
    return flat - flat.roll(1)


def rank_loss(
    image: Tensor,
    genes: Tensor,
    groups: list[Tensor],
    *,
    kind: RankLoss = "hinge",
    n_pairs: int = 32,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One of the rank losses, on several scales.

    Parameters
    ----------
    image, genes
        Similarities of all cells of a batch, (B, B).
    groups
        A partition of the batch, (B,), for each scale: an anchor's candidates come from its own part. The published
        loss knows no parts.
    kind
        Which loss.
    n_pairs
        Pairs an anchor and scale.
    generator
        Source of the pairs.

    Returns
    -------
    Scalar; the mean over scales that have an anchor.
    """
    if kind == "published":
        return published_rank_loss(image, genes, generator=generator)
    losses = []
    for group in groups:
        anchors, others = candidates(group, 2 * n_pairs if kind == "hinge" else n_pairs, generator)
        if len(anchors):
            rows, columns = anchors[:, None].to(image.device), others.to(image.device)
            compare = hinge_rank_loss if kind == "hinge" else soft_rank_loss
            losses.append(compare(image[rows, columns], genes[rows, columns]))
    return torch.stack(losses).mean() if losses else image.sum() * 0

"""What the training tissue looked like, so that a student can tell tissue of another kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from numpy.typing import NDArray

WITHIN = 0.95  # share of training tissue, left out of the fit, that scores below 1
AT_ONCE = 65_536  # rows that are compared with the means at once
FEWEST = 2  # cells that a covariance is taken of
FLAT = 1e-6  # variance, relative to the largest, below which a direction has none but rounding


class TrainingRange(nn.Module):
    r"""How far a neighborhood is from those of training; 1 where all but 5 % of training tissue lies nearer.

    .. math:: s(x) = \frac{1}{d_{95}} \min_k \sqrt{(x - \mu_k)^\top \Sigma_n^{-1} (x - \mu_k)}, \qquad
              \Sigma_n = \Sigma + \max(0, 1/n - 1/\bar n) \, I

    with x the mean of a neighborhood's whitened features, :math:`\mu_k` that of the training cells of niche k, and
    :math:`\Sigma` the covariance within niches: the Mahalanobis distance of :cite:`Lee2018`. A mean of n cells that are
    fewer than training's :math:`\bar n` varies more, and no more than as much as whitened cells, which have covariance
    I.

    Means and a covariance are kept, not training cells themselves, among which the nearest would have to be found: they
    are as small for a million cells as for a thousand, and a student that is shared carries nobody's cells.

    Parameters
    ----------
    n_components
        Length of x, C.
    n_groups
        Niches of all sections that the student was trained on, G.
    """

    means: Tensor
    covariance: Tensor
    limit: Tensor
    size: Tensor

    def __init__(self, n_components: int, n_groups: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(n_groups, n_components))
        self.register_buffer("covariance", torch.zeros(n_components, n_components))
        self.register_buffer("limit", torch.ones(()))
        self.register_buffer("size", torch.ones(()))

    @classmethod
    def of(
        cls,
        rows: NDArray[np.floating],
        groups: NDArray[np.integer],
        sizes: NDArray[np.integer],
        *,
        parts: NDArray[np.integer],
        lone: NDArray[np.bool_],
        held: NDArray[np.bool_] | None = None,
        before: TrainingRange | None = None,
    ) -> TrainingRange:
        """Of training cells.

        Parameters
        ----------
        rows
            Neighborhood means, (n, C).
        groups
            Niche of each, (n,).
        sizes
            Cells of each neighborhood, (n,).
        parts
            Parts of the tissue, (n,). The limit is the distance of cells of one part from the others, because cells
            share neighborhoods with those beside them, and would look nearer than new tissue of the same kind.
        lone
            Cells whose neighborhoods hardly overlap, (n,): the covariance is theirs. To shrink it by how many there
            are, they have to be counted once.
        held
            Cells that neither the features' encoder nor the student learned from, (n,), if there are some: the limit is
            their distance from the others where that is the larger one, since features of an encoder that was trained
            on this very tissue spread less there than on new tissue of the same kind.
        before
            Range of the sections that the student was trained on earlier, which goes on to be in range.
        """
        rows = rows.astype(np.float64)
        size = 1 / (1 / sizes[lone]).mean()
        if before is not None:
            size = (size + float(before.size)) / 2
        extra = _extra(sizes, size)

        def left_out(out: NDArray[np.bool_]) -> NDArray[np.float64]:
            """Distances of some cells from the others; none where the others are too few."""
            if np.count_nonzero(lone & ~out) < FEWEST:
                return np.empty(0)
            return _distances(rows[out], extra[out], *_gaussians(rows[~out], groups[~out], lone[~out], before))

        means, covariance = _gaussians(rows, groups, lone, before)
        of_parts = np.concatenate([left_out(parts == part) for part in np.unique(parts)])
        if not len(of_parts):
            of_parts = _distances(rows, extra, means, covariance)
        of_held = left_out(held) if held is not None else np.empty(0)
        limit = max(float(np.quantile(found, WITHIN)) for found in (of_parts, of_held) if len(found))
        made = cls(rows.shape[1], len(means))
        made.means.copy_(torch.from_numpy(means))
        made.covariance.copy_(torch.from_numpy(covariance))
        made.limit.fill_(max(limit, float(before.limit) if before is not None else 0.0, FLAT))
        made.size.fill_(size)
        return made

    def score(self, rows: NDArray[np.floating], sizes: NDArray[np.integer]) -> NDArray[np.float32]:
        """Distances of neighborhood means (n, C), of so many cells (n,) each, in units of the limit, (n,)."""
        means, covariance = self.means.double().numpy(), self.covariance.double().numpy()
        distances = _distances(rows, _extra(sizes, float(self.size)), means, covariance)
        return (distances / float(self.limit)).astype(np.float32)


def _extra(sizes: NDArray[np.integer], size: float) -> NDArray[np.float64]:
    """Variance that means of fewer cells than ``size`` have besides, (n,)."""
    return np.maximum(0.0, 1 / np.asarray(sizes, dtype=np.float64) - 1 / size)


def _gaussians(
    rows: NDArray[np.floating],
    groups: NDArray[np.integer],
    lone: NDArray[np.bool_],
    before: TrainingRange | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means of the groups that have cells, (G, C), and the covariance within them, (C, C)."""
    from sklearn.covariance import ledoit_wolf

    _, code = np.unique(groups, return_inverse=True)
    means = np.stack([rows[code == k].mean(axis=0) for k in range(code.max() + 1)])
    covariance, _ = ledoit_wolf(rows[lone] - means[code[lone]], assume_centered=True)
    if before is None:
        return means, covariance
    earlier = before.covariance.double().numpy()
    return np.concatenate([before.means.double().numpy(), means]), (earlier + covariance) / 2


def _distances(
    rows: NDArray[np.floating],
    extra: NDArray[np.float64],
    means: NDArray[np.float64],
    covariance: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Mahalanobis distance of each row from the nearest mean, (n,); ``extra`` is added to its variance."""
    variance, axes = np.linalg.eigh(covariance)
    kept = variance > FLAT * max(float(variance.max()), FLAT)
    variance, axes = variance[kept], axes[:, kept]
    nearest = np.full(len(rows), np.inf)
    for start in range(0, len(rows), AT_ONCE):
        here = slice(start, start + AT_ONCE)
        weight = 1 / np.sqrt(variance + extra[here, None])  # (b, C)
        turned = (np.asarray(rows[here], dtype=np.float64) @ axes) * weight
        for mean in means @ axes:
            np.minimum(nearest[here], ((turned - mean * weight) ** 2).sum(axis=1), out=nearest[here])
    return np.sqrt(nearest)

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from numpy.typing import NDArray

# a component that varies this little beside the first is rounding, and would be blown up to unit variance
SMALLEST = 1e-4


class Whiten(nn.Module):
    """Features as their leading principal components, each of mean 0 and variance 1 on the training cells.

    A thousand correlated image features and a few thousand cells invite a network to learn the cells by heart; the
    leading components hold what varies over tissue.

    Parameters
    ----------
    n_features, n_components
        Features in, and components out.
    equal
        Give all components variance 1; else they keep the ratio of their variances, whose mean is 1, so that
        distances between cells stay what they are, as clustering needs.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, n_features: int, n_components: int, *, equal: bool = True) -> None:
        super().__init__()
        self.equal = equal
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("components", torch.zeros(n_features, n_components))

    def fit(self, sample: NDArray[np.floating], *, seed: int = 0) -> Whiten:
        """Take mean, standard deviation and components from ``sample``, (n, F) training cells.

        Features are standardised before the components are found. Components that a small sample can't have stay 0.
        """
        from sklearn.decomposition import PCA

        rows = np.array(sample, dtype=np.float32)  # a copy, worked on in place: a sample may take gigabytes
        mean = rows.mean(0, dtype=np.float64)
        rows -= mean.astype(np.float32)
        sd = np.sqrt(np.einsum("nf,nf->f", rows, rows, dtype=np.float64) / max(len(rows), 1))
        varies = sd > 1e-6 * np.maximum(np.abs(mean), 1)
        scale = np.where(varies, 1 / np.where(varies, sd, 1), 0)
        rows *= scale.astype(np.float32)
        n_components = min(self.components.shape[1], len(rows) - 1, int(varies.sum()))
        matrix = np.zeros(self.components.shape)
        if n_components:
            solver = "randomized" if n_components < 0.8 * min(rows.shape) else "full"
            pca = PCA(n_components, svd_solver=solver, random_state=seed, copy=False).fit(rows)
            spread = np.sqrt(pca.explained_variance_)
            spread = spread[spread > SMALLEST * spread[0]]  # they come in descending order
            unit = spread if self.equal else np.sqrt((spread**2).mean())
            matrix[:, : len(spread)] = scale[:, None] * pca.components_[: len(spread)].T / unit
        self.mean.copy_(torch.from_numpy(mean))
        self.components.copy_(torch.from_numpy(matrix))
        return self

    @torch.no_grad()
    def rows(self, features: Any, *, block: int = 16_384) -> NDArray[np.float32]:
        """Components of feature rows (n, F), in memory or lazy, block by block: (n, n_components)."""
        # asked for beforehand: results kept between the blocks read would leave gigabytes that are never given back
        found = np.empty((features.shape[0], self.components.shape[1]), dtype=np.float32)
        for start in range(0, len(found), block):
            part = torch.from_numpy(np.array(features[start : start + block], dtype=np.float32))
            found[start : start + block] = self(part).numpy()
        return found

    def forward(self, features: Tensor) -> Tensor:
        """(M, F) → (M, n_components)."""
        return (features - self.mean) @ self.components

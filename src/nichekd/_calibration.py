"""How far probabilities are from how often they are right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_BINS = 15


def expected_calibration_error(
    proba: NDArray[np.floating], truth: NDArray[np.integer], *, n_bins: int = N_BINS
) -> float:
    r"""Mean distance of confidence and accuracy, in [0, 1] :cite:`Guo2017`.

    :math:`\sum_b \frac{n_b}{n} |\mathrm{acc}_b - \mathrm{conf}_b|`, over ``n_bins`` bins of equal width of the
    largest probability.

    Parameters
    ----------
    proba
        (n, K), rows summing to 1.
    truth
        Labels, (n,), columns of ``proba``.
    n_bins
        Bins.
    """
    confidence = proba.max(axis=1)
    right = proba.argmax(axis=1) == truth
    which = np.minimum((confidence * n_bins).astype(np.int64), n_bins - 1)
    gap = np.bincount(which, weights=right - confidence, minlength=n_bins)  # n_b (acc_b - conf_b)
    return float(np.abs(gap).sum() / len(truth))


def brier_score(proba: NDArray[np.floating], truth: NDArray[np.integer]) -> float:
    r"""Mean squared distance of the probabilities from the truth :cite:`Brier1950`, in [0, 2].

    :math:`\frac{1}{n} \sum_i \sum_k (p_{ik} - [y_i = k])^2`.
    """
    own = proba[np.arange(len(truth)), truth]
    return float(((proba**2).sum(axis=1) - 2 * own + 1).mean())


def best_temperature(logits: NDArray[np.floating], truth: NDArray[np.integer]) -> float:
    r"""The :math:`T` that minimises the negative log-likelihood of ``truth`` under softmax(logits / T).

    The likelihood is log-concave in 1 / T: one bounded search finds it.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    own = logits[np.arange(len(truth)), truth].astype(np.float64)

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float((logsumexp(logits * scale, axis=1) - own * scale).mean())

    found = minimize_scalar(loss, bounds=(np.log(1e-3), np.log(1e3)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))

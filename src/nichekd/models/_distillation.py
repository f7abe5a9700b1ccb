"""Loss and temperature of the distillation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    r"""How far the student's softened niches are from the teacher's.

    :math:`\tau^2 \cdot \frac{1}{n} \sum_i \mathrm{KL}\left(\mathrm{softmax}(a_i^{ST} / \tau) \,\|\,
    \mathrm{softmax}(a_i^{HIST} / \tau)\right)` :cite:`Hinton2015`.

    Parameters
    ----------
    student, teacher
        Logits, (B, K).
    temperature
        :math:`\tau`; the factor :math:`\tau^2` keeps the gradient's size whatever it is.

    Returns
    -------
    Scalar, nats.
    """
    p = F.log_softmax(teacher / temperature, dim=-1)
    q = F.log_softmax(student / temperature, dim=-1)
    return temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)


def normalized_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of ``softmax(logits / temperature)`` in units of log K, (B,), in [0, 1]."""
    log_p = F.log_softmax(logits / temperature, dim=-1)
    return -(log_p.exp() * log_p).sum(-1) / math.log(logits.shape[-1])


def matched_temperature(
    logits: Tensor, *, target_entropy: float = 0.3, bounds: tuple[float, float] = (1e-3, 1e3)
) -> float:
    r"""The :math:`\tau` at which the mean entropy of :math:`\mathrm{softmax}(a / \tau)` is ``target_entropy`` · log K.

    NOLAN's logits are cosines, spread over a range of two at most: at :math:`\tau = 1` they are all but uniform, and
    a student would be taught next to nothing. Logits of another teacher may be spread over hundreds.

    Parameters
    ----------
    logits
        The teacher's, (n, K).
    target_entropy
        Share of log K.
    bounds
        Range of the answer.

    Returns
    -------
    The temperature; the entropy grows with it, so bisection on its logarithm finds it.
    """
    low, high = (math.log(b) for b in bounds)
    for _ in range(50):
        middle = 0.5 * (low + high)
        if normalized_entropy(logits, math.exp(middle)).mean() < target_entropy:
            low = middle
        else:
            high = middle
    return math.exp(0.5 * (low + high))

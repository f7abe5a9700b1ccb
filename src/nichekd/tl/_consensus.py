from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

STARTS = 20
SAMPLE = 50_000


def consensus_partition(members: Sequence[NDArray[np.floating]], temperature: float, *, seed: int) -> NDArray[np.int32]:
    """One partition into K out of several: k-means of the members' probabilities side by side.

    Cells that most members put together lie close there, however each member numbers its niches.

    Parameters
    ----------
    members
        Logits, (n, K) each.
    temperature
        At which they become probabilities.
    seed
        Of k-means.

    Returns
    -------
    Labels, (n,), from 0 to K - 1.
    """
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(seed)
    beside = np.concatenate([softmax(logits / temperature, axis=1) for logits in members], axis=1)
    sample = beside if len(beside) <= SAMPLE else beside[rng.choice(len(beside), SAMPLE, replace=False)]
    return KMeans(members[0].shape[1], n_init=STARTS, random_state=seed).fit(sample).predict(beside)

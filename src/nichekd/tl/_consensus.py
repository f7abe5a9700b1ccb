from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import softmax

from nichekd.tl._kmeans import kmeans_partition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


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
    beside = np.concatenate([softmax(logits / temperature, axis=1) for logits in members], axis=1)
    return kmeans_partition(beside, members[0].shape[1], seed)

"""Cell types and counts of a simulated tissue."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

BLOCK = 10_000  # cells drawn at once, each block from its own stream
DISPERSION = 2.0  # of the negative binomial: variance = mean + mean² / 2
MEDIAN_COUNTS = 80.0
MARKER_SHARE, MARKER_FOLD = 0.6, 6.0
NICHE_SHIFT = 0.15  # sd of the log fold of a gene between niches


def compositions(rng: Generator, K: int, n_cell_types: int) -> NDArray[np.float64]:
    """Share of each cell type in each niche, (K, n_cell_types), rows sum to 1.

    A niche is told by its two commonest types: 45 % and 25 %, another pair for each. The rest is spread.
    """
    pairs = _rounds(n_cell_types)
    pairs += [(second, first) for first, second in pairs]
    rest = rng.dirichlet(np.full(n_cell_types, 3.0), size=K)
    shares = 0.3 * rest
    first, second = np.array(pairs[:K]).T
    shares[np.arange(K), first] += 0.45
    shares[np.arange(K), second] += 0.25
    return shares


def _rounds(n: int) -> list[tuple[int, int]]:
    """All pairs of ``n``, those with no member in common next to each other (a round-robin tournament's order)."""
    circle: list[int | None] = [*range(n), None] if n % 2 else [*range(n)]
    rounds = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        rounds.append([(a, b) for a, b in zip(circle[:half], circle[: half - 1 : -1], strict=True)])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return [(a, b) for a, b in chain.from_iterable(rounds) if a is not None and b is not None]


def draw_types(rng: Generator, niche: NDArray[np.int64], shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Cell type of each cell by the composition of its niche, (n_cells,)."""
    edges = np.cumsum(shares, axis=1)[:, :-1]  # (K, n_cell_types - 1)
    return (rng.uniform(size=len(niche))[:, None] > edges[niche]).sum(axis=1)


def draw_counts(
    seed: np.random.SeedSequence,
    cell_type: NDArray[np.int64],
    niche: NDArray[np.int64],
    *,
    n_cell_types: int,
    K: int,
    n_genes: int,
) -> sparse.csr_matrix:
    """Counts, (n_cells, n_genes) uint16.

    Negative binomial around library size × the type's profile × the niche's fold of the gene. A profile is a common
    log-normal base in which 60 % of the genes are markers, six-fold in one type.
    """
    profile_seed, *block_seeds = seed.spawn(1 + -(-len(niche) // BLOCK))
    rng = np.random.default_rng(profile_seed)
    profiles = np.tile(rng.lognormal(0, 0.8, n_genes), (n_cell_types, 1))
    markers = rng.permutation(n_genes)[: max(n_cell_types, round(MARKER_SHARE * n_genes))]
    profiles[np.arange(len(markers)) % n_cell_types, markers] *= MARKER_FOLD
    profiles /= profiles.sum(axis=1, keepdims=True)
    folds = rng.lognormal(0, NICHE_SHIFT, (K, n_genes))

    blocks = []
    for i, block_seed in enumerate(block_seeds):
        rng = np.random.default_rng(block_seed)
        rows = slice(i * BLOCK, (i + 1) * BLOCK)
        library = MEDIAN_COUNTS * rng.lognormal(0, 0.4, len(niche[rows]))
        mean = library[:, None] * profiles[cell_type[rows]] * folds[niche[rows]]
        counts = rng.poisson(rng.gamma(DISPERSION, mean / DISPERSION))
        blocks.append(sparse.csr_matrix(counts.astype(np.uint16)))
    return sparse.vstack(blocks, format="csr")

"""Which cells go into a batch, which validate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

CELLS_PER_BLOCK = 32
SQUARES_SEED = 0
ENOUGH_TO_HOLD_BACK = 10_000  # training cells; sections of fewer need them all to train


def spatial_batches(
    xy: NDArray[np.floating],
    cells: NDArray[np.integer],
    batch_size: int,
    rng: np.random.Generator,
    *,
    block_cells: int = CELLS_PER_BLOCK,
) -> Iterator[NDArray[np.integer]]:
    """One epoch: batches of small spatial blocks from all over the tissue.

    Neighborhoods of a block share their cells, so that a batch reads and projects some five times fewer of them than
    one of scattered cells; many blocks a batch keep its gradient that of a random sample. The grid moves every epoch.

    Parameters
    ----------
    xy
        Centres, (n, 2), µm.
    cells
        Cells to go through, each once.
    batch_size
        Cells in a batch; the last ones may be a few more or fewer.
    rng
        Source of the grid's place and of the order.
    block_cells
        Cells of a block, on average; 1 makes batches of random cells.
    """
    here = xy[cells]
    area = float(np.prod(np.maximum(np.ptp(here, axis=0), 1e-9)))
    side = np.sqrt(block_cells * area / len(cells))
    block = np.floor((here + rng.uniform(0, side, 2)) / side).astype(np.int64)
    _, block_id = np.unique(block, axis=0, return_inverse=True)
    block_id = block_id.ravel() if block_cells > 1 else np.arange(len(cells))
    shuffled = rng.permutation(block_id.max() + 1)[block_id] + rng.random(len(cells))
    n_batches = max(1, round(len(cells) / batch_size))
    batches = np.array_split(cells[np.argsort(shuffled)], n_batches)
    for i in rng.permutation(n_batches):
        yield batches[i]


def prediction_order(xy: NDArray[np.floating]) -> NDArray[np.intp]:
    """All cells, column by column of a coarse grid, so that those that follow each other are neighbors."""
    side = np.sqrt(1024 * max(float(np.prod(np.ptp(xy, axis=0))), 1e-9) / max(len(xy), 1))
    column, row = np.floor((xy - xy.min(0)) / max(side, 1e-9)).astype(np.int64).T
    return np.lexsort((xy[:, 1], row, column))


def validation_part(
    xy: NDArray[np.floating],
    train: NDArray[np.integer],
    *,
    share: float,
    margin: float,
    n_squares: int = 4,
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Cells that train and cells that validate: squares of tissue, and a margin around them that does neither.

    One region would hold few of the niches; scattered cells would share their surroundings with training cells. The
    squares are the same for the same cells, whatever the seed: an encoder and a student that read them one after the
    other are validated on tissue that neither was trained on.

    Parameters
    ----------
    xy
        Centres, (n, 2), µm.
    train
        Training cells.
    share
        Of the training cells, to validate on.
    margin
        µm around the squares whose cells do neither.
    n_squares
        Squares, each around a random cell, of equally many cells.

    Returns
    -------
    The two sets of cells; the second is empty for ``share=0``, and where too few cells would be left to train on.
    """
    here = xy[train]
    per_square = round(share * len(train) / n_squares)
    if per_square == 0:
        return train, train[:0]
    inside, near = np.zeros(len(train), dtype=bool), np.zeros(len(train), dtype=bool)
    for centre in here[np.random.default_rng(SQUARES_SEED).choice(len(train), n_squares, replace=False)]:
        distance = np.abs(here - centre).max(axis=1)
        half_side = np.partition(distance, per_square - 1)[per_square - 1]
        inside |= distance <= half_side
        near |= distance <= half_side + margin
    if np.count_nonzero(~near) < len(train) / 2:
        return train, train[:0]
    return train[~near], train[inside]


def taught_parts(
    xy: NDArray[np.floating],
    taught: NDArray[np.integer],
    among: NDArray[np.integer],
    *,
    share: float,
    margin: float,
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """The cells ``taught`` of both parts that :func:`validation_part` makes of ``among``, all training cells.

    The squares depend on the cells that they are found among: an encoder that can't use cells without transcripts, and
    a student that can't use those without a label, find the same ones only among the training cells that both have.
    """
    fitted, held_back = validation_part(xy, among, share=share, margin=margin)
    return fitted[np.isin(fitted, taught)], held_back[np.isin(held_back, taught)]

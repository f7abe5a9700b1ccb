"""What a training of RankByGene is told: settings, losses, cells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from nichekd.tl._settings_ranges import WithRanges

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from nichekd.models._rank_losses import RankLoss

SCALES = ("neighborhood", "slide", "across")


@dataclass(frozen=True)
class RankByGeneSettings(WithRanges):
    """How an aligned encoder is trained.

    Attributes
    ----------
    n_out
        Length of the features it makes.
    max_epochs, min_steps
        Passes over the training cells, and steps at least: a small section has few in an epoch.
    batch_size, accumulate
        Cells a step sees at once, and batches whose gradients are added up before a step.
    learning_rate, backbone_learning_rate, weight_decay, clip, warmup
        AdamW's; an image encoder that is trained itself moves slower.
    n_pairs
        Pairs that are compared for each anchor and scale.
    n_genes
        Most variable genes that are read where no panel is named.
    queue_size
        Projections of earlier batches in the contrastive terms.
    feature_dropout
        Share of image features that the student does without.
    dropout
        Of the heads.
    cells_per_block
        Cells of a neighborhood that go into a batch together, where the neighborhood is one of the scales.
    validation, margin
        Share of the training cells held back, as squares of tissue, and µm around them whose cells do not teach
        either; the weights that agree best with the held-back cells' order are kept. 0 trains to the end on all.
    precision
        Fabric's, e.g. ``"bf16-mixed"``.
    """

    n_out: int = 128
    max_epochs: int = 5
    min_steps: int = 1000
    batch_size: int = 256
    accumulate: int = 1
    learning_rate: float = 1e-3
    backbone_learning_rate: float = 1e-5
    weight_decay: float = 0.01
    clip: float = 3.0
    warmup: float = 0.05
    n_pairs: int = 32
    n_genes: int = 1000
    queue_size: int = 0
    feature_dropout: float = 0.2
    dropout: float = 0.0
    cells_per_block: int = 8
    validation: float = 0.1
    margin: float = 50.0
    precision: Any = "32-true"


@dataclass(frozen=True)
class Losses:
    """Which terms, how strong, on which scales."""

    kind: RankLoss
    rank_weight: float
    distill_weight: float
    temperature: float
    scales: tuple[str, ...]


class Views(Protocol):
    """What student and teacher see of cells.

    Attributes
    ----------
    n_checked
        Held-back cells that are worth their time to look at.
    """

    n_checked: int

    def __call__(self, cells: NDArray[np.integer], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Strongly changed, for the student, and weakly or not at all, for the teacher."""

    def plain(self, cells: NDArray[np.integer]) -> Tensor:
        """As they are."""


@dataclass(frozen=True)
class FeatureViews:
    """Rows of frozen features; the student misses some of the columns, another choice each batch.

    Attributes
    ----------
    features
        (m, F), of the training cells.
    fill
        What stands for a missing column, (F,): its mean.
    dropout
        Share of columns missing.
    n_checked
        As of :class:`Views`.
    """

    features: NDArray[np.floating]
    fill: Tensor
    dropout: float
    n_checked: int = 4096

    def __call__(self, cells: NDArray[np.integer], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(B, F) each."""
        weak = self.plain(cells)
        alive = torch.rand(weak.shape[1], generator=generator) >= self.dropout
        return torch.where(alive, weak, self.fill), weak

    def plain(self, cells: NDArray[np.integer]) -> Tensor:
        """(B, F)."""
        return torch.from_numpy(np.asarray(self.features[cells], dtype=np.float32))


@dataclass(frozen=True)
class Task:
    """The training cells, m of them, in rows of their own.

    Attributes
    ----------
    views
        Of their images.
    expression, target
        (m, G): what the gene branch reads, and what sets the order by its cosines.
    xy
        Centres, (m, 2), sections apart from each other, µm.
    library
        Section of each, (m,).
    """

    views: Views
    expression: NDArray[np.float32]
    target: NDArray[np.float32]
    xy: NDArray[np.float64]
    library: NDArray[np.int64]

    def batches(
        self, fitted: NDArray[np.integer], batch_size: int, cells_per_block: int | None, rng: np.random.Generator
    ) -> Iterator[tuple[NDArray[np.integer], NDArray[np.int64]]]:
        """One epoch over ``fitted``: cells, (B,), and the neighborhood each was drawn with; 0 for no blocks."""
        block = np.zeros(len(fitted), dtype=np.int64)
        order = rng.permutation(len(fitted))
        if cells_per_block is not None:
            block = self._blocks(fitted, cells_per_block, rng)
            order = np.argsort(rng.permutation(block.max() + 1)[block] + rng.random(len(fitted)))
        for part in np.array_split(order, max(1, len(fitted) // batch_size)):
            yield fitted[part], block[part]

    def _blocks(self, fitted: NDArray[np.integer], cells_per_block: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Squares of tissue of about so many cells, on a grid that is put elsewhere each time."""
        xy, library = self.xy[fitted], self.library[fitted]
        extent = sum(float(np.prod(np.ptp(xy[library == one], axis=0))) for one in np.unique(library))
        side = math.sqrt(cells_per_block * max(extent, 1e-9) / len(xy))
        square = np.floor((xy + rng.uniform(0, side, 2)) / side).astype(np.int64)
        return np.unique(np.column_stack([library, square]), axis=0, return_inverse=True)[1].ravel()

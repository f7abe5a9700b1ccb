from __future__ import annotations

from dataclasses import dataclass

from nichekd.tl._settings_ranges import WithRanges

MANY_CELLS = 30_000


@dataclass(frozen=True)
class FitSettings(WithRanges):
    """How a student is trained.

    Attributes
    ----------
    max_epochs, batch_size
        Passes over the training cells, at most unless ``min_steps`` ask for more, and cells a step; by default 24 of 256,
        or, of 30,000 cells or more, 16 of 512: they need fewer passes.
    block_cells
        Cells of a batch that lie side by side, and share their neighbors: fewer cost more and may teach a little
        better; 1 takes random cells.
    min_steps
        Steps at least before it may stop: a small section has few in an epoch.
    learning_rate, weight_decay, clip, warmup
        AdamW's; the rate falls along a cosine after ``warmup``, a share of all steps.
    patience
        Epochs without a lower validation loss after which training stops.
    validation
        Share of the training cells held back, as squares of tissue; 0 trains on all for ``max_epochs``. So does a
        section whose labelled cells can't spare the squares: fewer than 10 lie in them, or less than half far enough
        from them.
    n_components
        Principal components of the features that the student reads, see :class:`nichekd.models.Whiten`.
    embedding_weight
        Of the error of the teacher's embedding beside the loss of its niches; read with ``embedding=`` only.
    feature_dropout
        Share of components that a step does without.
    rotate
        Turn and mirror neighborhoods at random: tissue has no up.
    """

    max_epochs: int | None = None
    batch_size: int | None = None
    block_cells: int = 32
    min_steps: int = 300
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    clip: float = 3.0
    warmup: float = 0.1
    patience: int = 6
    validation: float = 0.1
    n_components: int = 64
    embedding_weight: float = 0.3
    feature_dropout: float = 0.1
    rotate: bool = True

    def pace(self, n_cells: int) -> tuple[int, int]:
        """``max_epochs`` and ``batch_size`` of a training on ``n_cells``."""
        max_epochs, batch_size = (16, 512) if n_cells >= MANY_CELLS else (24, 256)
        return (
            max_epochs if self.max_epochs is None else self.max_epochs,
            batch_size if self.batch_size is None else self.batch_size,
        )

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FitSettings:
    """How a student is trained.

    Attributes
    ----------
    max_epochs, batch_size
        Passes over the training cells at most, and cells a step.
    block_cells
        Cells of a batch that lie side by side, and share their neighbors: fewer cost more and may teach a little better;
        1 takes random cells.
    min_steps
        Steps at least before it may stop: a small section has few in an epoch.
    learning_rate, weight_decay, clip, warmup
        AdamW's; the rate falls along a cosine after ``warmup``, a share of all steps.
    patience
        Epochs without a lower validation loss after which training stops.
    validation
        Share of the training cells held back, as squares of tissue; 0 trains on all for ``max_epochs``.
    n_components
        Principal components of the features that the student reads, see :class:`nichekd.models.Whiten`.
    embedding_weight
        Of the error of the teacher's embedding beside the loss of its niches; read with ``embedding=`` only.
    feature_dropout
        Share of components that a step does without.
    rotate
        Turn and mirror neighborhoods at random: tissue has no up.
    """

    max_epochs: int = 24
    batch_size: int = 256
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

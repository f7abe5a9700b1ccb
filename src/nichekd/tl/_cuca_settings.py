from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nichekd.models._stain import CropAugmentation
from nichekd.tl._settings_ranges import WithRanges


@dataclass(frozen=True)
class CucaSettings(WithRanges):
    """How CUCA is trained.

    Attributes
    ----------
    max_epochs, batch_size
        Passes over the training cells at most, and cells a step.
    min_steps
        Steps at least before it may stop: a few hundred spots are few steps in an epoch.
    learning_rate, weight_decay, clip, warmup
        AdamW's; the rate rises over ``warmup``, a share of all steps, and falls along a cosine.
    patience
        Epochs without a better score on validation cells after which training stops.
    validation
        Share of the training cells held back, where neither libraries nor a column say which.
    refit
        Train once more, from the same start and on all training cells, for as many epochs as scored best.
    scale
        Give image features, or their components, and types unit variance; if not, what is large counts most, as
        published.
    n_components
        Whitened principal components of the image features that are read; ``None``: the features, with ``scale`` each
        of unit variance.
    temperature
        Of ``align="infonce"``.
    width, gene_width, dropout
        Of the network, see :class:`nichekd.models.CucaConfig`.
    augmentation
        Random changes of crops, where the encoder trains along; ``None``: none, as published.
    """

    max_epochs: int = 16
    batch_size: int = 256
    min_steps: int = 300
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    clip: float = 3.0
    warmup: float = 0.2
    patience: int = 4
    validation: float = 0.1
    refit: bool = True
    scale: bool = True
    n_components: int | None = 64
    temperature: float = 0.1
    width: int = 256
    gene_width: int = 256
    dropout: float = 0.25
    augmentation: CropAugmentation | None = CropAugmentation()

    @classmethod
    def published(cls, **changes: Any) -> CucaSettings:
        """Those of the paper: 100 epochs of 128, the best of which is kept; take them with ``align="rmse"``.

        The optimizer stays AdamW, its rate set at every step; the paper's is Adam with OneCycle, set at every epoch.
        """
        values = {
            "max_epochs": 100, "batch_size": 128, "min_steps": 0, "learning_rate": 2e-3, "weight_decay": 1e-4,
            "clip": math.inf, "patience": 100, "refit": False, "scale": False, "n_components": None, "width": 512,
            "gene_width": 1024, "augmentation": None,
        }  # fmt: skip
        return cls(**values | changes)

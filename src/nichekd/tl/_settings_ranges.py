"""What values training settings may have: found when they are made, not after an epoch."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

import numpy as np

#: names of settings that have a range; others have none, or checks of their own
WHOLE = frozenset(
    {
        "max_epochs", "batch_size", "block_cells", "n_components", "patience", "crops_per_epoch", "accumulate", "n_pairs",
        "n_genes", "n_out", "cells_per_block", "width", "gene_width", "d_model", "d_attention", "slides_per_step", "max_cells",
    }
)  # fmt: skip
COUNTS = frozenset({"min_steps", "queue_size"})
ABOVE_ZERO = frozenset({"learning_rate", "backbone_learning_rate", "clip", "temperature"})
NOT_NEGATIVE = frozenset({"weight_decay", "embedding_weight", "cluster_weight", "niche_weight", "margin"})
SHARES = frozenset({"warmup", "validation", "feature_dropout", "dropout"})

_NUMBER = (int, float, np.integer, np.floating)
_RANGES = (
    (WHOLE, lambda x: isinstance(x, (int, np.integer)) and x >= 1, "a whole number, 1 or more"),
    (COUNTS, lambda x: isinstance(x, (int, np.integer)) and x >= 0, "a whole number, 0 or more"),
    (ABOVE_ZERO, lambda x: isinstance(x, _NUMBER) and x > 0, "above 0"),
    (NOT_NEGATIVE, lambda x: isinstance(x, _NUMBER) and 0 <= x < np.inf, "0 or more"),
    (SHARES, lambda x: isinstance(x, _NUMBER) and 0 <= x < 1, "from 0 to below 1"),
)


class WithRanges:
    """A base of settings, which are dataclasses: values out of range are a ``ValueError`` that names all of them.

    ``None`` passes where the field's type has it.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __post_init__(self) -> None:
        wrong = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and "None" in str(field.type):
                continue
            for names, is_right, words in _RANGES:
                if field.name in names and (isinstance(value, bool) or not is_right(value)):
                    wrong.append(f"{field.name}={value!r}, which has to be {words}")
        if wrong:
            raise ValueError(f"{type(self).__name__}: {'; '.join(wrong)}.")

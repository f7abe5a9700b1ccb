"""What the training loops share: a recorded history, seeds, Lightning Fabric, the learning rate's course."""

from __future__ import annotations

import hashlib
import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nichekd._settings import accelerator_and_devices

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from lightning.fabric import Fabric
    from numpy.typing import NDArray


@dataclass
class History:
    """Loss and agreement, an entry an epoch."""

    columns: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        """Append an epoch."""
        for name, value in values.items():
            self.columns.setdefault(name, []).append(float(value))

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """For ``uns``."""
        return {name: np.asarray(values) for name, values in self.columns.items()}


@dataclass(frozen=True)
class HeldOut:
    """Training cells that were held back, and what a student that had not seen them said of them.

    Attributes
    ----------
    cells, logits
        (m,) and (m, K).
    """

    cells: NDArray[np.integer]
    logits: NDArray[np.float32]

    def to_dict(self, names: pd.Index) -> dict[str, Any]:
        """For ``uns``; with a hash of the cells' ``names``, (n,), because rows of a table come and go."""
        return {
            "cells": self.cells.astype(np.int64),
            "logits": self.logits,
            "names": names_hash(names[self.cells]),
        }


def names_hash(names: pd.Index) -> str:
    """16 hexadecimal digits of cells' names in their order."""
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()[:16]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global generator at ``seed`` within (dropout and initial weights draw from it), and as it was after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def quietly() -> Iterator[None]:
    """Without Fabric's advice on data loaders we don't use, and GPUs that the user may have left out on purpose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield


def new_fabric(device: str | None = None, **options: Any) -> Fabric:
    """Fabric on ``device`` (an accelerator, or one of several, ``"cuda:1"``; None: ``nk.settings.device``)."""
    from lightning.fabric import Fabric

    accelerator, one = accelerator_and_devices(device)
    devices = options.pop("devices", 1)
    with quietly():
        return Fabric(accelerator=accelerator, devices=one if devices == 1 else devices, **options)


def make_fabric(device: str | None = None, **options: Any) -> Fabric:
    """As :func:`new_fabric`, launched."""
    fabric = new_fabric(device, **options)
    with quietly():
        fabric.launch()
    return fabric


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine down to 1 %; ``progress`` in [0, 1]."""
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / max(1 - warmup, 1e-9))))

"""What the training loops share: history, the best epoch, seeds, Lightning Fabric, the learning rate's course."""

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
    from collections.abc import Callable, Iterator

    import pandas as pd
    from lightning.fabric import Fabric
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

    from nichekd.models import NicheStudent


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


@dataclass
class BestEpoch:
    """The epoch of the lowest score on held-back cells, and what was trained by then.

    Attributes
    ----------
    score, n_epochs, state
        Of the best epoch: its score, its number, counted from 1, and the weights after it.
    n_seen
        Epochs so far.
    """

    score: float = math.inf
    n_epochs: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    n_seen: int = 0

    def see(self, score: float, state: Callable[[], dict[str, Tensor]]) -> bool:
        """Count an epoch; whether it is the best so far, whose ``state()`` is then kept.

        Raises
        ------
        ValueError
            If the score is NaN, which no later epoch mends.
        """
        self.n_seen += 1
        if math.isnan(score):
            raise ValueError(
                f"Training diverged: after {self.n_seen} epochs the score on held-back cells is NaN. Lower learning_rate of fit=."
            )
        if not score < self.score:
            return False
        self.score, self.n_epochs, self.state = score, self.n_seen, state()
        return True

    def was(self, n_epochs: int) -> bool:
        """Whether the best is that many epochs ago, or more."""
        return self.n_seen - self.n_epochs >= n_epochs


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

    def to_dict(self, names: pd.Index, student: NicheStudent) -> dict[str, Any]:
        """For ``uns``; with hashes of the cells' ``names``, (n,), and of the student: rows and students come and go."""
        return {
            "cells": self.cells.astype(np.int64),
            "logits": self.logits,
            "names": names_hash(names[self.cells]),
            "student": weights_hash(student),
        }


def names_hash(names: pd.Index) -> str:
    """16 hexadecimal digits of cells' names in their order."""
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()[:16]


def weights_hash(student: NicheStudent) -> str:
    """16 hexadecimal digits of all weights that make a student's logits; what it remembers of its tissue makes none."""
    digest = hashlib.sha256()
    for name, value in sorted(student.weights().items()):
        if not name.startswith(("training_range.", "stain_range.")):
            digest.update(name.encode())
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global generators at ``seed`` within (dropout and initial weights draw from them), and as they were after.

    Those of GPUs too, where CUDA is in use: ``torch.manual_seed`` sets them along.
    """
    # where it is not, to ask for their state would start CUDA, also for a training on the CPU
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(gpus)):
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


def warm_cosine(optimizer: Optimizer, n_steps: float, warmup: float) -> LambdaLR:
    """That course of the learning rate over ``n_steps``."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step / n_steps, warmup))

"""Training of CUCA: Lightning Fabric, the epoch that validates best, then all training cells."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from tqdm.auto import tqdm

from nichekd._abundance import pearson
from nichekd._settings import settings as package_settings
from nichekd.models._cuca import CucaTraining
from nichekd.models._lora import MARK
from nichekd.tl._loop import BestEpoch, History, make_fabric, warm_cosine

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix
    from torch import Tensor, nn

    from nichekd.models import AbundanceModel
    from nichekd.models._cuca import CucaObjective
    from nichekd.tl._cuca_settings import CucaSettings

log = logging.getLogger(__name__)

ROWS = 4096  # cells that are predicted at once


class Images(Protocol):
    """Where a batch's image features, or crops, come from."""

    def batch(self, cells: NDArray[np.integer], *, training: bool) -> Tensor:
        """Scaled features (B, C), or normalised crops (B, 3, p, p)."""

    def predict(self, model: AbundanceModel, cells: NDArray[np.integer]) -> NDArray[np.float32]:
        """Abundances of ``cells``, (B, K)."""


@dataclass(frozen=True)
class FeatureRows:
    """Features that are there.

    Attributes
    ----------
    rows
        Features (n, F), in memory, or what ``scale`` makes of them.
    scale
        What is still to be done to them; ``None``: nothing.
    """

    rows: NDArray[np.floating]
    scale: nn.Module | None = None

    def batch(self, cells: NDArray[np.integer], *, training: bool) -> Tensor:
        """Scaled features (B, C)."""
        rows = torch.from_numpy(self.rows[cells].astype(np.float32))
        return rows if self.scale is None else self.scale(rows)

    @torch.inference_mode()
    def predict(self, model: AbundanceModel, cells: NDArray[np.integer]) -> NDArray[np.float32]:
        """Abundances, (B, K)."""
        network, device = model.network.eval(), model.network.type_scale.device
        parts = [
            network.abundance(network.of_scaled(self.batch(some, training=False).to(device))[0]).cpu().numpy()
            for some in np.array_split(cells, max(1, len(cells) // ROWS))
        ]
        return np.concatenate(parts)


@dataclass(frozen=True)
class CucaData:
    """What is learnt from what, cell by cell.

    Attributes
    ----------
    images
        Features or crops.
    abundance
        (n, K).
    genes
        Log-normalised, (n, G); ``None`` without a gene branch.
    """

    images: Images
    abundance: NDArray[np.float32]
    genes: csr_matrix | None

    def batch(self, cells: NDArray[np.integer], fabric: Fabric) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images, abundances and genes on the device."""
        genes = None if self.genes is None else torch.from_numpy(self.genes[cells].toarray()).to(fabric.device)
        abundance = torch.from_numpy(self.abundance[cells]).to(fabric.device)
        return self.images.batch(cells, training=True).to(fabric.device), abundance, genes


def fit_cuca(
    model: AbundanceModel,
    objective: CucaObjective,
    data: CucaData,
    fitted: NDArray[np.integer],
    held_back: NDArray[np.integer],
    *,
    all_train: NDArray[np.integer],
    fit: CucaSettings,
    seed: int,
    fabric: Fabric | None = None,
) -> History:
    """Train ``model`` in place on the cells ``fitted``, selecting by ``held_back``; its history.

    ``all_train`` are those that a refit trains on: both, and the margin between them. With nothing held back there is
    one run of ``max_epochs``.
    """
    run = _Run(fabric or make_fabric(), model, objective, data, fit, seed)
    start = run.trained()
    history = run.epochs(fitted, held_back)
    if not len(held_back):
        run.done()
        return history
    if fit.refit:
        run.restore(start)
        run.epochs(all_train, held_back[:0], n_epochs=run.best.n_epochs)
    else:
        run.restore(run.best.state)
    what = "trained as long on all cells" if fit.refit else "those are kept"
    log.info("CUCA: highest validation correlation after %d epochs, %s", run.best.n_epochs, what)
    run.done()
    return history


class _Run:
    """What the epochs of one training share."""

    def __init__(
        self,
        fabric: Fabric,
        model: AbundanceModel,
        objective: CucaObjective,
        data: CucaData,
        fit: CucaSettings,
        seed: int,
    ) -> None:
        self.fabric, self.model, self.data, self.fit, self.seed = fabric, model, data, fit, seed
        backbone = None if model.encoder is None else model.encoder.module
        self.training = CucaTraining(model.network, objective, backbone)
        self.best = BestEpoch()

    def trained(self) -> dict[str, Tensor]:
        """All that training may change; not the frozen part of an encoder, which may be large."""
        state = self.training.state_dict()
        return {
            name: value.clone() for name, value in state.items() if not name.startswith("backbone.") or MARK in name
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Back to :meth:`trained`."""
        self.training.load_state_dict(state, strict=False)

    def done(self) -> None:
        """Ready for inference, on the CPU."""
        self.training.eval().to("cpu").requires_grad_(False)

    def epochs(
        self, train: NDArray[np.integer], validation: NDArray[np.integer], *, n_epochs: int | None = None
    ) -> History:
        """Train until the score has not risen for ``patience`` epochs, or for ``n_epochs``."""
        fit, history = self.fit, History()
        # parts of equal size, of two cells at least: one alone has no variance to normalise by
        steps = max(1, min(round(len(train) / fit.batch_size), len(train) // 2))
        limit = max(fit.max_epochs, math.ceil(fit.min_steps / steps))
        parameters = [p for p in self.training.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=fit.learning_rate, weight_decay=fit.weight_decay)
        network, optimizer = self.fabric.setup(self.training, optimizer)
        schedule = warm_cosine(optimizer, limit * steps, fit.warmup)
        rng = np.random.default_rng(self.seed)
        name = "CUCA" if n_epochs is None else "CUCA, all cells"
        for epoch in tqdm(range(n_epochs or limit), desc=name, unit="epoch", disable=not package_settings.progress):
            self.training.train()
            sums: dict[str, Tensor] = {}
            for cells in np.array_split(rng.permutation(train), steps):
                terms = network(*self.data.batch(np.sort(cells), self.fabric))
                optimizer.zero_grad(set_to_none=True)
                self.fabric.backward(terms["loss"])
                if math.isfinite(fit.clip):
                    self.fabric.clip_gradients(network, optimizer, max_norm=fit.clip)
                optimizer.step()
                schedule.step()
                sums = {key: sums.get(key, 0) + value.detach() for key, value in terms.items()}
            means = {f"train_{key}": float(value) / steps for key, value in sums.items()}
            history.add(epoch=epoch + 1, **means, **self.scores(validation))
            if len(validation) and self.best.was(fit.patience) and (epoch + 1) * steps >= fit.min_steps:
                break
        return history

    def scores(self, validation: NDArray[np.integer]) -> dict[str, float]:
        """Mean correlation over types on the validation cells, where there are any."""
        if not len(validation):
            return {}
        predicted, true = self.data.images.predict(self.model, validation), self.data.abundance[validation]
        found = pearson(predicted.astype(np.float64), true.astype(np.float64))
        mean = float(found[np.isfinite(found)].mean()) if np.isfinite(found).any() else -1.0
        self.best.see(-mean, self.trained)
        return {"validation_pearson": mean}

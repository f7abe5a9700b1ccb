"""The student: H&E features of a neighborhood in, niche logits out; with all that inference has to remember."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nichekd.models._neighborhood_transformer import neighborhood_network
from nichekd.models._saved_model import SavedModel
from nichekd.models._student_config import StudentConfig
from nichekd.models._training_range import TrainingRange
from nichekd.models._whiten import Whiten

if TYPE_CHECKING:
    from nichekd.models._encoder import Encoder
    from nichekd.models._neighborhood_batch import NeighborhoodBatch


class NicheStudent(SavedModel, tags=["histology", "spatial-transcriptomics", "tissue-niches"]):
    """Whitened image features → neighborhood network → K niche logits.

    Parameters
    ----------
    config
        Sizes, niches and everything inference needs.
    encoder
        The image encoder itself where it was trained by :func:`nichekd.tl.gene_aware_encoder`; it travels in the
        folder. ``None`` for encoders of the registry, which are named only.
    """

    weights_file = "student.safetensors"
    config_type = StudentConfig
    noun = "student"
    config: StudentConfig

    def __init__(self, config: StudentConfig, *, encoder: Encoder | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.whiten = Whiten(config.n_features, config.network.n_features)
        self.backbone = neighborhood_network(config.network)
        self.head = nn.Linear(config.network.d_model, len(config.niche_names))
        n_groups, n_stains = (config.training_range.get(name) for name in ("n_groups", "n_stains"))
        self.training_range = TrainingRange(config.network.n_features, n_groups) if n_groups else None
        self.stain_range = TrainingRange(3, n_stains) if n_stains else None
        self.history: dict[str, list[float]] = {}

    @property
    def n_niches(self) -> int:
        """K."""
        return len(self.config.niche_names)

    def forward(self, batch: NeighborhoodBatch) -> Tensor:
        """Logits on the teacher's scale, (B, K)."""
        return self.read(batch.with_features(self.whiten(batch.features)))

    def read(self, components: NeighborhoodBatch) -> Tensor:
        """As :meth:`forward`, of whitened features: :meth:`Whiten.rows` makes them once a cell."""
        return self.classify(self.backbone(components))

    def classify(self, embedding: Tensor) -> Tensor:
        """Logits (B, K) of neighborhoods as the backbone puts them, (B, d)."""
        # cosines of NOLAN span 2, other logits hundreds: the head learns them in units of the temperature
        return self.head(embedding) * self.config.temperature

    @torch.no_grad()
    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated, (B, K)."""
        return torch.softmax(logits / (self.config.temperature * self.config.calibration), dim=-1)

    def remember(
        self, found: TrainingRange, about: dict[str, Any], *, stain: TrainingRange | None = None
    ) -> NicheStudent:
        """Keep what the training tissue was like: distances, and ``config.training_range``; returns the student."""
        self.training_range = found
        if stain is not None:
            self.stain_range = stain
        return self.configure(training_range=about)

    def configure(self, **changes: Any) -> NicheStudent:
        """Change values of the config in place; returns the student.

        Parameters
        ----------
        changes
            Attributes of :class:`StudentConfig`, such as ``niche_names``, or ``metrics`` for the model card.

        Raises
        ------
        TypeError
            If there is no such value, or ``metrics`` is no table.
        ValueError
            If no student can have the values, see :class:`StudentConfig`, or not this one: as many niches as it tells
            apart, ``network`` and ``n_features`` of its weights, ``training_range`` of the means it holds, and
            ``features`` of the encoder it brings. The student stays as it was.

        Examples
        --------
        >>> import nichekd as nk
        >>> student.configure(metrics=nk.tl.agreement(sdata))  # doctest: +SKIP
        """
        known = [field.name for field in fields(StudentConfig)]
        if unknown := sorted(set(changes) - set(known)):
            raise TypeError(f"A student's config has no {unknown}; it has {known}.")
        config = replace(self.config, **changes)
        if wrong := [name for name, fits in self._fits(config).items() if name in changes and not fits]:
            raise ValueError(
                f"{', '.join(f'{name}={getattr(config, name)!r}' for name in wrong)} does not fit the student's weights, "
                f"which are of {', '.join(f'{name}={getattr(self.config, name)!r}' for name in wrong)}. Distil another."
            )
        self.config = config
        return self

    def _fits(self, config: StudentConfig) -> dict[str, bool]:
        """Whether the parts of ``config`` that go with weights, or an encoder of its own, go with these."""
        ranges = {"n_groups": self.training_range, "n_stains": self.stain_range}
        n_means = {name: None if of is None else len(of.means) for name, of in ranges.items()}
        return {
            "network": config.network == self.config.network,
            "n_features": config.n_features == self.config.n_features,
            "niche_names": len(config.niche_names) == self.head.out_features,
            "training_range": all(config.training_range.get(name) == n for name, n in n_means.items()),
            "features": self.encoder is None or config.features.get("fingerprint") == self.encoder.fingerprint,
        }

    def card(self) -> str:
        """The model card, Markdown with the hub's YAML header."""
        from nichekd.models._card import student_card

        return student_card(self.config, brings_encoder=self.brings_encoder)

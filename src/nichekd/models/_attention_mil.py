"""Attention-based multiple-instance learning: a class of a slide from the features of its cells or tiles."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nichekd.models._folder import CONFIG, check_values, values_of_format
from nichekd.models._rank_by_gene import Standardize
from nichekd.models._saved_model import SavedModel

FORMAT = 1

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class SlideClassifierConfig:
    """Sizes, and what a slide classifier carries.

    Attributes
    ----------
    n_features
        Of a cell or tile.
    classes
        Names; a class's place is its column in the logits.
    d_model, d_attention
        Length of an embedding, and of what its attention is computed from.
    dropout
        In training.
    features
        What was recorded of the image features.
    training
        Facts: slides, seed.
    """

    n_features: int
    classes: tuple[str, ...]
    d_model: int = 128
    d_attention: int = 64
    dropout: float = 0.25
    features: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for ``config.json``."""
        return {"format": FORMAT} | asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SlideClassifierConfig:
        """Back from ``config.json``.

        Raises
        ------
        ValueError
            If the values are of another format, or some are missing or unknown.
        """
        values, _ = values_of_format(dict(values), FORMAT)
        check_values(values, cls, CONFIG)
        return cls(**values | {"classes": tuple(values["classes"])})


class SlideClassifier(SavedModel, tags=["histology", "multiple-instance-learning"]):
    r"""Gated attention pooling :cite:`Ilse2018` of the embeddings :math:`h_i` of a slide's cells, and a linear map.

    .. math:: z = \sum_i a_i h_i, \quad a = \mathrm{softmax}_i\big(w^\top (\tanh(V h_i) \odot \sigma(U h_i))\big)

    Parameters
    ----------
    config
        Sizes and classes.
    """

    weights_file = "slides.safetensors"
    config_type = SlideClassifierConfig
    config: SlideClassifierConfig

    def __init__(self, config: SlideClassifierConfig) -> None:
        super().__init__()
        self.config, self.encoder = config, None
        self.standardize = Standardize(config.n_features)
        self.embed = nn.Sequential(nn.Linear(config.n_features, config.d_model), nn.ReLU(), nn.Dropout(config.dropout))
        self.content = nn.Linear(config.d_model, config.d_attention)
        self.gate = nn.Linear(config.d_model, config.d_attention)
        self.score = nn.Linear(config.d_attention, 1)
        self.head = nn.Linear(config.d_model, len(config.classes))
        self.history: dict[str, list[float]] = {}

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """One slide's features (n, F) → logits (K,) and attention (n,), which sums to 1."""
        embedding = self.embed(self.standardize(features))
        score = self.score(torch.tanh(self.content(embedding)) * torch.sigmoid(self.gate(embedding)))[:, 0]
        attention = torch.softmax(score, dim=0)
        return self.head(attention @ embedding), attention

    def card(self) -> str:
        """The model card, Markdown with the hub's YAML header."""
        from nichekd.models._slides_card import slides_card

        return slides_card(self.config)

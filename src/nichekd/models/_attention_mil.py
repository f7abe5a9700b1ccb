"""Attention-based multiple-instance learning: a class of a slide from the features of its cells or tiles."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nichekd.models._folder import read_folder, write_folder
from nichekd.models._rank_by_gene import Standardize

FORMAT = 1
WEIGHTS, CONFIG = "slides.safetensors", "config.json"

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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SlideClassifierConfig:
        """Back from ``config.json``.

        Raises
        ------
        ValueError
            If the values are of another format, or some are missing or unknown.
        """
        known, given = {f.name for f in fields(cls)}, set(values) - {"format"}
        if values.get("format") != FORMAT or given != known:
            raise ValueError(
                f"{CONFIG} is of format {values.get('format')}, lacks {sorted(known - given)} and holds unknown "
                f"{sorted(given - known)}; this version reads format {FORMAT}. Train the classifier anew: "
                "nk.tl.slide_classifier."
            )
        kept = {name: value for name, value in values.items() if name != "format"}
        return cls(**kept | {"classes": tuple(kept["classes"])})


class SlideClassifier(nn.Module):
    r"""Gated attention pooling :cite:`Ilse2018` of the embeddings :math:`h_i` of a slide's cells, and a linear map.

    .. math:: z = \sum_i a_i h_i, \quad a = \mathrm{softmax}_i\big(w^\top (\tanh(V h_i) \odot \sigma(U h_i))\big)

    Parameters
    ----------
    config
        Sizes and classes.
    """

    def __init__(self, config: SlideClassifierConfig) -> None:
        super().__init__()
        self.config = config
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

    def save(self, path: str | Path) -> Path:
        """Write ``slides.safetensors`` and ``config.json`` to the folder ``path``.

        Raises
        ------
        FileExistsError
            If ``path`` is a file.
        """
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        config = {"format": FORMAT} | asdict(self.config)
        write_folder(Path(path), weights={WEIGHTS: state}, config={CONFIG: config})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> SlideClassifier:
        """Read a folder written by :meth:`save`; nothing in it is unpickled.

        Raises
        ------
        FileNotFoundError
            If the folder or one of its files is missing.
        ValueError
            If a file is damaged, or weights and config don't fit each other.
        """
        config, state = read_folder(Path(path), config=CONFIG, weights=WEIGHTS)
        model = cls(SlideClassifierConfig.from_dict(config))
        try:
            model.load_state_dict(state)
        except RuntimeError as err:
            raise ValueError(f"{Path(path) / WEIGHTS} does not fit {CONFIG}: {err}") from err
        return model.eval()

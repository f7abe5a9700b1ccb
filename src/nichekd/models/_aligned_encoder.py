"""Features of a frozen encoder in, features whose order follows the genes out; with all that inference remembers."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from nichekd.models._folder import CONFIG, check_values, values_of_format
from nichekd.models._rank_by_gene import Branch
from nichekd.models._saved_model import SavedModel

if TYPE_CHECKING:
    from torch import Tensor

    from nichekd.models._encoder import Encoder

FORMAT = 1


@dataclass(frozen=True)
class AlignedConfig:
    """What an aligned encoder carries.

    Attributes
    ----------
    n_features, n_out
        Length of a cell's image features, and of what they become.
    features
        Encoder, fingerprint, crop and mpp of the image features, as :func:`nichekd.pp.histology_features` records them.
    genes
        Genes it was trained on; none is needed afterwards.
    training
        Facts for the model card: cells, losses, seed.
    """

    n_features: int
    n_out: int
    features: dict[str, Any] = field(default_factory=dict)
    genes: tuple[str, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for ``config.json``."""
        return {"format": FORMAT} | asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AlignedConfig:
        """Back from ``config.json``.

        Raises
        ------
        ValueError
            If the values are of another format, or some are missing or unknown.
        """
        values, _ = values_of_format(values, FORMAT)
        check_values(values, cls, CONFIG)
        return cls(**values | {"genes": tuple(values["genes"])})


class AlignedEncoder(SavedModel, tags=["histology", "spatial-transcriptomics", "representation-learning"]):
    """Image features of a cell → features whose similarity order follows that of gene expression.

    Parameters
    ----------
    config
        Sizes, and what the image features have to be.
    encoder
        The image encoder itself where it was fine-tuned; it travels in the folder. ``None`` for encoders of the
        registry, which are named only.
    """

    weights_file = "aligned.safetensors"
    config_type = AlignedConfig
    config: AlignedConfig

    def __init__(self, config: AlignedConfig, *, encoder: Encoder | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.branch = Branch(config.n_features, config.n_out)
        self.history: dict[str, list[float]] = {}

    def forward(self, features: Tensor) -> Tensor:
        """(B, n_features) → (B, n_out)."""
        return self.branch(features)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the weights."""
        digest = hashlib.sha256()
        for name, value in sorted(self.weights().items()):
            digest.update(name.encode() + value.numpy().tobytes())
        return digest.hexdigest()[:16]

    def card(self) -> str:
        """The model card, Markdown with the hub's YAML header."""
        from nichekd.models._aligned_card import aligned_card

        return aligned_card(self.config)

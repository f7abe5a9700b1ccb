"""A trained CUCA: H&E features in, abundances of cell types out; with all that inference has to remember."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nichekd.models._cuca import CucaConfig, CucaNetwork
from nichekd.models._folder import CONFIG, check_values, values_of_format
from nichekd.models._lora import LoraSettings, add_lora, load_lora, lora_state
from nichekd.models._saved_model import SavedModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nichekd.models._encoder import Encoder

FORMAT = 1
ADAPTERS = "adapters."  # before the names of their tensors in the file
ROWS = 4096  # cells that are predicted at once


@dataclass(frozen=True)
class AbundanceConfig:
    """What a model carries, so that nothing has to be remembered at inference.

    Attributes
    ----------
    network
        Sizes.
    types
        Names of the K cell types, in the order of the predicted columns.
    genes
        Genes that were looked at in training; none is needed afterwards.
    lora
        Adapters in the image encoder, where it was trained along.
    features
        Encoder, fingerprint, crop and mpp of the image features, as :func:`nichekd.pp.histology_features` records them.
    training
        Facts for the model card: data, alignment, seed, scores.
    """

    network: CucaConfig
    types: tuple[str, ...]
    genes: tuple[str, ...] = ()
    lora: LoraSettings | None = None
    features: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for ``config.json``."""
        return {"format": FORMAT} | asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AbundanceConfig:
        """Back from ``config.json``.

        Raises
        ------
        ValueError
            If the values are of a later format, or some are missing or unknown.
        """
        values, _ = values_of_format(values, FORMAT)
        check_values(values, cls, CONFIG)
        check_values(values["network"], CucaConfig, f"network of {CONFIG}")
        if values["lora"] is not None:
            check_values(values["lora"], LoraSettings, f"lora of {CONFIG}")
            values["lora"] = LoraSettings(**values["lora"])
        values |= {"network": CucaConfig(**values["network"])}
        return cls(**values | {name: tuple(values[name]) for name in ("types", "genes")})


class AbundanceModel(SavedModel, tags=["histology", "spatial-transcriptomics", "cell-type-abundance"]):
    """Image features → embedding → abundances of K cell types.

    Parameters
    ----------
    config
        Sizes, types and everything inference needs.
    encoder
        The image encoder with its adapters, where it was trained along; ``None`` for frozen features.
    """

    weights_file = "abundance.safetensors"
    config_type = AbundanceConfig
    config: AbundanceConfig
    brings_encoder = False  # its adapters are among the weights, the rest is as it was

    def __init__(self, config: AbundanceConfig, *, encoder: Encoder | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.network = CucaNetwork(config.network)
        self.history: dict[str, list[float]] = {}

    @property
    def types(self) -> tuple[str, ...]:
        """Names of the K cell types."""
        return self.config.types

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Abundances, none negative, (B, K), and embeddings, (B, width), of features (B, F)."""
        scaled, z = self.network(features)
        return self.network.abundance(scaled), z

    @torch.inference_mode()
    def predict(
        self, features: Any, *, device: torch.device | str = "cpu"
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The same for feature rows in memory or lazy, (n, F), part by part."""
        training = self.training
        self.eval().to(device)
        abundance = np.empty((len(features), len(self.types)), dtype=np.float32)
        embedding = np.empty((len(features), self.config.network.width), dtype=np.float32)
        for start in range(0, len(features), ROWS):
            rows = np.asarray(features[start : start + ROWS], dtype=np.float32)
            part, z = self(torch.from_numpy(rows).to(device))
            abundance[start : start + ROWS], embedding[start : start + ROWS] = part.cpu().numpy(), z.cpu().numpy()
        self.train(training)
        return abundance, embedding

    @classmethod
    def load(cls, path: str | Path, *, encoder: Encoder | None = None) -> AbundanceModel:  # type: ignore[override]
        """Read a folder written by :meth:`save`; nothing in it is unpickled.

        Parameters
        ----------
        path
            The folder.
        encoder
            The image encoder as it was before training, where the model holds adapters for it; its module is copied.
            Default: the one of the name, and with the weights file, that the model noted.

        Raises
        ------
        FileNotFoundError
            If the folder or one of its files is missing.
        NotADirectoryError
            If ``path`` is a file.
        ValueError
            If a file is damaged, weights and config don't fit each other, or the encoder is another.
        """
        return super().load(path, encoder=encoder)

    def weights(self) -> dict[str, Tensor]:
        """What the weights file holds: the network, and the adapters of an encoder that was trained along."""
        adapters = {} if self.encoder is None else lora_state(self.encoder.module)
        return super().weights() | {ADAPTERS + name: value for name, value in adapters.items()}

    def card(self) -> str:
        """The model card, Markdown with the hub's YAML header."""
        from nichekd.models._abundance_card import abundance_card

        return abundance_card(self.config)

    def _take_encoder(
        self, folder: Path, state: dict[str, Tensor], *, encoder: Encoder | None = None
    ) -> dict[str, Tensor]:
        """Put the adapters into the encoder that they were trained in; returns the rest of the weights."""
        adapters = {name.removeprefix(ADAPTERS): state.pop(name) for name in list(state) if name.startswith(ADAPTERS)}
        if self.config.lora is not None:
            self.encoder = adapted_encoder(self.config.features, self.config.lora, encoder)
            load_lora(self.encoder.module, adapters)
        return state


def adapted_encoder(described: dict[str, Any], lora: LoraSettings, encoder: Encoder | None = None) -> Encoder:
    """The encoder that made some features, or a copy of ``encoder``, with adapters that do nothing yet.

    Parameters
    ----------
    described
        The record of the features.
    lora
        Adapters.
    encoder
        The encoder itself, where no registry has it.

    Raises
    ------
    ValueError
        If it is not the encoder of the features, or no ViT.
    """
    import copy

    from nichekd.models._encoder_registry import get_encoder

    name = described.get("encoder", "unknown")
    noted = described.get("weights")  # where they were on the machine that trained it, or nowhere
    weights = noted if noted is not None and Path(noted).is_file() else None
    base = encoder if encoder is not None else get_encoder(name, weights=weights)
    if base.fingerprint != described.get("fingerprint"):
        raise ValueError(
            f"Encoder {base.name!r} has fingerprint {base.fingerprint}; the features were made by {name!r} with "
            f"{described.get('fingerprint')}. Hand in that very encoder by encoder=."
        )
    adapted = copy.deepcopy(base)  # the registry, or the user, may go on with the frozen one
    add_lora(adapted.module, lora)
    return adapted

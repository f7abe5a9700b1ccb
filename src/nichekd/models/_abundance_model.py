"""A trained CUCA: H&E features in, abundances of cell types out; with all that inference has to remember."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from nichekd.models._cuca import CucaConfig, CucaNetwork
from nichekd.models._folder import read_folder, write_folder
from nichekd.models._lora import LoraSettings, add_lora, load_lora, lora_state

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nichekd.models._encoder import Encoder

FORMAT = 1
WEIGHTS, CONFIG = "abundance.safetensors", "config.json"
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
        if values.get("format") != FORMAT:
            raise ValueError(
                f"The model is of format {values.get('format')}; this version of nichekd reads format {FORMAT}. "
                "Upgrade nichekd, or train the model anew."
            )
        values = {name: value for name, value in values.items() if name != "format"}
        _check_names(values, cls, CONFIG)
        _check_names(values["network"], CucaConfig, f"network of {CONFIG}")
        if values["lora"] is not None:
            _check_names(values["lora"], LoraSettings, f"lora of {CONFIG}")
            values["lora"] = LoraSettings(**values["lora"])
        values |= {"network": CucaConfig(**values["network"])}
        return cls(**values | {name: tuple(values[name]) for name in ("types", "genes")})


def _check_names(values: Any, kind: type, what: str) -> None:
    known = {f.name for f in fields(kind)}
    given = set(values) if isinstance(values, dict) else set()
    if given != known:
        raise ValueError(
            f"{what} lacks {sorted(known - given)} and holds unknown {sorted(given - known)}; it is damaged. Fetch the "
            "model's folder again."
        )


class AbundanceModel(
    nn.Module,
    ModelHubMixin,
    library_name="nichekd",
    tags=["histology", "spatial-transcriptomics", "cell-type-abundance"],
    repo_url="https://github.com/nichekd/nichekd",
    docs_url="https://nichekd.readthedocs.io",
):
    """Image features → embedding → abundances of K cell types.

    Parameters
    ----------
    config
        Sizes, types and everything inference needs.
    encoder
        The image encoder with its adapters, where it was trained along; ``None`` for frozen features.
    """

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

    def save(self, path: str | Path) -> Path:
        """Write ``abundance.safetensors``, ``config.json`` and a model card to the folder ``path``.

        Of an encoder that was trained along, the adapters alone are written: the rest is as it was.

        Raises
        ------
        FileExistsError
            If ``path`` is a file.
        """
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        if self.encoder is not None:
            state |= {ADAPTERS + name: value for name, value in lora_state(self.encoder.module).items()}
        folder = Path(path)
        write_folder(folder, weights={WEIGHTS: state}, config={CONFIG: self.config.to_dict()}, card=self.card())
        return folder

    @classmethod
    def load(cls, path: str | Path, *, encoder: Encoder | None = None) -> AbundanceModel:
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
        folder = Path(path)
        values, state = read_folder(folder, config=CONFIG, weights=WEIGHTS)
        model = cls(AbundanceConfig.from_dict(values))
        adapters = {name.removeprefix(ADAPTERS): state.pop(name) for name in list(state) if name.startswith(ADAPTERS)}
        try:
            model.load_state_dict(state)
        except RuntimeError as err:
            raise ValueError(f"{folder / WEIGHTS} does not fit {CONFIG}: {err}") from err
        if model.config.lora is not None:
            model.encoder = adapted_encoder(model.config.features, model.config.lora, encoder)
            load_lora(model.encoder.module, adapters)
        return model.eval()

    def card(self) -> str:
        """The model card, Markdown with the hub's YAML header."""
        from nichekd.models._abundance_card import abundance_card

        return abundance_card(self.config)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **download: Any) -> AbundanceModel:
        if Path(model_id).is_dir():
            return cls.load(model_id)
        from huggingface_hub import snapshot_download

        wanted = {"revision", "cache_dir", "force_download", "local_files_only", "token"}
        return cls.load(snapshot_download(model_id, **{k: v for k, v in download.items() if k in wanted}))


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

    from nichekd.models._encoder import get_encoder

    name = described.get("encoder", "unknown")
    base = encoder if encoder is not None else get_encoder(name, weights=described.get("weights"))
    if base.fingerprint != described.get("fingerprint"):
        raise ValueError(
            f"Encoder {base.name!r} has fingerprint {base.fingerprint}; the features were made by {name!r} with "
            f"{described.get('fingerprint')}. Hand in that very encoder by encoder=."
        )
    adapted = copy.deepcopy(base)  # the registry, or the user, may go on with the frozen one
    add_lora(adapted.module, lora)
    return adapted

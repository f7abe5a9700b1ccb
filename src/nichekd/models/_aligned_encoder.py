"""Features of a frozen encoder in, features whose order follows the genes out; with all that inference remembers."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from nichekd.models._folder import read_folder, write_folder
from nichekd.models._rank_by_gene import Branch

if TYPE_CHECKING:
    from nichekd.models._encoder import Encoder

FORMAT = 1
WEIGHTS, CONFIG, ENCODER = "aligned.safetensors", "config.json", "encoder"


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

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AlignedConfig:
        """Back from ``config.json``.

        Raises
        ------
        ValueError
            If the values are of another format, or some are missing or unknown.
        """
        if values.get("format") != FORMAT:
            raise ValueError(
                f"The model is of format {values.get('format')}; this version of nichekd reads format {FORMAT}. "
                "Upgrade nichekd, or train it anew: nk.tl.rank_by_gene."
            )
        given, known = set(values) - {"format"}, {f.name for f in fields(cls)}
        if given != known:
            raise ValueError(
                f"{CONFIG} lacks {sorted(known - given)} and holds unknown {sorted(given - known)}; it is damaged. "
                "Fetch the model's folder again."
            )
        kept = {name: value for name, value in values.items() if name != "format"}
        return cls(**kept | {"genes": tuple(kept["genes"])})


class AlignedEncoder(nn.Module):
    """Image features of a cell → features whose similarity order follows that of gene expression.

    Parameters
    ----------
    config
        Sizes, and what the image features have to be.
    encoder
        The image encoder itself where it was fine-tuned; it travels in the folder. ``None`` for encoders of the
        registry, which are named only.
    """

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
        for name, value in sorted(self._weights().items()):
            digest.update(name.encode() + value.numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: str | Path) -> Path:
        """Write ``aligned.safetensors``, ``config.json`` and a model card to the folder ``path``.

        Raises
        ------
        FileExistsError
            If ``path`` is a file, or holds the encoder of another model.
        """
        folder = Path(path)
        if self.encoder is None and (folder / ENCODER).exists():
            raise FileExistsError(
                f"{folder / ENCODER} would be taken for this model's encoder, and it has none; name another folder."
            )
        config = {"format": FORMAT} | asdict(self.config)
        write_folder(folder, weights={WEIGHTS: self._weights()}, config={CONFIG: config}, card=self.card())
        if self.encoder is not None:
            self.encoder.save(folder / ENCODER)
        return folder

    @classmethod
    def load(cls, path: str | Path) -> AlignedEncoder:
        """Read a folder written by :meth:`save`; nothing in it is unpickled.

        Raises
        ------
        FileNotFoundError
            If the folder or one of its files is missing.
        NotADirectoryError
            If ``path`` is a file.
        ValueError
            If a file is damaged, or weights and config don't fit each other.
        """
        folder = Path(path)
        config, state = read_folder(folder, config=CONFIG, weights=WEIGHTS)
        model = cls(AlignedConfig.from_dict(config))
        try:
            model.load_state_dict(state)
        except RuntimeError as err:
            raise ValueError(f"{folder / WEIGHTS} does not fit {CONFIG}: {err}") from err
        if (folder / ENCODER).is_dir():
            from nichekd.models._encoder import Encoder

            model.encoder = Encoder.load(folder / ENCODER)
            if model.encoder.fingerprint != model.config.features.get("fingerprint"):
                raise ValueError(f"{folder / ENCODER} is not the encoder of this model; fetch its folder again.")
        return model.eval()

    def card(self) -> str:
        """The model card, Markdown with the hub's YAML header."""
        from nichekd.models._aligned_card import aligned_card

        return aligned_card(self.config)

    def _weights(self) -> dict[str, Tensor]:
        """Without the encoder's, which is no submodule and has files of its own."""
        return {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}

"""The student: H&E features of a neighborhood in, niche logits out; with all that inference has to remember."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from nichekd.models._folder import read_folder, write_folder
from nichekd.models._neighborhood_transformer import NeighborhoodConfig, neighborhood_network
from nichekd.models._training_range import TrainingRange
from nichekd.models._whiten import Whiten

if TYPE_CHECKING:
    from nichekd.models._encoder import Encoder
    from nichekd.models._neighborhood_batch import NeighborhoodBatch

FORMAT = 2
ADDED = {"training_range": 2}  # values of the config, by the format that they came with
WEIGHTS, CONFIG, CARD, ENCODER = "student.safetensors", "config.json", "README.md", "encoder"


@dataclass(frozen=True)
class StudentConfig:
    """What a student carries, so that nothing has to be remembered at inference.

    Attributes
    ----------
    n_features
        Length of a cell's image features.
    network
        Sizes of its neighborhood network, which reads their principal components.
    niche_names, niche_colors
        K names and hex colours; a niche's place is its column in the logits.
    radius
        Of a neighborhood, µm.
    temperature
        Of the distillation; probabilities are ``softmax(logits / (temperature * calibration))``.
    calibration
        Factor set by :func:`nichekd.tl.calibrate`; 1 where it has not run.
    features
        Encoder, fingerprint, crop and mpp of the image features, as :func:`nichekd.pp.histology_features` records them.
    training
        Facts for the model card: data, split, seeds, metrics.
    training_range
        What the training tissue was like, lowest and highest over its sections: ``mpp`` of the images, mean
        ``n_neighbors``, and ``color`` of the crops; and the number of ``n_groups`` of
        :class:`nichekd.models.TrainingRange`. Empty where it is not known.
    """

    n_features: int
    network: NeighborhoodConfig
    niche_names: tuple[str, ...]
    niche_colors: tuple[str, ...]
    radius: float
    temperature: float = 1.0
    calibration: float = 1.0
    features: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    training_range: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for ``config.json``."""
        return {"format": FORMAT} | asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StudentConfig:
        """Back from ``config.json``.

        Raises
        ------
        ValueError
            If the values are of a later format, or some are missing or unknown.
        """
        written = values.get("format")
        if not isinstance(written, int) or not 1 <= written <= FORMAT:
            raise ValueError(
                f"The student is of format {written}; this version of nichekd reads formats 1 to {FORMAT}. "
                "Upgrade nichekd, or distil the student anew."
            )
        known = {f.name for f in fields(cls)} - {name for name, since in ADDED.items() if since > written}
        given = set(values) - {"format"}
        if given != known:
            raise ValueError(
                f"{CONFIG} lacks {sorted(known - given)} and holds unknown {sorted(given - known)}; "
                "it is damaged. Fetch the student's folder again."
            )
        values = {k: v for k, v in values.items() if k != "format"}
        _check_values(values)
        network = _network_config(values.pop("network"))
        names, colors = tuple(values.pop("niche_names")), tuple(values.pop("niche_colors"))
        return cls(network=network, niche_names=names, niche_colors=colors, **values)


def _check_values(values: dict[str, Any]) -> None:
    """Refuse what no student was saved with; the checksum is of the weights alone."""
    names, colors = values["niche_names"], values["niche_colors"]
    are_lists = isinstance(names, (list, tuple)) and isinstance(colors, (list, tuple))
    right = {
        "n_features": isinstance(values["n_features"], int) and values["n_features"] > 0,
        "niche_names": isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names),
        "niche_colors": are_lists and len(colors) == len(names),
    }
    for key in ("radius", "temperature", "calibration"):
        right[key] = isinstance(values[key], (int, float)) and math.isfinite(values[key]) and values[key] > 0
    right |= {key: isinstance(values.get(key, {}), dict) for key in ("features", "training", "training_range")}
    if wrong := {key: values[key] for key, is_right in right.items() if not is_right}:
        raise ValueError(f"{CONFIG} holds {wrong}, as no student does; it is damaged. Fetch the folder again.")


def _network_config(values: Any) -> NeighborhoodConfig:
    known = {f.name for f in fields(NeighborhoodConfig)}
    if not isinstance(values, dict) or set(values) != known:
        raise ValueError(
            f"The network of {CONFIG} is {values!r}; it has to name {sorted(known)}. Fetch the student's folder again."
        )
    return NeighborhoodConfig(**values)


class NicheStudent(
    nn.Module,
    ModelHubMixin,
    library_name="nichekd",
    tags=["histology", "spatial-transcriptomics", "tissue-niches"],
    repo_url="https://github.com/nichekd/nichekd",
    docs_url="https://nichekd.readthedocs.io",
):
    """Whitened image features → neighborhood network → K niche logits.

    Parameters
    ----------
    config
        Sizes, niches and everything inference needs.
    encoder
        The image encoder itself where it was trained by :func:`nichekd.tl.gene_aware_encoder`; it travels in the
        folder. ``None`` for encoders of the registry, which are named only.
    """

    def __init__(self, config: StudentConfig, *, encoder: Encoder | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.whiten = Whiten(config.n_features, config.network.n_features)
        self.backbone = neighborhood_network(config.network)
        self.head = nn.Linear(config.network.d_model, len(config.niche_names))
        n_groups = config.training_range.get("n_groups")
        self.training_range = TrainingRange(config.network.n_features, n_groups) if n_groups else None
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

    def remember(self, found: TrainingRange, about: dict[str, Any]) -> NicheStudent:
        """Keep what the training tissue was like: distances, and ``config.training_range``; returns the student."""
        self.training_range = found
        return self.configure(training_range=about)

    def configure(self, **changes: Any) -> NicheStudent:
        """Change values of the config in place; returns the student."""
        self.config = replace(self.config, **changes)
        return self

    def save(self, path: str | Path) -> Path:
        """Write ``student.safetensors``, ``config.json`` and a model card to the folder ``path``.

        Raises
        ------
        FileExistsError
            If ``path`` is a file, or holds the encoder of another student.
        """
        folder = Path(path)
        if self.encoder is None and (folder / ENCODER).exists():
            raise FileExistsError(
                f"{folder / ENCODER} would be taken for this student's encoder, and it has none; name another folder."
            )
        write_folder(
            folder, weights={WEIGHTS: self._weights()}, config={CONFIG: self.config.to_dict()}, card=self.card()
        )
        if self.encoder is not None:
            self.encoder.save(folder / ENCODER)
        return folder

    @classmethod
    def load(cls, path: str | Path) -> NicheStudent:
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
        student = cls(StudentConfig.from_dict(config))
        try:
            student.load_state_dict(state)
        except RuntimeError as err:
            raise ValueError(f"{folder / WEIGHTS} does not fit {CONFIG}: {err}") from err
        if (folder / ENCODER).is_dir():
            from nichekd.models._encoder import Encoder

            student.encoder = Encoder.load(folder / ENCODER)
            if student.encoder.fingerprint != student.config.features.get("fingerprint"):
                raise ValueError(f"{folder / ENCODER} is not the encoder of this student; fetch its folder again.")
        return student.eval()

    def card(self) -> str:
        """The model card, Markdown with the hub's YAML header."""
        from nichekd.models._card import student_card

        return student_card(self.config)

    def _weights(self) -> dict[str, Tensor]:
        """Without the encoder's, which is no submodule and has files of its own."""
        return {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **download: Any) -> NicheStudent:
        if Path(model_id).is_dir():
            return cls.load(model_id)
        from huggingface_hub import snapshot_download

        wanted = {"revision", "cache_dir", "force_download", "local_files_only", "token"}
        return cls.load(snapshot_download(model_id, **{k: v for k, v in download.items() if k in wanted}))

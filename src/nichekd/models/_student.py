"""The student: H&E features of a neighborhood in, niche logits out; with all that inference has to remember."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from nichekd.models._folder import read_folder, write_folder
from nichekd.models._hub import fetch_folder, writing
from nichekd.models._neighborhood_transformer import neighborhood_network
from nichekd.models._student_config import CONFIG, StudentConfig
from nichekd.models._training_range import TrainingRange
from nichekd.models._whiten import Whiten

if TYPE_CHECKING:
    from nichekd.models._encoder import Encoder
    from nichekd.models._neighborhood_batch import NeighborhoodBatch

WEIGHTS, CARD, ENCODER = "student.safetensors", "README.md", "encoder"
FILES = (WEIGHTS, CONFIG, CARD, f"{ENCODER}/*")  # all there is to a student


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
            If ``metrics`` name no methods, have no scores, or are of another number of niches.

        Examples
        --------
        >>> import nichekd as nk
        >>> student.configure(metrics=nk.tl.agreement(sdata))  # doctest: +SKIP
        """
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

        return student_card(self.config, brings_encoder=self.encoder is not None)

    def _weights(self) -> dict[str, Tensor]:
        """Without the encoder's, which is no submodule and has files of its own."""
        return {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> NicheStudent:
        """Load a student from a hub, or a folder as :meth:`load` does; nothing in it is unpickled.

        Parameters
        ----------
        pretrained_model_name_or_path
            OWNER/NAME on the hub, or a folder, which goes first.
        revision
            Branch, tag or commit; default the latest.
        token
            For one that is private or gated; default the one that ``hf auth login`` keeps.
        cache_dir, force_download, local_files_only
            Where copies are kept, whether they are fetched anew, and whether they have to do. Only a student's own
            files are fetched, whatever else the repository holds.

        Raises
        ------
        FileNotFoundError
            If there is no such folder, repository or revision, or it holds no student.
        HubAccessError
            If it is gated or the token is refused, or if the hub can't be reached and there is no copy.
        ValueError
            If a file is damaged, weights and config don't fit each other, or the name can't be a repository's.
        """
        if Path(pretrained_model_name_or_path).is_dir():
            return cls.load(pretrained_model_name_or_path)
        folder = fetch_folder(
            str(pretrained_model_name_or_path), FILES, revision=revision, token=token, cache_dir=cache_dir,
            force_download=force_download, local_files_only=local_files_only,
        )  # fmt: skip
        return cls.load(folder)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]
        """Put the student's folder on a hub, its encoder with it where it brings one.

        Parameters
        ----------
        repo_id
            OWNER/NAME; made where it is not there.
        options
            ``private``, ``token``, ``branch``, ``commit_message`` and others of ``huggingface_hub.ModelHubMixin``.

        Returns
        -------
        Address of the commit.

        Raises
        ------
        HubAccessError
            If the hub can't be reached, or does not let you write there.
        ValueError
            If ``repo_id`` can't be a repository's name.

        Warns
        -----
        UserWarning
            If others will see it though the licence of the encoder's weights is non-commercial.
        """
        from nichekd.models._card_features import is_non_commercial

        if is_non_commercial(self.config.features) and not options.get("private"):
            warnings.warn(
                f"The student derives from an encoder under {self.config.features.get('license', 'its own licence')}: what "
                "you may share, and with whom, that licence says. Keep it to yourself by private=True.",
                UserWarning,
                stacklevel=2,
            )
        with writing(repo_id):
            return super().push_to_hub(repo_id, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)

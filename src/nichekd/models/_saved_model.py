"""What all trained models have in common: a folder of safetensors, JSON and a card, on disk or on a hub."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from huggingface_hub import ModelHubMixin
from torch import nn

from nichekd.models._folder import CARD, CONFIG, read_folder, write_folder
from nichekd.models._hub import fetch_folder, writing

if TYPE_CHECKING:
    from torch import Tensor

    from nichekd.models._encoder import Encoder

ENCODER = "encoder"


class SavedModel(
    nn.Module,
    ModelHubMixin,
    ABC,
    library_name="nichekd",
    repo_url="https://github.com/nichekd/nichekd",
    docs_url="https://nichekd.readthedocs.io",
):
    """A network with all that its use has to remember.

    Attributes
    ----------
    config
        Sizes, and what the image features have to be, as values of ``config_type``.
    encoder
        The image encoder itself where it was trained here; ``None`` for encoders of the registry, which are named only.
    """

    weights_file: ClassVar[str]
    config_type: ClassVar[Any]
    noun: ClassVar[str] = "model"
    config: Any
    encoder: Encoder | None

    @property
    def brings_encoder(self) -> bool:
        """Whether the encoder's own files travel in the folder."""
        return self.encoder is not None

    def save(self, path: str | Path) -> Path:
        """Write weights (safetensors), ``config.json`` and a model card to the folder ``path``, and an encoder of its own.

        Raises
        ------
        FileExistsError
            If ``path`` is a file, or holds the encoder of another model, or a ``config.json`` or ``README.md`` that is
            of none.
        """
        folder = Path(path)
        if not self.brings_encoder and (folder / ENCODER).exists():
            raise FileExistsError(
                f"{folder / ENCODER} would be taken for this {self.noun}'s encoder, and it has none; name another folder."
            )
        write_folder(
            folder,
            weights={self.weights_file: self.weights()},
            config={CONFIG: self.config.to_dict()},
            card=self.card(),
        )
        if self.encoder is not None and self.brings_encoder:
            self.encoder.save(folder / ENCODER)
        return folder

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> Self:
        """Read a folder written by :meth:`save`; nothing in it is unpickled.

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
        values, state = read_folder(folder, config=CONFIG, weights=cls.weights_file)
        model = cls(cls.config_type.from_dict(values))
        state = model._take_encoder(folder, state, **options)
        try:
            model.load_state_dict(state)
        except RuntimeError as err:
            raise ValueError(f"{folder / cls.weights_file} does not fit {CONFIG}: {err}") from err
        return model.eval()

    def weights(self) -> dict[str, Tensor]:
        """What the weights file holds: the network, not the encoder, which is no submodule."""
        return {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}

    @abstractmethod
    def card(self) -> str:
        """The model card, Markdown with the hub's YAML header."""

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
        **options: Any,
    ) -> Self:
        """Load from a hub, or from a folder as :meth:`load` does; nothing in it is unpickled.

        Parameters
        ----------
        pretrained_model_name_or_path
            OWNER/NAME on the hub, or a folder, which goes first.
        revision
            Branch, tag or commit; default the latest.
        token
            For one that is private or gated; default the one that ``hf auth login`` keeps.
        cache_dir, force_download, local_files_only
            Where copies are kept, whether they are fetched anew, and whether they have to do. Only a model's own files
            are fetched, whatever else the repository holds.
        options
            Those of :meth:`load`.

        Raises
        ------
        FileNotFoundError
            If there is no such folder, repository or revision, or it holds no model of this kind.
        HubAccessError
            If it is gated or the token is refused, or if the hub can't be reached and there is no copy.
        ValueError
            If a file is damaged, weights and config don't fit each other, or the name can't be a repository's.
        """
        if Path(pretrained_model_name_or_path).is_dir():
            return cls.load(pretrained_model_name_or_path, **options)
        files = (cls.weights_file, CONFIG, CARD, f"{ENCODER}/*")
        folder = fetch_folder(
            str(pretrained_model_name_or_path), files, revision=revision, token=token, cache_dir=cache_dir,
            force_download=force_download, local_files_only=local_files_only,
        )  # fmt: skip
        return cls.load(folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]
        """Put the folder on a hub, an encoder of its own with it.

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

        features = self.config.features
        if is_non_commercial(features) and not options.get("private"):
            warnings.warn(
                f"The {self.noun} derives from an encoder under {features.get('license', 'its own licence')}: what "
                "you may share, and with whom, that licence says. Keep it to yourself by private=True.",
                UserWarning,
                stacklevel=2,
            )
        with writing(repo_id):
            return super().push_to_hub(repo_id, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)

    def _take_encoder(self, folder: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the encoder that ``folder`` brings, if it does; returns what is left of the weights."""
        if (folder / ENCODER).is_dir():
            from nichekd.models._encoder import Encoder

            self.encoder = Encoder.load(folder / ENCODER)
            if self.encoder.fingerprint != self.config.features.get("fingerprint"):
                raise ValueError(f"{folder / ENCODER} is not the encoder of this {self.noun}; fetch its folder again.")
        return state

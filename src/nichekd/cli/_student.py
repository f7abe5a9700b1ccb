"""The student that the user names, and the encoder that it reads features of."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from nichekd.models import Encoder, NicheStudent

ON_A_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # OWNER/NAME


def load_student(name: str) -> NicheStudent:
    """A student's folder or, if there is none and the name is of that kind, one on a hub.

    Raises
    ------
    FileNotFoundError
        If there is neither.
    NotADirectoryError
        If it is a file.
    ValueError
        If its files are damaged.
    """
    from nichekd.models import NicheStudent

    path = Path(name).expanduser()
    if path.exists():
        return NicheStudent.load(path)
    # where a folder of that name is at hand, the student's name is misspelt, and no hub is asked, which may take minutes
    if not ON_A_HUB.fullmatch(name) or path.parent.is_dir():
        raise FileNotFoundError(
            f"There is no student {name} (looked in {path.absolute().parent}). Name the folder that nichekd distill "
            "wrote (OUT/student), or a student on a hub: OWNER/NAME."
        )
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return NicheStudent.from_pretrained(name)
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, ConnectionError) as err:
        raise FileNotFoundError(
            f"There is no folder {name}, and no student of this name was found on the hub ({type(err).__name__}: it has "
            "none, asks for a token, or can't be reached). Check the name, or download it and name the folder."
        ) from err


def fingerprint_of(student: NicheStudent) -> str:
    """16 hexadecimal digits that change with its weights and its config."""
    digest = hashlib.sha256(json.dumps(student.config.to_dict(), sort_keys=True).encode())
    for name, value in sorted(student.state_dict().items()):
        digest.update(f"{name}:{value.dtype}{tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def encoder_for(
    student: NicheStudent, cells: AnnData | SpatialData, *, use_rep: str | None, weights: Path | None, table_key: str
) -> Encoder | None:
    """The encoder of the student's features, or ``None`` if none is needed: found now, not after the segmentation.

    Raises
    ------
    FileNotFoundError
        If ``weights`` is no file.
    ValueError
        If the student names no encoder and a slide has to be read, its weights can't be had, or they are others than
        those that it was trained on.
    """
    from nichekd.models import EncoderAccessError, get_encoder

    wanted = student.config.features
    if weights is not None and (use_rep is not None or student.encoder is not None):
        why = "its features are named by --use-rep" if use_rep is not None else "the student brings its own encoder"
        raise ValueError(f"--weights {weights}: no weights are needed, for {why}. Leave it out.")
    if use_rep is not None or has_features(cells, student, table_key=table_key):
        return None
    if "encoder" not in wanted:
        if getattr(cells, "tables", None) or not hasattr(cells, "images"):
            return None  # those of the same key, if there are some
        raise ValueError(
            "The student carries no encoder: it was distilled from features of unknown origin, so it can't read a slide. "
            "Name cells that have such features, and --use-rep."
        )
    if student.encoder is not None:
        return student.encoder
    name, noted = str(wanted["encoder"]), wanted.get("weights")
    if weights is None and noted is not None and Path(noted).is_file():
        weights = Path(noted)  # where they were on the machine that trained it
    try:
        encoder = get_encoder(name, weights=weights)
    except (EncoderAccessError, ImportError) as err:
        raise ValueError(
            f"The student reads features of encoder {name!r}, whose weights are not here: {err} With a file of them: "
            "--weights FILE."
        ) from err
    if wanted.get("fingerprint") not in (None, encoder.fingerprint):
        raise ValueError(
            f"The student was trained on features of encoder {name!r} with other weights (fingerprint "
            f"{wanted['fingerprint']}, here {encoder.fingerprint}). Name the file of its weights by --weights."
        )
    return encoder


def has_features(cells: AnnData | SpatialData, student: NicheStudent, *, table_key: str) -> bool:
    """Whether the cells have features of the student's kind."""
    from nichekd._keys import Keys
    from nichekd._record import notes
    from nichekd._resolve import get_table
    from nichekd.tl._recorded_features import same_kind

    if getattr(cells, "images", None) and not cells.tables:  # type: ignore[union-attr]
        return False
    adata = get_table(cells, table_key)
    known = notes(adata).get(Keys.FEATURES, {})
    return any(key in adata.obsm and same_kind(found, student.config.features) for key, found in known.items())


def add_features(
    cells: AnnData | SpatialData, student: NicheStudent, encoder: Encoder, *, store: Path | None, device: str | None,
    table_key: str,
) -> None:  # fmt: skip
    """Image features as the student was trained on, streamed to ``store`` where one is named."""
    from nichekd.tl._recorded_features import encode_as_recorded

    encode_as_recorded(cells, student.config.features, encoder, store=store, device=device, table_key=table_key)

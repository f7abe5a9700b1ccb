"""Model folders: safetensors, JSON and a card; read without unpickling, refused when damaged."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load, save

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

CHECKSUM = "sha256"


def write_folder(
    folder: Path, *, weights: dict[str, dict[str, Tensor]], config: dict[str, dict[str, Any]], card: str | None = None
) -> None:
    """Write one weights file and one config, which notes the weights' checksum, to ``folder``.

    Raises
    ------
    FileExistsError
        If ``folder`` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder to write to.")
    folder.mkdir(parents=True, exist_ok=True)
    ((weights_name, state),) = weights.items()
    ((config_name, values),) = config.items()
    blob = save(state)
    (folder / weights_name).write_bytes(blob)
    noted = values | {CHECKSUM: hashlib.sha256(blob).hexdigest()}
    (folder / config_name).write_text(json.dumps(noted, indent=2) + "\n", encoding="utf-8")
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def read_folder(folder: Path, *, config: str, weights: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config, without the checksum, and weights of ``folder``.

    Raises
    ------
    FileNotFoundError
        If the folder or a file is missing.
    NotADirectoryError
        If ``folder`` is a file.
    ValueError
        If a file can't be read, or the weights are not those the config was written with.
    """
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file; name the folder that holds it.")
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    missing = [name for name in (config, weights) if not (folder / name).is_file()]
    if missing:
        there = sorted(p.name for p in folder.iterdir())
        raise FileNotFoundError(f"{folder} lacks {missing}; it has {there}. Is it a model's folder?")
    try:
        values = json.loads((folder / config).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise ValueError(f"{folder / config} is not JSON ({err}); fetch the folder again.") from err
    if not isinstance(values, dict):
        raise ValueError(f"{folder / config} holds a {type(values).__name__}, not an object; fetch the folder again.")
    blob = (folder / weights).read_bytes()
    if hashlib.sha256(blob).hexdigest() != values.pop(CHECKSUM, None):
        raise ValueError(f"{folder / weights} is truncated or was changed: its checksum is not the one in {config}.")
    try:
        return values, load(blob)
    except SafetensorError as err:
        raise ValueError(f"{folder / weights} is no safetensors file ({err}); fetch the folder again.") from err

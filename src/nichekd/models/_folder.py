"""Model folders: safetensors, JSON and a card; read without unpickling, refused when damaged."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load, save

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from torch import Tensor

CONFIG, CARD = "config.json", "README.md"
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
        (folder / CARD).write_text(card, encoding="utf-8")


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


def check_values(values: Any, kind: type, what: str, *, but: Collection[str] = ()) -> None:
    """Refuse a table that does not hold all values of the dataclass ``kind``, save ``but``, and no others.

    Raises
    ------
    ValueError
        If values are missing or unknown.
    """
    known = {f.name for f in fields(kind)} - set(but)
    given = set(values) if isinstance(values, dict) else set()
    if given != known:
        raise ValueError(
            f"{what} lacks {sorted(known - given)} and holds unknown {sorted(given - known)}; it is damaged. Fetch the "
            "model's folder again."
        )


def values_of_format(values: dict[str, Any], newest: int) -> tuple[dict[str, Any], int]:
    """Values of a config without their format, and the format.

    Raises
    ------
    ValueError
        If it is later than ``newest``, or none.
    """
    written = values.get("format")
    if not isinstance(written, int) or not 1 <= written <= newest:
        readable = "format 1" if newest == 1 else f"formats 1 to {newest}"
        raise ValueError(
            f"The model is of format {written}; this version of nichekd reads {readable}. Upgrade nichekd, or train the "
            "model anew."
        )
    return {name: value for name, value in values.items() if name != "format"}, written

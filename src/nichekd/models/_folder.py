"""Model folders: safetensors, JSON and a card; read without unpickling, refused when damaged."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from nichekd._files import unfinished, written

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from torch import Tensor

CONFIG, CARD = "config.json", "README.md"
CHECKSUM = "sha256"
OUR_CARD = b"library_name: nichekd"


def write_folder(
    folder: Path, *, weights: dict[str, dict[str, Tensor]], config: dict[str, dict[str, Any]], card: str | None = None
) -> None:
    """Write one weights file and one config, which notes the weights' checksum, to ``folder``.

    A model that is there stays whole until the new one is: all files are written beside the old ones before the first
    takes its place, the weights before their config. Where a process is killed in between, :func:`read_folder` finds the
    config that goes with them.

    Raises
    ------
    FileExistsError
        If ``folder`` is a file, or holds a config or a card that is not of a model of ours.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder to write to.")
    ((weights_name, state),) = weights.items()
    ((config_name, values),) = config.items()
    _refuse_foreign(folder, config_name, card)
    blob = save(state)
    noted = json.dumps(values | {CHECKSUM: _checksum(blob)}, indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    contents = {} if card is None else {CARD: card.encode()}
    contents |= {config_name: noted.encode(), weights_name: blob}
    with ExitStack() as stack:  # which ends with what it began with: weights, config, card
        for name, content in contents.items():
            stack.enter_context(written(folder / name)).write_bytes(content)


def _refuse_foreign(folder: Path, config_name: str, card: str | None) -> None:
    """Refuse to replace a config or a card that :func:`write_folder` did not write."""
    config, readme = folder / config_name, folder / CARD
    if config.exists():
        foreign = None if _is_config(config) else config
    else:  # huggingface's save_pretrained takes the config away, and leaves our card
        foreign = readme if card is not None and readme.exists() and not _is_card(readme) else None
    if foreign is not None:
        raise FileExistsError(
            f"{foreign} would be replaced, and is of no model of nichekd, or damaged. Name another folder, or remove it."
        )


def _is_config(path: Path) -> bool:
    """Whether :func:`write_folder` wrote it: it notes the checksum of weights."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a folder, or no JSON
        return False
    return isinstance(values, dict) and CHECKSUM in values


def _is_card(path: Path) -> bool:
    return path.is_file() and OUR_CARD in path.read_bytes()


def _checksum(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


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
    values, blob = _read_config(folder / config), (folder / weights).read_bytes()
    newer = unfinished(folder / config)
    if values.get(CHECKSUM) != _checksum(blob) and newer.is_file():  # killed when the weights had taken their place
        values = _read_config(newer)
    if values.pop(CHECKSUM, None) != _checksum(blob):
        raise ValueError(f"{folder / weights} is truncated or was changed: its checksum is not the one in {config}.")
    try:
        return values, load(blob)
    except SafetensorError as err:
        raise ValueError(f"{folder / weights} is no safetensors file ({err}); fetch the folder again.") from err


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise ValueError(f"{path} is not JSON ({err}); fetch the folder again.") from err
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, not an object; fetch the folder again.")
    return values


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

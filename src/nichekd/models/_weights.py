"""Weights from a file or a hub; nothing is unpickled."""

from __future__ import annotations

import pickle
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

NESTED = ("state_dict", "model")  # where training scripts put the weights among other things


class EncoderAccessError(RuntimeError):
    """An encoder's weights can't be had: the hub is out of reach, or asks for a licence or a token."""


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name, of a ``.safetensors`` file or one of ``torch.save``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds anything but tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights={str(path)!r} is no file (looked in {path.absolute().parent}).")
    advice = "Save the weights alone: safetensors.torch.save_file(module.state_dict(), path)."
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as err:
        raise ValueError(f"{path} is no safetensors file ({err}); it may be cut off. Fetch it again.") from err
    except (pickle.UnpicklingError, EOFError, RuntimeError) as err:
        first_line = str(err).split("\n")[0]
        raise ValueError(f"{path} can't be read without running code of its own ({first_line}). {advice}") from err
    for key in NESTED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds a {type(state).__name__} that is not tensors by name. {advice}")
    return state


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], *, source: str, unused: tuple[str, ...] = ()
) -> nn.Module:
    """``module`` with the weights ``state``, all of them.

    Parameters
    ----------
    module
        Changed in place.
    state
        Tensors by name.
    source
        Where they come from, for the error message.
    unused
        Beginnings of names that may be left over, as the classifier's.

    Raises
    ------
    ValueError
        If a tensor is missing, left over or of another shape.
    """
    own = module.state_dict()
    state = {name: value for name, value in state.items() if name in own or not name.startswith(unused or ("\0",))}
    missing, left_over = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if missing or left_over or shapes:
        raise ValueError(
            f"{source} does not fit {type(module).__name__}: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(left_over)} left over {left_over[:3]}, {len(shapes)} of another shape {shapes[:3]}. "
            "Name the encoder that these weights belong to."
        )
    module.load_state_dict(state, strict=True)
    return module


@contextmanager
def hub_access(name: str, advice: str) -> Iterator[None]:
    """Turn the ways in which a hub refuses into an :class:`EncoderAccessError` that says what to do.

    Parameters
    ----------
    name
        The encoder.
    advice
        The ways on.
    """
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        yield
    except (GatedRepoError, RepositoryNotFoundError) as err:  # without a token, a gated repository seems absent
        raise EncoderAccessError(f"The hub refuses the weights of encoder {name!r}: no access. {advice}") from err
    except (EntryNotFoundError, HfHubHTTPError, OSError) as err:
        raise EncoderAccessError(
            f"The weights of encoder {name!r} can't be fetched ({type(err).__name__}: the hub can't be reached, or "
            f"lacks them). {advice}"
        ) from err

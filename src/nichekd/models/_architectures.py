"""Networks that can be built by name, so that trained ones travel as weights alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

_ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {}


def register_architecture(name: str, build: Callable[..., nn.Module]) -> None:
    """Let encoders of an architecture be saved and loaded.

    Parameters
    ----------
    name
        What ``Encoder.architecture`` says.
    build
        ``build(**architecture_kwargs)`` makes the module, untrained.

    Returns
    -------
    ``None``.

    Raises
    ------
    ValueError
        If another builder has the name.
    """
    if _ARCHITECTURES.setdefault(name, build) is not build:
        raise ValueError(f"There is an architecture {name!r} already; choose another name.")


def build_architecture(name: str, /, **kwargs: Any) -> nn.Module:
    """A module, untrained, of a registered architecture.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    from nichekd.models import _encoder_zoo, _gene_aware  # noqa: F401  register ours

    if name not in _ARCHITECTURES:
        raise ValueError(
            f"Architecture {name!r} is unknown; there are {sorted(_ARCHITECTURES)}. Register it with "
            "nk.models.register_architecture."
        )
    return _ARCHITECTURES[name](**kwargs)

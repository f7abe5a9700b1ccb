"""Encoders by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from nichekd.models._encoder import Encoder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MODULE_NAME = "histology"  # encoder name, hence X_histology, of a module that is handed in

_ENCODERS: dict[str, Callable[[str | Path | None], Encoder]] = {}
_IN_USE: set[str] = set()  # names that encoders have because they are in use, not because somebody registered them


def register_encoder(
    name: str, factory: Callable[[str | Path | None], Encoder] | None = None, *, overwrite: bool = False
) -> Callable[..., Any]:
    """Give an encoder a name, for ``nk.pp.histology_features(encoder=name)`` and students trained on it.

    Parameters
    ----------
    name
        New name; features go to ``obsm["X_<name>"]``.
    factory
        ``factory(weights)`` makes the :class:`Encoder`; ``weights`` is what the user gave, or ``None``. Left out,
        the function is a decorator.
    overwrite
        Take the name away from another encoder.

    Returns
    -------
    The factory, or the decorator.

    Raises
    ------
    ValueError
        If the name is taken.

    Examples
    --------
    >>> import torch
    >>> from nichekd.models import Encoder, register_encoder
    >>> @register_encoder("mean_colour")
    ... def mean_colour(weights=None):
    ...     return Encoder("mean_colour", torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()))
    """
    if factory is None:
        return lambda decorated: register_encoder(name, decorated, overwrite=overwrite)
    if not overwrite and _ENCODERS.get(name, factory) is not factory:
        raise ValueError(f"There is an encoder {name!r} already; choose another name, or overwrite=True.")
    _ENCODERS[name] = factory
    _IN_USE.discard(name)
    return factory


def remember_encoder(encoder: Encoder, *, overwrite: bool = False) -> None:
    """Let ``encoder`` be known by its name for the rest of the session, so that what is made of its features finds it.

    A name that somebody registered is left alone, unless by ``overwrite``.
    """
    from nichekd.models import _encoder_zoo  # noqa: F401  registers ours

    if overwrite or encoder.name not in _ENCODERS or encoder.name in _IN_USE:
        _IN_USE.add(encoder.name)
        _ENCODERS[encoder.name] = lambda weights: encoder


def get_encoder(encoder: str | nn.Module | Encoder, *, weights: str | Path | None = None) -> Encoder:
    """An encoder by name, or one made of a module.

    Parameters
    ----------
    encoder
        A registered name (``uni2``, ``efficientnet_lite0``, ``color``, ``random``), a model of timm, a
        ``torch.nn.Module`` (its name is then ``histology``, its normalisation ImageNet's), or an :class:`Encoder`.
    weights
        Weights file of a named encoder, ``.safetensors`` or of ``torch.save``; without it, they come from a hub or a
        package.

    Returns
    -------
    The encoder, on the CPU if it was made here.

    Raises
    ------
    TypeError
        If ``encoder`` is something else.
    ValueError
        If no encoder has that name, the weights do not fit it, or ``weights`` comes with a module.
    FileNotFoundError
        If ``weights`` is no file.
    EncoderAccessError
        If the hub that has the weights refuses or can't be reached.
    ImportError
        If the package that has the weights is not installed.
    """
    if isinstance(encoder, (Encoder, nn.Module)):
        if weights is not None:
            raise ValueError(f"weights={str(weights)!r} goes with an encoder's name; a module brings its own.")
        return encoder if isinstance(encoder, Encoder) else Encoder(MODULE_NAME, encoder)
    if not isinstance(encoder, str):
        raise TypeError(
            f"encoder is a {type(encoder).__name__}; it has to be a name, a torch.nn.Module or a nk.models.Encoder."
        )
    from nichekd.models import _encoder_zoo

    if encoder in _ENCODERS:
        return _ENCODERS[encoder](weights)
    return _encoder_zoo.timm_encoder(encoder, weights, known=sorted(_ENCODERS))

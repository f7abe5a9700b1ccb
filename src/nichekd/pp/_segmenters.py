"""Networks of other packages that outline nuclei, each as a function from pixels to labels."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from nichekd.pp._nuclei_blocks import Labeller

PACKAGES = {"cellpose": "cellpose", "stardist": "stardist tensorflow", "instanseg": "instanseg-torch"}  # for pip


@dataclass(frozen=True)
class Segmenter:
    """A network, and the resolution that it was trained at."""

    mpp: float
    label: Labeller
    about: str


def load_segmenter(method: str, *, model: str | None, device: str) -> Segmenter:
    """A network by its package's name.

    Parameters
    ----------
    method
        ``"cellpose"``, ``"stardist"`` or ``"instanseg"``.
    model
        Its pretrained model, a name or a path; ``None`` is the package's for nuclei in H&E.
    device
        As in ``nk.settings.device``.

    Raises
    ------
    ImportError
        If the package is not installed.
    """
    loaders: dict[str, Callable[[str | None, str], Segmenter]] = {
        "cellpose": _cellpose,
        "stardist": _stardist,
        "instanseg": _instanseg,
    }
    return loaders[method](model, device)


def _module(method: str, name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as err:
        raise ImportError(
            f"method={method!r} needs a package that is not here ({err}). Install it: pip install {PACKAGES[method]}; "
            "or take method='watershed', which needs none and no weights."
        ) from err


def _cellpose(model: str | None, device: str) -> Segmenter:
    from nichekd.models._precision import resolve_device
    from nichekd.pp._nuclei import haematoxylin

    models = _module("cellpose", "cellpose.models")
    gpu = resolve_device(device).type != "cpu"
    if "model_type" in inspect.signature(models.CellposeModel).parameters and hasattr(models, "Cellpose"):
        # up to version 3: a network for bright nuclei on a dark ground, 17 px wide
        network = models.CellposeModel(gpu=gpu, model_type=model or "nuclei")
        return Segmenter(
            0.5, lambda rgb: network.eval(haematoxylin(rgb), channels=[0, 0])[0], f"cellpose {model or 'nuclei'}"
        )
    network = models.CellposeModel(gpu=gpu, **({"pretrained_model": model} if model else {}))
    return Segmenter(0.5, lambda rgb: network.eval(np.moveaxis(rgb, 0, -1))[0], f"cellpose {model or 'cpsam'}")


def _stardist(model: str | None, device: str) -> Segmenter:
    models = _module("stardist", "stardist.models")
    name = model or "2D_versatile_he"
    network = models.StarDist2D.from_pretrained(name)

    def label(rgb: NDArray[np.uint8]) -> NDArray[np.integer]:
        # fixed range: one taken from each block's own values would draw other outlines on both sides of a seam
        return network.predict_instances(np.moveaxis(rgb, 0, -1).astype(np.float32) / 255)[0]

    return Segmenter(0.25, label, f"stardist {name}")


def _instanseg(model: str | None, device: str) -> Segmenter:
    from nichekd.models._precision import resolve_device

    package = _module("instanseg", "instanseg")
    name = model or "brightfield_nuclei"
    network = package.InstanSeg(name, device=str(resolve_device(device)), verbosity=0)

    def label(rgb: NDArray[np.uint8]) -> NDArray[np.integer]:
        found = network.eval_small_image(rgb, pixel_size=0.5, return_image_tensor=False, target="nuclei")
        found = found.cpu().numpy() if hasattr(found, "cpu") else np.asarray(found)
        return found.reshape(found.shape[-2:]).astype(np.int32)

    return Segmenter(0.5, label, f"instanseg {name}")

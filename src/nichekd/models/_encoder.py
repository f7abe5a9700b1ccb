"""Frozen image encoders: uint8 crops in, float32 features out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nichekd.models._architectures import build_architecture
from nichekd.models._folder import read_folder, write_folder
from nichekd.models._precision import Precision, resolve_precision

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEIGHTS, CONFIG = "encoder.safetensors", "encoder.json"


@dataclass(eq=False)
class Encoder:
    """A frozen network that turns a crop into a feature vector, with all that has to be known to use it.

    The module is put in evaluation mode and its parameters are frozen, in place; to go on training it, hand in a
    ``copy.deepcopy`` of it.

    Attributes
    ----------
    name
        What :func:`get_encoder` knows it by; features go to ``obsm["X_<name>"]``.
    module
        Normalised float crops (b, 3, h, w) → features (b, n_features).
    mean, sd
        Per channel of values in 0...1: the module sees (value / 255 − mean) / sd.
    n_features
        Length of a feature vector; found by :meth:`check` where it is not given.
    crop_px
        The only side of a crop that the module takes; ``None`` if it takes any.
    multiple_px
        Crops have to be a multiple of it: the patch of a transformer.
    license
        Of the weights.
    weights
        File they were read from, where one was handed in.
    bf16_on
        Types of device on which ``precision="auto"`` means bf16, where the hardware has it.
    architecture, architecture_kwargs
        Name given to :func:`register_architecture` and its arguments; with them the encoder can be saved.

    Examples
    --------
    >>> import torch
    >>> from nichekd.models import Encoder
    >>> mean_colour = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    >>> encoder = Encoder("mean_colour", mean_colour, mean=(0, 0, 0), sd=(1, 1, 1))
    >>> encoder.encode(torch.full((1, 3, 8, 8), 255, dtype=torch.uint8))
    tensor([[1., 1., 1.]])
    """

    name: str
    module: nn.Module
    mean: tuple[float, float, float] = IMAGENET_MEAN
    sd: tuple[float, float, float] = IMAGENET_SD
    n_features: int | None = None
    crop_px: int | None = None
    multiple_px: int = 1
    license: str = "unknown"
    weights: str | None = None
    bf16_on: tuple[str, ...] = ()
    architecture: str | None = None
    architecture_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module):
            raise TypeError(f"module is a {type(self.module).__name__}; it has to be a torch.nn.Module.")
        if not self.name:
            raise ValueError("An encoder needs a name: its features go to obsm['X_<name>'].")
        self.mean, self.sd = _three(self.mean, "mean"), _three(self.sd, "sd")
        if min(self.sd) <= 0:
            raise ValueError(f"sd={self.sd}; each has to be above 0.")
        self.bf16_on = tuple(self.bf16_on)
        self.module.eval().requires_grad_(False)
        self._empty_on = torch.device("cpu")  # of a module without parameters

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        first = next(chain(self.module.parameters(), self.module.buffers()), None)
        return self._empty_on if first is None else first.device

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the module's classes, its state, ``mean`` or ``sd``; no cache."""
        digest = hashlib.sha256()
        for name, module in self.module.named_modules():
            digest.update(f"{name}:{type(module).__qualname__};".encode())
        digest.update(repr((self.mean, self.sd)).encode())
        for name, value in sorted(self.module.state_dict().items()):
            digest.update(f"{name}:{value.dtype}{tuple(value.shape)};".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str) -> Encoder:
        """Move the module, convolutions in channels-last order; returns the encoder."""
        self._empty_on = torch.device(device)
        self.module.to(device)
        if any(isinstance(module, nn.Conv2d) for module in self.module.modules()):
            self.module.to(memory_format=torch.channels_last)
        return self

    def precision(self, precision: Precision = "auto") -> Literal["32", "bf16"]:
        """``"32"`` or ``"bf16"``: what :meth:`encode` runs in on the module's device."""
        return resolve_precision(precision, self.device, self.bf16_on)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (b, 3, h, w) → float32 on the module's device, (value / 255 − mean) / sd."""
        x = pixels.to(self.device, non_blocking=True).to(torch.float32)  # moved as bytes, a quarter of what floats are
        for channel, (mean, sd) in enumerate(zip(self.mean, self.sd, strict=True)):
            x[:, channel].mul_(1 / (255 * sd)).sub_(mean / sd)  # plane by plane: a third of the time of all at once
        return x.contiguous(memory_format=torch.channels_last)

    def encode(self, pixels: Tensor | NDArray[np.uint8], *, precision: Precision = "auto") -> Tensor:
        """Features of crops.

        Parameters
        ----------
        pixels
            uint8, (b, 3, h, w).
        precision
            ``"auto"``, ``"32"`` or ``"bf16"``. On CPUs with bf16 instructions ``efficientnet_lite0`` takes a quarter
            to a half of the time in bf16, at a median cosine of 0.997 to its float32 features (0.990 at worst, on
            192 crops of the pancreas); what was used is recorded with the features.

        Returns
        -------
        float32, (b, n_features), on the module's device; on CUDA without waiting for the result.

        Raises
        ------
        TypeError
            If the crops are not uint8, or the module returns no tensor.
        ValueError
            If the crops are not (b, 3, h, w), or the module does not return one vector a crop.
        """
        features = self.run(self.module, pixels, precision=precision)
        return self._checked(features, len(pixels))

    @torch.no_grad()
    def run(
        self, network: Callable[[Tensor], Any], pixels: Tensor | NDArray[np.uint8], *, precision: Precision = "auto"
    ) -> Any:
        """``network``, which is the module or a part of it, on normalised crops; see :meth:`encode`."""
        x = torch.from_numpy(np.ascontiguousarray(pixels)) if isinstance(pixels, np.ndarray) else pixels
        if not isinstance(x, Tensor) or x.dtype != torch.uint8:
            raise TypeError(f"Crops are {getattr(x, 'dtype', type(x).__name__)}; encoders take uint8, 0 to 255.")
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"Crops have shape {tuple(x.shape)}; it has to be (b, 3, height, width).")
        if self.device.type == "cuda" and x.device.type == "cpu":
            x = x.pin_memory()
        self.module.eval()
        bf16 = self.precision(precision) == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            return network(self.normalise(x))

    def check(self, crop_px: int) -> int:
        """Length of the feature vector of a crop of ``crop_px``, found with a white crop.

        Raises
        ------
        ValueError
            If the encoder does not take such crops, or returns other features than it says.
        """
        if self.crop_px not in {None, crop_px}:
            raise ValueError(
                f"Encoder {self.name!r} takes crops of {self.crop_px} px only; set crop_px={self.crop_px}."
            )
        if crop_px % self.multiple_px:
            below = crop_px // self.multiple_px * self.multiple_px
            valid = [px for px in (below, below + self.multiple_px) if px > 0]
            raise ValueError(
                f"crop_px={crop_px} is no multiple of the {self.multiple_px} px patches of encoder {self.name!r}; "
                f"the nearest are {valid}."
            )
        white = torch.full((1, 3, crop_px, crop_px), 255, dtype=torch.uint8)
        found = self.encode(white, precision="32").shape[1]
        if self.n_features not in {None, found}:
            raise ValueError(f"Encoder {self.name!r} says n_features={self.n_features}, but returns {found}.")
        self.n_features = found
        return found

    def _checked(self, features: Any, n_crops: int) -> Tensor:
        if not isinstance(features, Tensor):
            raise TypeError(
                f"Encoder {self.name!r} returns a {type(features).__name__}; it has to be one tensor (b, F)."
            )
        if features.ndim != 2 or len(features) != n_crops:
            raise ValueError(
                f"Encoder {self.name!r} returns shape {tuple(features.shape)} for {n_crops} crops; it has to be "
                "(b, F). Pool and flatten: nn.Sequential(module, nn.AdaptiveAvgPool2d(1), nn.Flatten())."
            )
        return features.float()

    def save(self, path: str | Path) -> Path:
        """Write ``encoder.safetensors`` and ``encoder.json`` to the folder ``path``.

        Raises
        ------
        ValueError
            If the encoder names no architecture, so that it could not be built again.
        """
        if self.architecture is None:
            raise ValueError(
                f"Encoder {self.name!r} has no architecture=, so it could not be built again. Register how with "
                "nk.models.register_architecture, and name it."
            )
        state = {name: value.detach().cpu().contiguous().clone() for name, value in self.module.state_dict().items()}
        config = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "module"}
        write_folder(Path(path), weights={WEIGHTS: state}, config={CONFIG: config})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Encoder:
        """Read a folder written by :meth:`save`; nothing in it is unpickled.

        Raises
        ------
        FileNotFoundError
            If the folder or one of its files is missing.
        ValueError
            If a file is damaged, or names an unknown architecture.
        """
        from nichekd.models._weights import load_strictly

        config, state = read_folder(Path(path), config=CONFIG, weights=WEIGHTS)
        unknown = {f.name for f in fields(cls) if f.name != "module"} ^ set(config)
        if unknown:
            raise ValueError(f"{Path(path) / CONFIG} lacks or adds {sorted(unknown)}; fetch the folder again.")
        module = build_architecture(config["architecture"], **config["architecture_kwargs"])
        return cls(module=load_strictly(module, state, source=str(Path(path) / WEIGHTS)), **config)


def _three(values: Any, what: str) -> tuple[float, float, float]:
    values = tuple(float(value) for value in values)
    if len(values) != 3:
        raise ValueError(f"{what}={values}; it needs three numbers, red, green and blue.")
    return values

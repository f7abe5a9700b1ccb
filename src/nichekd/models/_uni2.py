"""UNI2-h, the paper's encoder: a ViT-H/14 of pathology, gated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nichekd.models._encoder import IMAGENET_MEAN, IMAGENET_SD, Encoder
from nichekd.models._weights import hub_access, load_state, load_strictly

if TYPE_CHECKING:
    from torch import nn

HUB = "hf-hub:MahmoodLab/UNI2-h"
LICENSE = "CC-BY-NC-ND-4.0"
PATCH = 14
KWARGS: dict[str, Any] = {
    "img_size": 224,
    "patch_size": PATCH,
    "depth": 24,
    "num_heads": 24,
    "init_values": 1e-5,
    "embed_dim": 1536,
    "mlp_ratio": 2.66667 * 2,
    "num_classes": 0,
    "no_embed_class": True,
    "reg_tokens": 8,
    "dynamic_img_size": True,
}
ADVICE = (
    "Either accept the licence at https://huggingface.co/MahmoodLab/UNI2-h, log in with a token (`hf auth login`) and "
    "run again with a connection; or do without the hub: weights='pytorch_model.bin' if you have the file, or another "
    "encoder, encoder='efficientnet_lite0', or for good nk.settings.encoder = 'efficientnet_lite0', which encoder=None takes."
)


def build_uni2(name: str = "vit_giant_patch14_224", *, pretrained: bool = False, **changes: Any) -> nn.Module:
    """The network; ``changes`` to its sizes make small stand-ins for tests."""
    import timm
    from timm.layers import SwiGLUPacked

    kwargs = KWARGS | {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU} | changes
    return timm.create_model(name, pretrained=pretrained, **kwargs)


def uni2(weights: str | Path | None = None, **changes: Any) -> Encoder:
    """The encoder: CLS token, 1,536 features; from the hub, or the local file ``weights``."""
    if weights is None:
        with hub_access("uni2", ADVICE):
            module = build_uni2(HUB, pretrained=True, **changes)
    else:
        state = load_state(weights)
        module = load_strictly(build_uni2(**changes), state, source=f"weights={str(weights)!r}")
    return Encoder(
        "uni2",
        module,
        # hard-coded: for a local file timm knows nothing and answers 0.5
        mean=IMAGENET_MEAN,
        sd=IMAGENET_SD,
        n_features=(KWARGS | changes)["embed_dim"],
        multiple_px=PATCH,
        license=LICENSE,
        weights=None if weights is None else str(Path(weights).absolute()),
        bf16_on=("cuda",),
        architecture="uni2",
        architecture_kwargs=changes,
    )

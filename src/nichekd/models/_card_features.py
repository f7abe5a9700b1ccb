"""What a model card says of the image features that a model reads: their crop, and what their licence asks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

DERIVATIVE = """
## Licence

The image encoder {of} is licensed {license}. A model trained on its features is a derivative for non-commercial research;
share it, and what it maps, only as that licence{gate} allows.
"""
NON_COMMERCIAL_IDS = ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0")  # as hubs name them


def is_non_commercial(features: Mapping[str, Any]) -> bool:
    """Whether the licence of the encoder's weights, as recorded with its features, forbids commercial use."""
    return features.get("encoder") == "uni2" or "nc" in re.split("[^a-z]+", str(features.get("license", "")).lower())


def license_id(features: Mapping[str, Any]) -> str:
    """What hubs call it; of an encoder that leaves it to whoever shares the model, ``other``."""
    if features.get("encoder") == "uni2":
        return "cc-by-nc-nd-4.0"
    name = str(features.get("license", "")).lower()
    return name if name in NON_COMMERCIAL_IDS else "other"


def derivative_note(features: Mapping[str, Any]) -> str:
    """A section on what may be done with the model; empty where the encoder's licence asks nothing."""
    if features.get("encoder") == "uni2":
        return DERIVATIVE.format(of="UNI2-h", license="CC-BY-NC-ND 4.0 and gated", gate=" and its gate")
    if not is_non_commercial(features):
        return ""
    return DERIVATIVE.format(of=features.get("encoder", ""), license=features["license"], gate="")


def crop_of(features: Mapping[str, Any]) -> str:
    """Side and resolution of the crops, and how they were read."""
    if "crop_px" not in features:
        return "not recorded"
    crop = f"{features['crop_px']} px at {float(features['mpp']):.4g} µm/px"
    if features.get("mode") == "dense":
        crop += f", read off tiles {features.get('stride_px')} px apart"
    return f"{crop}, stain normalised by {features['stain']}" if features.get("stain") else crop


def own_features(features: Mapping[str, Any]) -> str:
    """A line of the example: what has to be there where nichekd did not make the features; empty where it did."""
    if "encoder" in features:
        return ""
    key = features.get("use_rep", "X_…")
    return f'# beforehand: sdata["table"].obsm["{key}"], features made as those of the training; nichekd did not make them\n'


def common_facts(features: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, str]:
    """What the cards of all models but students tell alike, by the names in their templates."""
    return {
        "license_id": license_id(features),
        "encoder": str(features.get("encoder", "not recorded")),
        "encoder_license": str(features.get("license", "not recorded")),
        "crop": crop_of(features),
        "training": ", ".join(f"{name}: {value}" for name, value in training.items()) or "not recorded",
        "derivative": derivative_note(features),
        "own_features": own_features(features),
    }

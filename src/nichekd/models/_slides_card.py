"""The model card of a slide classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nichekd.models._card_features import crop_of, derivative_note, license_id

if TYPE_CHECKING:
    from nichekd.models._attention_mil import SlideClassifierConfig

TEMPLATE = """\
---
library_name: nichekd
license: {license_id}
tags:
- histology
- multiple-instance-learning
---

# Slides as {classes}

Tells a slide's class from the image features of its cells, and which of them it looked at (attention-based
multiple-instance learning).

| | |
|---|---|
| image encoder | {encoder} |
| encoder's licence | {encoder_license} |
| crop | {crop} |
| training | {training} |

## Limits

For research only; not for diagnosis. It knows the patients, stain and scanner that it was trained on; attention says
what it looked at, not why.
{derivative}"""


def slides_card(config: SlideClassifierConfig) -> str:
    """Markdown with the hub's YAML header."""
    features = config.features
    return TEMPLATE.format(
        license_id=license_id(features),
        classes=" or ".join(config.classes),
        encoder=features.get("encoder", "not recorded"),
        encoder_license=features.get("license", "not recorded"),
        crop=crop_of(features),
        training=", ".join(f"{name}: {value}" for name, value in config.training.items()) or "not recorded",
        derivative=derivative_note(features),
    )

"""The model card of a slide classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nichekd.models._card_features import common_facts

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
    return TEMPLATE.format(classes=" or ".join(config.classes), **common_facts(config.features, config.training))

"""The model card of an aligned encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nichekd.models._card_features import common_facts

if TYPE_CHECKING:
    from nichekd.models._aligned_encoder import AlignedConfig

TEMPLATE = """\
---
library_name: nichekd
license: {license_id}
tags:
- histology
- spatial-transcriptomics
- representation-learning
---

# Image features ordered by genes

Turns image features of cell-centred crops into features whose order of similarity follows that of gene expression
(RankByGene). No gene is needed to use it.

| | |
|---|---|
| image encoder | {encoder} |
| encoder's licence | {encoder_license} |
| crop | {crop} |
| genes in training | {n_genes} |
| training | {training} |

## Use

```python
import nichekd as nk

model = nk.models.AlignedEncoder.load("this/folder")
nk.tl.embed_histology(slide, model)  # slide: cells with an H&E image
```

## Limits

For research only; not for diagnosis. It knows the tissue, stain and scanner it was trained on.
{derivative}"""


def aligned_card(config: AlignedConfig) -> str:
    """Markdown with the hub's YAML header."""
    return TEMPLATE.format(n_genes=len(config.genes), **common_facts(config.features, config.training))

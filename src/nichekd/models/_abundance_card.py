"""The model card of an abundance model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nichekd.models._card_features import common_facts

if TYPE_CHECKING:
    from nichekd.models._abundance_model import AbundanceConfig

TEMPLATE = """\
---
library_name: nichekd
license: {license_id}
tags:
- histology
- spatial-transcriptomics
- cell-type-abundance
---

# Abundances of {n_types} cell types from H&E

Predicts how much there is of {names}, from image features of crops. Expression was looked at in training alone.

| | |
|---|---|
| image encoder | {encoder} |
| encoder's licence | {encoder_license} |
| adapters in the encoder | {lora} |
| crop | {crop} |
| genes in training | {n_genes} |
| training | {training} |

## Use

```python
import nichekd as nk

model = nk.models.AbundanceModel.load("this/folder")
sdata = nk.io.paired(cells, "slide.svs")  # cells or spots: AnnData, centres in µm
{own_features}nk.tl.predict_abundance(sdata, model)
```

## Limits

For research only; not for diagnosis. The model knows the tissue, stain and scanner it was trained on, and the unit of
its abundances is that of the training data.
{derivative}"""


def abundance_card(config: AbundanceConfig) -> str:
    """Markdown with the hub's YAML header."""
    lora = config.lora
    adapters = "none" if lora is None else f"rank {lora.r}, in the last {lora.blocks} blocks"
    return TEMPLATE.format(
        n_types=len(config.types),
        names=", ".join(config.types),
        lora=adapters,
        n_genes=len(config.genes) or "none",
        **common_facts(config.features, config.training),
    )

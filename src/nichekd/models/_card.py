"""The model card of a student."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nichekd.models._student import StudentConfig

TEMPLATE = """\
---
library_name: nichekd
license: {license_id}
tags:
- histology
- spatial-transcriptomics
- tissue-niches
---

# A niche student: {n_niches} tissue niches from H&E

Maps the niches {names} on plain H&E, from image features of cell-centred crops and the cells' places. It was
distilled from a teacher that saw gene expression.

| | |
|---|---|
| image encoder | {encoder} |
| encoder's licence | {encoder_license} |
| crop | {crop} |
| neighborhood radius | {radius:.2f} µm |
| training | {training} |

## Use

```python
import nichekd as nk

student = nk.models.NicheStudent.load("this/folder")
sdata = nk.io.paired(cells, "slide.svs")  # cells: AnnData, centres in µm
nk.tl.predict_niches(sdata, student)
```

## Limits

For research only; not for diagnosis. A student knows the tissue, stain and scanner it was trained on. Its niches are
the teacher's, which are a partition found without labels, not anatomy that someone confirmed.
{derivative}"""

UNI2 = """
The encoder UNI2-h is licensed CC-BY-NC-ND 4.0 and gated. A student trained on its features is a derivative for
non-commercial research; share it only as that licence and its gate allow.
"""


def student_card(config: StudentConfig) -> str:
    """Markdown with the hub's YAML header."""
    features = config.features
    encoder = str(features.get("encoder", "not recorded"))
    license_name = str(features.get("license", "not recorded"))
    crop = (
        f"{features['crop_px']} px at {float(features['mpp']):.4g} µm/px" if "crop_px" in features else "not recorded"
    )
    training = ", ".join(f"{name}: {value}" for name, value in config.training.items()) or "not recorded"
    return TEMPLATE.format(
        license_id="cc-by-nc-nd-4.0" if encoder == "uni2" else "other",
        n_niches=len(config.niche_names),
        names=", ".join(config.niche_names),
        encoder=encoder,
        encoder_license=license_name,
        crop=crop,
        radius=config.radius,
        training=training,
        derivative=UNI2 if encoder == "uni2" else "",
    )

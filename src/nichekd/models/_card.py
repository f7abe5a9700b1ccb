"""The model card of a student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nichekd.models._card_features import crop_of, derivative_note, license_id, own_features

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nichekd.models._student_config import StudentConfig

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

## What it reads

| | |
|---|---|
| image encoder | {encoder} |
| encoder's licence | {encoder_license} |
| crop | {crop} |
| neighborhood radius | {radius:.2f} µm |

## Data and protocol

| | |
|---|---|
| training | {training} |
| training tissue | {tissue} |
| temperature of the distillation | {temperature:.4g} |
| probabilities | {probabilities} |

## Metrics

{metrics}

## Use

```python
import nichekd as nk

student = nk.models.NicheStudent.load("this/folder")  # or NicheStudent.from_pretrained("OWNER/NAME")
sdata = nk.io.slide("slide.svs")  # or nk.io.paired(cells, "slide.svs"), cells: AnnData, centres in µm
{own_features}nk.tl.predict_niches(sdata, student)
```

Intended for research on H&E of the tissue, stain and scanner that it was trained on: to map niches where there is no
expression, to choose regions and slides worth measuring, and to find what should then be tested.

## Limits

For research only; not for diagnosis, prognosis or a choice of treatment. A student knows the tissue, stain and scanner it
was trained on. On other tissue its probabilities can be high and mean nothing: look at `obs["niche_ood"]`, over 1 out of
distribution, and at the warnings of `predict_niches`. Its niches are the teacher's, which are a partition found without
labels, not anatomy that someone confirmed.
{derivative}"""

UNKNOWN = "Not recorded. To judge it, run `nk.tl.agreement` on the test strip of a section with expression, then\n" \
    "`student.configure(metrics=table)`."  # fmt: skip

READING = """\
Agreement with the teacher's niches on cells that it was judged on: ARI and NMI are 1 for the same partition and 0, or
near it, for chance; JSD compares cell types, 0 for the same; ECE is the error of the probabilities. Where there are
some, floors are what images give that know nothing of the tissue, and ceilings what can be had at best: a student that
is given the expression, or the teacher with another seed."""

SCORES = ("ARI", "NMI", "JSD", "macro_f1", "ECE", "ECE_calibrated", "n_cells")
METHODS = {
    "niche": "student",
    "niche_gene_aware": "student, gene-aware features",
    "niche_histology_nolan": "NOLAN on image features",
    "niche_histology_leiden": "Leiden on image features",
    "niche_gene_aware_nolan": "NOLAN on gene-aware features",
    "niche_gene_aware_leiden": "Leiden on gene-aware features",
    "niche_color": "student, colours alone",
    "niche_random_encoder": "student, an encoder with random weights",
    "niche_shuffled": "student, images of other cells",
    "niche_expression": "student, expression in place of images",
    "niche_teacher_other_seed": "teacher, another seed",
}


def student_card(config: StudentConfig, *, brings_encoder: bool = False) -> str:
    """Markdown with the hub's YAML header."""
    features = config.features
    license_name = str(features.get("license", "not recorded"))
    encoder = str(features.get("encoder", "not recorded"))
    return TEMPLATE.format(
        license_id=license_id(features),
        n_niches=len(config.niche_names),
        names=", ".join(config.niche_names),
        encoder=f"{encoder}, in this folder" if brings_encoder else encoder,
        encoder_license=license_name,
        crop=crop_of(features),
        radius=config.radius,
        training=_facts(config.training) or "not recorded",
        tissue=_tissue(config.training_range),
        temperature=config.temperature,
        probabilities=f"calibrated, factor {config.calibration:.3g}" if config.calibration != 1 else "not calibrated",
        metrics=_metrics(config.metrics),
        derivative=derivative_note(features),
        own_features=own_features(features),
    )


def _facts(training: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}: ({_facts(value)})" if isinstance(value, dict) else f"{name}: {value}"
        for name, value in training.items()
    )


def _tissue(known: Mapping[str, Any]) -> str:
    if "n_neighbors" not in known:
        return "not recorded"
    parts = [f"{_span(known['n_neighbors'], '.1f')} neighbors of a cell on average"]
    if "mpp" in known:
        parts.append(f"images of {_span(known['mpp'], '.4g')} µm/px")
    return ", ".join(parts)


def _span(ends: Sequence[float], form: str) -> str:
    low, high = (format(float(end), form) for end in ends)
    return low if low == high else f"{low} to {high}"


def _metrics(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table, with a column for each score that some row has."""
    if not rows:
        return UNKNOWN
    columns = [name for name in ("role", *SCORES) if any(name in row for row in rows)]
    lines = [f"| method | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for row in rows:
        shown = [METHODS.get(row["key"], row["key"]), *(_shown(row, name) for name in columns)]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join([READING, "", *lines])


def _shown(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name, "")
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    spread = row.get(f"{name}_sd")
    return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"

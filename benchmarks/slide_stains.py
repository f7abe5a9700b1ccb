"""Part e of ``slide.py``: the same tissue in another stain."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pancreas_section import FIT
from slide_changes import STAIN_CHANGES, ari, cut_out, in_test, quietly, unchanged

import nichekd as nk
from nichekd.models import CropAugmentation
from nichekd.tl import GeneAwareSettings

if TYPE_CHECKING:
    import argparse

    from spatialdata import SpatialData

    from nichekd.models import Encoder

STAINS = (None, "macenko", "reinhard")
ARMS = ("frozen", "plain", "varied")


def stain_shift(sdata: SpatialData, arm: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """ARI on the test strip, by the stain normalisation and the slide's stain, with one kind of encoder."""
    adata = sdata["table"]
    cells = adata[in_test(adata)]
    truth = cells.obs["niche_teacher"].to_numpy()
    changes = {"unchanged": unchanged, **STAIN_CHANGES}
    folder = options.out / "slides"
    windows = {name: cut_out(sdata, cells, folder / f"test_{name}.tif", change) for name, change in changes.items()}
    encoder, rows = encoder_of(sdata, arm, options), []
    for stain in STAINS:
        nk.pp.histology_features(sdata, encoder=encoder, mode=options.mode, stain=stain, key_added="X_varied")
        student = nk.tl.distill(sdata, use_rep="X_varied", key_added="niche_varied", seed=options.seed, fit=FIT)
        for name, window in windows.items():
            slide = window.with_cells(cells)
            said = quietly(slide, student)
            rows.append(
                {
                    "normalisation": stain or "none", "slide": name, "ARI": ari(slide["table"].obs["niche"], truth),
                    "share_out": round(float((slide["table"].obs["niche_ood"] > 1).mean()), 4),
                    "warned_of_stain": any("stain" in sentence for sentence in said),
                }
            )  # fmt: skip
            print(arm, json.dumps(rows[-1]), flush=True)
    return rows


def encoder_of(sdata: SpatialData, arm: str, options: argparse.Namespace) -> str | Encoder:
    """Frozen, or trained to tell genes on crops as they are, or on crops of varied stain."""
    if arm == "frozen":
        return options.frozen
    augmentation = CropAugmentation() if arm == "varied" else CropAugmentation(stain=0.0, tint=0.0)
    fit = GeneAwareSettings(max_epochs=options.epochs, crops_per_epoch=options.crops, augmentation=augmentation)
    return nk.tl.gene_aware_encoder(sdata, encoder=options.encoder, seed=options.seed, fit=fit)

"""From H&E alone: what a student says of a slide without cells, and where it can be trusted.

    python benchmarks/slide.py SECTION EVALUATION --other-tissue CMU-1-Small-Region.svs --out slide
    python benchmarks/slide.py SECTION EVALUATION --out slide-fast --fast --parts b c

SECTION is a folder with ``cells.h5ad`` and ``he.ome.tif``, EVALUATION what ``pancreas_section.py`` made of it: its
gene-aware encoder and features, and a teacher. A student is distilled from them once and kept in ``--out``. Parts:

- ``b``: niches of nuclei that were found in the slide against those of the assay's cells, matched one to one;
- ``c``: accuracy of the surest cells of the test strip, risk against coverage;
- ``d``: is tissue of another stain, focus or organ told from the test strip's, by score and by warnings;
- ``e``: agreement under another stain, with normalised colours and without, of three encoders: a frozen one, and two
  that were trained to tell genes, on crops as they are and on crops of varied stain.

``--fast`` is the same on the quarter of the cells that lies leftmost. The image of the section is virtual H&E,
registered to the pixel and of one stain: whatever is said of other stains is said of simulated ones.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pancreas_section import FIT, MPP, RESULTS, section
from slide_changes import CHANGES, ari, cut_out, in_test, quietly
from slide_stains import ARMS, stain_shift

import nichekd as nk
from nichekd._memory import keep_freed_memory
from nichekd.models import Encoder, NicheStudent, register_encoder
from nichekd.tl._evaluation_folder import EvaluationFolder
from nichekd.tl._evaluation_made_of import cells_of

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

REP = "X_gene_aware"
MATCH_UM = 5.0  # between the centres of a nucleus and of the cell that it is taken for
COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


# what all parts start from


def lesson(options: argparse.Namespace) -> SpatialData:
    """The section with its split, gene-aware features, and the teacher of the evaluation."""
    folder, run = EvaluationFolder(options.evaluation), f"K{options.K}_seed{options.seed}"
    manifest = json.loads((options.evaluation / "manifest.json").read_text())
    sdata = section(options.section, fast=False)
    nk.pp.split(sdata)
    if cells_of(sdata["table"], "split")["cells"] != manifest["cells"]:
        raise ValueError(f"{options.evaluation} was made of other cells than {options.section} has.")
    encoder = Encoder.load(options.evaluation / "encoder")
    register_encoder("gene_aware", lambda weights: encoder, overwrite=True)
    nk.pp.histology_features(sdata, encoder=encoder, store=options.evaluation / "features" / "gene_aware")
    adata = sdata["table"]
    adata.obsm[REP] = np.asarray(adata.obsm[REP])
    adata.obsm["teacher_logits"] = folder.arrays(run, "teacher")["logits"]
    niche = adata.obsm["teacher_logits"].argmax(1)
    adata.obs["niche_teacher"] = pd.Categorical.from_codes(niche, [str(k) for k in range(options.K)])
    if folder.has("features", "expression"):
        adata.obsm["X_scVI"] = folder.arrays("features", "expression")["latent"]
    if options.fast:
        x = adata.obsm["spatial"][:, 0]
        sdata["table"] = sdata.tables.pop("table")[x <= np.quantile(x, 0.25)].copy()
    nk.pp.neighborhoods(sdata, radius=float(manifest["radius"]))
    return sdata


def taught(sdata: SpatialData, folder: Path, seed: int) -> NicheStudent:
    """The student, from its folder where it is there; its predictions, calibrated, are in the table."""
    if folder.is_dir():
        student = NicheStudent.load(folder)
        quietly(sdata, student, use_rep=REP)
        return student
    student = nk.tl.distill(sdata, use_rep=REP, seed=seed, fit=FIT)
    if "held_out" in sdata["table"].uns["nichekd"]["distill"]:
        nk.tl.calibrate(sdata, student)
    student.save(folder)
    return student


# b: cells or nuclei


def segmented(sdata: SpatialData, student: NicheStudent, options: argparse.Namespace) -> dict[str, Any]:
    """Niches of nuclei found in the slide alone, against those of the assay's cells, and both against the teacher."""
    adata = sdata["table"]
    path, corner, cells = options.section / "he.ome.tif", np.zeros(2), adata
    if options.fast:  # the test strip, and all that its neighborhoods and crops hold
        xy, radius = adata.obsm["spatial"], student.config.radius
        low, high = xy[in_test(adata)].min(axis=0) - radius, xy[in_test(adata)].max(axis=0) + radius
        inside = ((xy >= low) & (xy <= high)).all(axis=1)
        cells = adata[inside].copy()
        window = cut_out(sdata, cells, options.out / "slides" / "strip.tif")
        path, corner = window.path, window.corner_um
    started = time.perf_counter()
    slide = nk.io.slide(path, mpp=MPP)
    nk.pp.segment_nuclei(slide, n_jobs=options.n_jobs)
    segmentation = time.perf_counter() - started
    said = quietly(slide, student)
    nuclei = slide["table"]
    # the assay's cells as a slide has them: without the split, which the nuclei don't know either
    alone = cells.copy()
    del alone.obs["split"]
    for key in ("spatial_connectivities", "spatial_distances"):
        del alone.obsp[key]
    said_of_cells = quietly(alone, student, use_rep=REP)
    i, j = pairs(nuclei.obsm["spatial"] + corner, alone.obsm["spatial"])
    test = in_test(cells)[j]
    ours, assay = nuclei.obs["niche"].to_numpy()[i], alone.obs["niche"].to_numpy()[j]
    teacher = cells.obs["niche_teacher"].to_numpy()[j]
    by_cells, by_nuclei = ari(assay[test], teacher[test]), ari(ours[test], teacher[test])
    return {
        "n_nuclei": nuclei.n_obs,
        "n_cells": alone.n_obs,
        "n_matched": len(i),
        "n_matched_test": int(test.sum()),
        "ARI_nuclei_cells": ari(ours, assay),
        "ARI_nuclei_cells_test": ari(ours[test], assay[test]),
        "ARI_cells_teacher": by_cells,
        "ARI_nuclei_teacher": by_nuclei,
        "loss": round(by_cells - by_nuclei, 4),
        "loss_at_most_0.05": by_cells - by_nuclei <= 0.05,
        "seconds_segmentation": round(segmentation),
        "seconds_prediction": round(time.perf_counter() - started - segmentation),
        "warnings": said,
        "warnings_of_cells": said_of_cells,
    }


def pairs(one: NDArray[np.floating], other: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of both that are each other's nearest within reach: one to one."""
    from scipy.spatial import cKDTree

    distance, nearest = cKDTree(other).query(one, distance_upper_bound=MATCH_UM)
    _, back = cKDTree(one).query(other)
    i = np.flatnonzero(np.isfinite(distance))
    i = i[back[nearest[i]] == i]
    return i, nearest[i]


# c: risk against coverage


def coverage(adata: AnnData) -> dict[str, Any]:
    """Accuracy against the teacher of the cells with the highest probabilities, of the test strip."""
    test = in_test(adata)
    proba = adata.obsm["student_proba"][test]
    right = proba.argmax(1) == adata.obs["niche_teacher"].cat.codes.to_numpy()[test]
    right = right[np.argsort(-proba.max(1), kind="stable")]
    accuracy = [float(right[: round(share * len(right))].mean()) for share in COVERAGES]
    half = accuracy[COVERAGES.index(0.5)]
    return {
        "n_cells": int(test.sum()),
        "ARI": ari(adata.obs["niche"][test], adata.obs["niche_teacher"][test]),
        "accuracy_by_coverage": {str(share): round(value, 4) for share, value in zip(COVERAGES, accuracy, strict=True)},
        "risk_falls_monotonically": bool((np.diff(accuracy) >= 0).all()),
        "goal_at_half": half >= accuracy[0] + 0.1 or half >= 0.95,
    }


# d: tissue that is another


def strange(sdata: SpatialData, student: NicheStudent, options: argparse.Namespace) -> dict[str, Any]:
    """Scores of changed slides and of another organ against those of the same test cells on their own slide."""
    from sklearn.metrics import roc_auc_score

    adata = sdata["table"]
    test = np.flatnonzero(in_test(adata))
    x = adata.obsm["spatial"][test, 0]
    cells = adata[np.sort(test[np.argsort(np.abs(x - np.median(x)), kind="stable")[: options.cells]])]
    truth = cells.obs["niche_teacher"].to_numpy()

    def judged(data: SpatialData, said: list[str], known: NDArray[np.floating] | None) -> dict[str, Any]:
        table = data["table"]
        score = table.obs["niche_ood"].to_numpy()
        found = {"n_cells": table.n_obs, "median_score": round(float(np.median(score)), 3)}
        found["share_out"] = round(float((score > 1).mean()), 4)
        if known is not None:
            labels = np.repeat([0, 1], [len(known), len(score)])
            found["AUROC"] = round(float(roc_auc_score(labels, np.concatenate([known, score]))), 4)
        if table.n_obs == len(truth):
            found["ARI"] = ari(table.obs["niche"], truth)
        return found | {"warnings": said}

    home = cut_out(sdata, cells, options.out / "slides" / "unchanged.tif").with_cells(cells)
    take_features(home["table"], cells)
    said = quietly(home, student, use_rep=REP)
    known = home["table"].obs["niche_ood"].to_numpy()
    result = {"unchanged": judged(home, said, None)}
    for name, change in CHANGES.items():
        window = cut_out(sdata, cells, options.out / "slides" / f"{name}.tif", change)
        slide = window.with_cells(cells)
        result[name] = judged(slide, quietly(slide, student), known)
        print(name, json.dumps(result[name]), flush=True)
    if options.other_tissue is not None:
        slide = nk.io.slide(options.other_tissue)
        nk.pp.segment_nuclei(slide, n_jobs=options.n_jobs)
        result["other_tissue"] = judged(slide, quietly(slide, student), known)
    return result


def take_features(table: AnnData, source: AnnData) -> None:
    """Features of the same cells on the same pixels."""
    table.obsm[REP] = source.obsm[REP]
    table.uns["nichekd"]["features"] = {REP: source.uns["nichekd"]["features"][REP] | {"image": "he"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", type=Path)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=["b", "c", "d", "e"], default=["b", "c", "d", "e"])
    parser.add_argument("-K", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--other-tissue", type=Path, help="slide of another organ, for part d")
    parser.add_argument("--cells", type=int, default=4000, help="test cells that part d looks at, at most")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="encoders of part e")
    parser.add_argument("--frozen", default="efficientnet_lite0", help="the frozen encoder of part e")
    parser.add_argument("--encoder", default="small_cnn", help="that the trained encoders of part e start from")
    parser.add_argument("--epochs", type=int, default=8, help="of their training")
    parser.add_argument("--crops", type=int, default=2500, help="in each")
    parser.add_argument("--mode", choices=["crop", "dense"], default="dense", help="of the features of part e")
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--fast", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("nichekd").setLevel(logging.INFO)
    keep_freed_memory()
    sdata = lesson(options)
    student = taught(sdata, options.out / "student", options.seed)
    parts = {
        "b": ("segmentation", lambda: segmented(sdata, student, options)),
        "c": ("coverage", lambda: coverage(sdata["table"])),
        "d": ("strange", lambda: strange(sdata, student, options)),
    }
    runs = [parts[part] for part in options.parts if part in parts]
    if "e" in options.parts:
        runs += [(f"stain_{arm}", lambda arm=arm: stain_shift(sdata, arm, options)) for arm in options.arms]
    for name, run in runs:
        started, used = time.perf_counter(), time.process_time()
        found = {"result": run(), "seconds": round(time.perf_counter() - started)}
        found["cpu_seconds"] = round(time.process_time() - used)
        if name.startswith("stain_"):
            found |= {key: getattr(options, key) for key in ("frozen", "encoder", "epochs", "crops", "mode")}
        write(name, found, options, n_cells=sdata["table"].n_obs)


def write(name: str, found: dict[str, Any], options: argparse.Namespace, *, n_cells: int) -> None:
    """Into the results that the docs show, beside those of the other parts."""
    file = RESULTS / ("slide_fast.json" if options.fast else "slide.json")
    about = {
        "n_cells": n_cells,
        "K": options.K,
        "seed": options.seed,
        "load_average": [round(it, 1) for it in os.getloadavg()],
        "versions": {name: version(name) for name in ("nichekd", "torch", "numpy", "scikit-image", "scikit-learn")},
    }
    earlier = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(earlier | about | {name: found}, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps({name: found}, indent=1), flush=True)


if __name__ == "__main__":
    main()

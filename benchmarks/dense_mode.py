"""Cells read off the feature maps of tiles against a crop a cell: cost, and how well a student agrees with its teacher.

    python benchmarks/dense_mode.py SECTION
    python benchmarks/dense_mode.py SECTION --whole --epochs 16 --strides 160 --out whole.json
    python benchmarks/dense_mode.py SECTION --whole --epochs 16 --strides 160 --out aware.json --encoder FOLDER

SECTION is a folder with ``cells.h5ad`` (counts, centres in µm, and ``obsm["teacher_logits"]`` of a teacher with 10
niches, or one is trained) and ``he.ome.tif``; the leftmost quarter of its cells is taken, or all of them. One teacher;
features by crop, and by tiles further and further apart, of a frozen encoder or of a saved one in FOLDER; on each,
students of three seeds, scored on the test strip. The whole section is split with the buffer that tiles ask for, the
same for all. FLOPs are those of the encoder. What the result file has already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pancreas_section import RESULTS, section

import nichekd as nk

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from nichekd.models import Encoder

K, CROP = 10, 224
TILE_REACH = 384  # px across, of what a cell is described from by tiles every 160 px
FILE = RESULTS / "dense_mode.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", type=Path)
    parser.add_argument("--whole", action="store_true", help="all cells, not a quarter of them")
    parser.add_argument("--strides", type=int, nargs="+", default=[112, 160, 224], help="px between the tiles' centres")
    parser.add_argument("--encoder", default="efficientnet_lite0", help="name, or folder of a saved one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8, help="of a student at most")
    parser.add_argument("--encode", action="store_true", help="time the encoding, and teach no students")
    parser.add_argument("--stores", type=Path, default=Path("dense_mode"), help="folder for the features")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    nk.settings.progress = False
    sdata = section(options.section, fast=not options.whole)
    nk.pp.split(sdata, crop_px=TILE_REACH if options.whole else CROP)
    is_saved = Path(options.encoder).is_dir()
    encoder = nk.models.Encoder.load(options.encoder) if is_saved else nk.models.get_encoder(options.encoder)
    result = json.loads(options.out.read_text()) if options.out.is_file() else {"rows": {}}
    rows = result["rows"]
    result |= {"n_cells": sdata["table"].n_obs, "K": K, "seeds": options.seeds, "epochs": options.epochs}
    result["versions"] = {package: version(package) for package in ("nichekd", "torch", "timm")}
    ways = {"crop": None} | {f"dense, {stride} px": stride for stride in options.strides}
    for name, stride in ways.items():
        found = encoded(sdata, encoder, stride, options.stores / name.replace(", ", "_").replace(" ", ""))
        if name not in rows:
            rows[name] = found | {"load": os.getloadavg()[0]}
            write(options.out, result)
        if options.encode:
            continue
        if "teacher_logits" not in sdata["table"].obsm:
            nk.tl.nolan(sdata, K, seed=0)
        for seed in options.seeds[len(rows[name].setdefault("ari", [])) :]:
            rows[name]["ari"].append(taught(sdata, seed, options.epochs))
            write(options.out, result)
    if not options.encode:
        show(rows)


def write(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n")


def show(rows: dict[str, Any]) -> None:
    """The table."""
    print("| features | FLOPs, 10¹² | CPU s | cheaper, times | faster, times | ARI, mean ± sd | share of the crops' |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, row in rows.items():
        row |= compared(row, rows["crop"])
        ari = f"{np.mean(row['ari']):.3f} ± {np.std(row['ari'], ddof=1):.3f}"
        cost = f"{row['tflop']:.1f} | {row['cpu_seconds']:.0f} | {row['fewer_flops']:.1f} | {row['faster']:.1f}"
        print(f"| {name} | {cost} | {ari} | {row['share_of_ari']:.2f} |")


def encoded(sdata: SpatialData, encoder: Encoder, stride: int | None, store: Path) -> dict[str, Any]:
    """Describe the cells anew, as ``obsm["X_image"]``; what that took."""
    how: dict[str, Any] = {} if stride is None else {"mode": "dense", "stride_px": stride}
    start, cpu = time.perf_counter(), time.process_time()
    nk.pp.histology_features(sdata, encoder=encoder, key_added="X_image", store=store, **how)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    n_images = n_encoded(sdata, encoder, stride)
    return {"n_images": n_images, "tflop": n_images * flops(encoder) / 1e12, "seconds": seconds, "cpu_seconds": cpu}


def n_encoded(sdata: SpatialData, encoder: Encoder, stride: int | None) -> int:
    """Crops or tiles."""
    from nichekd._image import get_image
    from nichekd.pp._crops import CropReader
    from nichekd.pp._dense import DensePlan

    if stride is None:
        return sdata["table"].n_obs
    reader = CropReader(get_image(sdata, sdata["table"]), crop_px=CROP)
    return DensePlan(reader, encoder, stride).n_tiles


def flops(encoder: Encoder) -> int:
    """Of one image, multiplications and additions counted apart."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        encoder.encode(torch.zeros((1, 3, CROP, CROP), dtype=torch.uint8), precision="32")
    return counter.get_total_flops()


def taught(sdata: SpatialData, seed: int, epochs: int) -> float:
    """Agreement of a student with its teacher on the test strip."""
    nk.tl.distill(sdata, use_rep="X_image", seed=seed, fit=nk.tl.FitSettings(max_epochs=epochs))
    return test_ari(sdata["table"])


def test_ari(adata: AnnData) -> float:
    """Of the student's and the teacher's niches on the test strip."""
    from sklearn.metrics import adjusted_rand_score

    test = adata.obs["split"] == "test"
    return float(adjusted_rand_score(adata.obsm["teacher_logits"][test].argmax(1), adata.obs.loc[test, "niche"]))


def compared(row: dict[str, Any], crop: dict[str, Any]) -> dict[str, float]:
    """With a crop a cell."""
    return {
        "fewer_flops": crop["tflop"] / row["tflop"],
        "faster": crop["cpu_seconds"] / row["cpu_seconds"],
        "share_of_ari": float(np.mean(row["ari"]) / np.mean(crop["ari"])),
    }


if __name__ == "__main__":
    main()

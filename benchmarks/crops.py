"""Crops around cells: nichekd's reader against SpatialData's ImageTilesDataset, and against the encoder it feeds.

    python benchmarks/crops.py --data ../shared/data/pancreas/section

1. Reading: crops of 224 px, as uint8, from the tiled JPEG OME-TIFF, or from another file of the same image
   (--image he.svs, he.zarr). The peer gets the first cells in the order of our curve, so that it, too, finds what it
   reads next to what it read last; that both read the same pixels, up to one row and column by which the peer rounds
   otherwise, is checked.
2. Encoding: cells from the file to float16 features (all of nk.pp.histology_features but the set-up), against the bare
   encoder on random batches that lie in memory. The share is the latter's time over the former's: 1 is an encoder
   that never waits. Beside it, the share of the peak that this machine reaches in products of matrices.

Peer and ours take turns in one process; medians over the runs. CPU seconds count all threads, and other people's
programs on the machine hardly change them. Encoder "uni2" is its architecture with random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np

CROP, BATCH = 224, 64
RESULTS = Path(__file__).parent / "results"


def timed(work) -> dict[str, float]:
    """Crops a second, by the clock and by the processor; ``work`` returns their number."""
    wall, cpu = time.perf_counter(), time.process_time()
    n = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"n_crops": n, "crops_per_s": n / wall, "crops_per_cpu_s": n / cpu}


def load(folder: Path | None, image: Path | None):
    import anndata as ad

    import nichekd as nk

    if folder is None:
        return nk.datasets.pancreas()
    return nk.io.paired(ad.read_h5ad(folder / "cells.h5ad"), image or folder / "he.ome.tif", mpp=0.274)


def peer(sdata, image, rows: np.ndarray):
    """SpatialData's data set over these rows, as it is set up to return the image's own pixels."""
    from spatialdata.dataloader import ImageTilesDataset

    import nichekd as nk

    some = nk.io.paired(sdata["table"][rows].copy(), image.pixels, mpp=image.mpp)
    some["table"].obs["row"] = rows
    return ImageTilesDataset(
        some,
        regions_to_images={"cells": "he"},
        regions_to_coordinate_systems={"cells": "global"},
        tile_dim_in_units=CROP * image.mpp,
        table_name="table",
        return_annotations="row",
    )


def compare_reading(sdata, image, n_peer: int, n_ours: int, n_runs: int) -> dict:
    from nichekd.pp._crops import CropReader

    order = CropReader(image, crop_px=CROP).order()
    inside = ((image.xy_px > CROP) & (image.xy_px < np.array(image.size_px) - CROP)).all(axis=1)
    rows = order[inside[order]][:n_peer]  # the peer returns less than a crop at the image's edge
    tiles = peer(sdata, image, rows)

    def theirs() -> int:
        for i in range(len(tiles)):
            pixels, _ = tiles[i]
            np.asarray(list(pixels.values())[0] if isinstance(pixels, dict) else pixels)
        return len(tiles)

    def ours() -> int:
        reader = CropReader(image, crop_px=CROP)  # a new one each time: nothing is decoded yet
        return sum(len(cells) for cells, _ in reader.batches(reader.order()[:n_ours], batch_size=BATCH))

    runs: dict[str, list] = {"spatialdata": [], "nichekd": []}
    for _ in range(n_runs):
        for name, work in (("spatialdata", theirs), ("nichekd", ours)):
            runs[name].append(timed(work))
            print(f"{name:12} {runs[name][-1]}", file=sys.stderr, flush=True)
    return {"runs": runs, "peer_lies_beside_px": shifts(tiles, image, rows)} | summary(runs, "spatialdata", "nichekd")


def shifts(tiles, image, rows: np.ndarray) -> list[list[int]]:
    """Rows and columns by which the peer's first crops lie beside ours: it may round a corner to another pixel.

    Raises
    ------
    RuntimeError
        If a crop of the peer's shows other pixels.
    """
    from nichekd.pp._crops import CropReader

    found = []
    for i, ours in enumerate(CropReader(image, crop_px=CROP).read(rows[:8])):
        theirs = np.asarray(tiles[i][0])
        moves = [
            (dy, dx)
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            if np.array_equal(ours[:, 2 + dy : 200 + dy, 2 + dx : 200 + dx], theirs[:, 2:200, 2:200])
        ]
        if not moves:
            raise RuntimeError(f"Crop {i} of the two readers shows other pixels: they can't be compared.")
        found.append(list(moves[0]))
    return found


def compare_encoding(image, encoder, n_crops: int, n_runs: int) -> dict:
    import torch

    from nichekd.pp._crops import CropReader
    from nichekd.pp._encode import CropPlan

    precision = encoder.precision("auto")
    batch = torch.randint(0, 256, (BATCH, 3, CROP, CROP), dtype=torch.uint8).to(encoder.device)
    finish = torch.cuda.synchronize if encoder.device.type == "cuda" else lambda: None

    def bare() -> int:
        for _ in range(n_crops // BATCH):
            encoder.encode(batch, precision=precision)
        finish()
        return n_crops // BATCH * BATCH

    def whole() -> int:
        reader = CropReader(image, crop_px=CROP)
        plan = CropPlan(reader, encoder, batch_size=BATCH)
        return sum(len(cells) for cells, _ in plan.encoded(plan.order()[:n_crops], precision=precision))

    bare()
    runs: dict[str, list] = {"bare": [], "nichekd": []}
    for _ in range(n_runs):
        for name, work in (("bare", bare), ("nichekd", whole)):
            runs[name].append(timed(work))
            print(f"{name:12} {runs[name][-1]}", file=sys.stderr, flush=True)
    found = {"runs": runs} | summary(runs, "bare", "nichekd")
    flops, peak = flops_of(encoder, batch, precision), matmul_peak(encoder.device, precision, n_runs)
    share = {name: found[f"crops_per_s_{name}"] * flops / peak for name in runs}
    about = {"encoder": encoder.name, "precision": precision, "device": str(encoder.device)}
    return about | found | {"flops_per_crop": flops, "matmul_peak_flops_per_s": peak, "share_of_peak": share}


def flops_of(encoder, batch, precision) -> float:
    """Floating-point operations of a crop: two for a multiplication and the addition that follows."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        encoder.encode(batch, precision=precision)
    return counter.get_total_flops() / len(batch)


def matmul_peak(device, precision, n_runs: int, side: int = 4096) -> float:
    """FLOP/s of the fastest of some products of two square matrices."""
    import torch

    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    fastest = np.inf
    for _ in range(n_runs + 1):
        begin = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - begin)
    return 2 * side**3 / fastest


def compare_dense(image, encoder, n_crops: int, n_cells: int, n_runs: int) -> dict:
    from nichekd.pp._crops import CropReader
    from nichekd.pp._dense import DensePlan
    from nichekd.pp._encode import CropPlan
    from nichekd.pp._plan import STRIDE

    def encode(plan, n: int) -> int:
        return sum(len(cells) for cells, _ in plan.encoded(plan.order()[:n], precision=encoder.precision("auto")))

    runs: dict[str, list] = {"crop": [], "dense": []}
    for _ in range(n_runs):
        reader = CropReader(image, crop_px=CROP)
        for name, plan, n in (
            ("crop", CropPlan(reader, encoder), n_crops),
            ("dense", DensePlan(reader, encoder, round(STRIDE * CROP)), n_cells),
        ):
            runs[name].append(timed(lambda plan=plan, n=n: encode(plan, n)))
            print(f"{name:12} {runs[name][-1]}", file=sys.stderr, flush=True)
    return {"runs": runs} | summary(runs, "crop", "dense")


def summary(runs: dict[str, list], reference: str, ours: str) -> dict[str, float]:
    found = {}
    for figure in ("crops_per_s", "crops_per_cpu_s"):
        found |= {f"{figure}_{name}": median(run[figure] for run in runs[name]) for name in runs}
        found[f"{figure}_ratio"] = found[f"{figure}_{ours}"] / found[f"{figure}_{reference}"]
    return found


def get_encoder(name: str, device: str):
    from nichekd.models import Encoder
    from nichekd.models import get_encoder as by_name
    from nichekd.models._architectures import build_architecture
    from nichekd.models._precision import resolve_device

    if name == "uni2":  # its weights are gated; random ones take as long
        encoder = Encoder("uni2", build_architecture("uni2"), bf16_on=("cuda",))
    else:
        encoder = by_name(name)
    return encoder.to(resolve_device(device))


def with_encoder(image, arguments: argparse.Namespace) -> dict[str, dict]:
    """The comparisons that take an encoder."""
    encoder = get_encoder(arguments.encoder, arguments.device)
    n = arguments.n_encode
    return {
        "encoding": compare_encoding(image, encoder, n, arguments.runs),
        "dense": compare_dense(image, encoder, n, n * 8, arguments.runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with cells.h5ad and he.ome.tif; else the bundled crop")
    parser.add_argument("--image", type=Path, help="another file of the image in --data: .svs, OME-Zarr")
    parser.add_argument("--only-reading", action="store_true", help="no encoder")
    parser.add_argument("--n-peer", type=int, default=100, help="crops the peer reads in a run")
    parser.add_argument("--n-read", type=int, default=20_000, help="crops we read in a run")
    parser.add_argument("--n-encode", type=int, default=640, help="crops encoded in a run")
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "crops.json")
    arguments = parser.parse_args()

    warnings.simplefilter("ignore")
    from nichekd._image import get_image

    sdata = load(arguments.data, arguments.image)
    image = get_image(sdata, sdata["table"])
    reading = compare_reading(sdata, image, arguments.n_peer, arguments.n_read, arguments.runs)
    found = {"reading": reading} | ({} if arguments.only_reading else with_encoder(image, arguments))
    result = {
        "options": {name: value for name, value in vars(arguments).items() if not isinstance(value, Path)},
        "file": "he.ome.tif" if arguments.image is None else arguments.image.name,
        "n_cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {p: version(p) for p in ("nichekd", "spatialdata", "torch", "timm", "dask", "tifffile", "numpy")},
        "image": list(image.pixels.shape),
    } | found
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"| {'':46} |    peer | nichekd |  ratio |")
    print(f"|:{'-' * 46}-|--------:|--------:|-------:|")
    peers = {"reading": ("spatialdata", "nichekd"), "encoding": ("bare", "nichekd"), "dense": ("crop", "dense")}
    for what, row in found.items():
        other, ours = peers[what]
        for figure, unit in (("crops_per_s", "cells/s"), ("crops_per_cpu_s", "cells/CPU s")):
            values = [row[f"{figure}_{name}"] for name in (other, ours, "ratio")]
            print(f"| {f'{what}, {unit}':46} | {values[0]:7.1f} | {values[1]:7.1f} | {values[2]:6.2f} |")
        if "share_of_peak" in row:
            bare, whole = row["share_of_peak"].values()
            print(f"| {'share of the matrix-product peak':46} | {bare:7.3f} | {whole:7.3f} | {'':6} |")


if __name__ == "__main__":
    main()

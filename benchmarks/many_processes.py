"""How much faster two workers encode, and two processes train, than one.

    python benchmarks/many_processes.py --runs 3

On the bundled section, on CPU, one thread a process, so that a machine of two cores shows it. Features: the same call
of nk.pp.histology_features with client= over 1 and 2 workers of a dask.distributed.LocalCluster. Training:
nk.tl.distill with devices=1 and devices=2 in scripts of their own; the time of an epoch is what a training of some
epochs takes longer than one of a single epoch before it, so that starting the processes, and what is done once, drop
out. The two take turns. A call with --steps keeps what the result file has of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from statistics import median

FILE = Path(__file__).parent / "results" / "many_processes.json"
COUNTS = (1, 2)
STEPS = ("features", "training")
LONG = 4  # epochs, against one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--preset", default="small", help="of the student; an epoch of 'pooling' is too short here")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--train", nargs=3, metavar=("CELLS", "PRESET", "DEVICES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        cells, preset, devices = options.train
        train(Path(cells), preset, int(devices))
        return
    warnings.filterwarnings("ignore")
    os.environ["OMP_NUM_THREADS"] = "1"
    work = Path(tempfile.mkdtemp())
    try:
        rates = {}
        if "features" in options.steps:
            rates["features"] = features(work, options)
        if "training" in options.steps:
            rates[f"training, {options.preset}"] = training(work, options)
    finally:
        shutil.rmtree(work)
    write(rates, options)


def features(work: Path, options: argparse.Namespace) -> dict[int, list[float]]:
    """Cells a second by workers."""
    from dask.distributed import Client, LocalCluster

    import nichekd as nk

    nk.settings.progress = False
    sdata = nk.datasets.pancreas()
    rates: dict[int, list[float]] = {n: [] for n in COUNTS}
    for run in range(options.runs):
        for n in COUNTS:
            with LocalCluster(n_workers=n, threads_per_worker=1, dashboard_address=None) as cluster:
                with Client(cluster) as client:
                    client.run(_ready)
                    begin = time.perf_counter()
                    nk.pp.histology_features(
                        sdata, encoder=options.encoder, key_added="X_image", store=work / f"{run}-{n}", client=client
                    )
                    rates[n].append(sdata["table"].n_obs / (time.perf_counter() - begin))
            print(f"features, {n} workers: {rates[n][-1]:.0f} cells/s", flush=True)
    return rates


def _ready() -> None:
    """What a worker imports before its first block."""
    import timm  # noqa: F401

    import nichekd.pp._encode  # noqa: F401


def training(work: Path, options: argparse.Namespace) -> dict[int, list[float]]:
    """Training cells a second by processes; features, of which the time of a step does not depend, are random."""
    import numpy as np

    import nichekd as nk

    adata = nk.datasets.pancreas()["table"]
    rng = np.random.default_rng(0)
    adata.obsm["X_image"] = rng.normal(size=(adata.n_obs, 1280)).astype(np.float32)
    adata.obsm["teacher_logits"] = rng.normal(size=(adata.n_obs, 10)).astype(np.float32)
    nk.pp.neighborhoods(adata)
    adata.write_h5ad(work / "cells.h5ad")
    rates: dict[int, list[float]] = {n: [] for n in COUNTS}
    for _ in range(options.runs):
        for n in COUNTS:
            call = [sys.executable, __file__, "--train", str(work / "cells.h5ad"), options.preset, str(n)]
            rates[n].append(float(subprocess.run(call, check=True, capture_output=True, text=True).stdout.split()[-1]))
            print(f"training, {options.preset}, {n} processes: {rates[n][-1]:.0f} cells/s", flush=True)
    return rates


def train(cells: Path, preset: str, devices: int) -> None:
    """Two trainings, in a script that Fabric can start once more; prints cells a second."""
    import anndata
    import torch
    from torch import distributed

    import nichekd as nk

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    nk.settings.progress = False
    adata = anndata.read_h5ad(cells)
    seconds = []
    for epochs in (1, 1, LONG):  # in the first, the other process starts
        fit = nk.tl.FitSettings(max_epochs=epochs, min_steps=1, validation=0.0)
        begin = time.perf_counter()
        nk.tl.distill(adata, use_rep="X_image", preset=preset, fit=fit, devices=devices, device="cpu")
        seconds.append(time.perf_counter() - begin)
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        print(adata.n_obs * (LONG - 1) / (seconds[2] - seconds[1]))


def write(rates: dict[str, dict[int, list[float]]], options: argparse.Namespace) -> None:
    """Print the table, and keep it with what it was made by."""
    earlier = json.loads(FILE.read_text())["cells_per_second"] if FILE.exists() else {}
    rates = {name: {int(n): runs for n, runs in found.items()} for name, found in (earlier | rates).items()}
    print("| | one, cells/s | two, cells/s | gain |\n|---|---:|---:|---:|")
    for name, found in rates.items():
        one, two = (median(found[n]) for n in COUNTS)
        print(f"| {name} | {one:,.0f} | {two:,.0f} | {two / one:.2f} |")
    result = {
        "runs": options.runs,
        "encoder": options.encoder,
        "load": os.getloadavg()[0],
        "n_cpus": os.cpu_count(),
        "versions": {package: version(package) for package in ("nichekd", "torch", "lightning", "distributed")},
        "cells_per_second": rates,
    }
    FILE.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Radius graph: nk.pp.neighborhoods against squidpy.gr, time and peak memory.

    python benchmarks/radius_graph.py --sizes 100000 300000 1000000 3000000 --runs 3

Cells are strewn at random at the density of tissue, 50 to a neighborhood. Peer and ours take turns, each run in a
process of its own, on the same cells; that both make the same graph is checked by its checksum. Time is that of the
public call (after one on 1,000 cells, which compiles), memory the growth of the process's peak during it. Of more cells
than --peer-cells, whose graph would take the peer 18 GB, ours runs alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
import zlib
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np

DENSITY = 0.006  # cells per µm², of the pancreas section
N_NEIGHBORS = 50
RESULTS = Path(__file__).parent / "results"


def cells(n: int):
    from anndata import AnnData

    return AnnData(obsm={"spatial": np.random.default_rng(0).random((n, 2)) * np.sqrt(n / DENSITY)})


def ours(adata, radius: float) -> None:
    import nichekd as nk

    nk.pp.neighborhoods(adata, radius=radius)


def squidpy(adata, radius: float) -> None:
    import squidpy as sq

    if hasattr(sq.gr, "spatial_neighbors_radius"):
        sq.gr.spatial_neighbors_radius(adata, radius=radius)
    else:
        sq.gr.spatial_neighbors(adata, radius=radius, coord_type="generic")


METHODS = {"squidpy": squidpy, "nichekd": ours}


def measure(method: str, n: int) -> dict[str, float]:
    """One run, in this process."""
    warnings.simplefilter("ignore")
    radius = float(np.sqrt(N_NEIGHBORS / DENSITY / np.pi))
    METHODS[method](cells(1_000), radius)
    adata = cells(n)
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    METHODS[method](adata, radius)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    graph = adata.obsp["spatial_connectivities"]
    graph.eliminate_zeros()
    graph.sort_indices()
    return {
        "seconds": seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_gb": (after.ru_maxrss - before.ru_maxrss) / (1e6 if sys.platform == "linux" else 1e9),
        "n_edges": graph.nnz,
        "checksum": zlib.crc32(np.ascontiguousarray(graph.indices.astype(np.int64))),
    }


def in_subprocess(method: str, n: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", method, "--sizes", str(n)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def compare(n: int, n_runs: int, *, alone: bool) -> dict:
    methods = ["nichekd"] if alone else list(METHODS)
    runs: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    for _ in range(n_runs):
        for method in methods:
            runs[method].append(in_subprocess(method, n))
            print(f"{n:>9,} cells  {method:8} {runs[method][-1]}", file=sys.stderr, flush=True)
    row: dict = {"n_cells": n, "runs": runs}
    for figure in ("seconds", "cpu_seconds", "peak_gb"):
        row |= {f"{figure}_{method}": median(run[figure] for run in runs[method]) for method in methods}
        if not alone:
            row[f"{figure}_ratio"] = row[f"{figure}_squidpy"] / row[f"{figure}_nichekd"]
    if not alone:
        row["same_graph"] = len({(run["n_edges"], run["checksum"]) for method in runs.values() for run in method}) == 1
    return row


def shown(row: dict) -> str:
    """A line of the table."""
    ours = f"| {row['n_cells']:>9,} | {{}} | {row['seconds_nichekd']:9.2f} | {{}} | {{}} "
    ours += f"| {row['peak_gb_nichekd']:10.2f} | {{}} | {{}} |"
    if "same_graph" not in row:
        return ours.format(" " * 9, " " * 6, " " * 10, " " * 11, " " * 10)
    return ours.format(
        f"{row['seconds_squidpy']:9.2f}",
        f"{row['seconds_ratio']:5.1f}×",
        f"{row['peak_gb_squidpy']:10.2f}",
        f"{row['peak_gb_ratio']:10.1f}×",
        f"{'yes' if row['same_graph'] else 'NO':^10}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000], help="numbers of cells")
    parser.add_argument("--runs", type=int, default=3, help="runs of each; the median is reported")
    parser.add_argument("--peer-cells", type=int, default=1_000_000, help="the peer's largest tissue")
    parser.add_argument("--out", type=Path, default=RESULTS / "radius_graph.json")
    parser.add_argument("--child", choices=METHODS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments.sizes[0])))
        return
    rows = [compare(n, arguments.runs, alone=n > arguments.peer_cells) for n in arguments.sizes]
    result = {
        "command": f"python benchmarks/radius_graph.py --sizes {' '.join(map(str, arguments.sizes))} "
        f"--runs {arguments.runs}",
        "n_cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {p: version(p) for p in ("nichekd", "squidpy", "scikit-learn", "numba", "numpy", "scipy")},
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print("|     cells | squidpy s | nichekd s | faster | squidpy GB | nichekd GB | less memory | same graph |")
    print("|----------:|----------:|----------:|-------:|-----------:|-----------:|------------:|:----------:|")
    for row in rows:
        print(shown(row))


if __name__ == "__main__":
    main()

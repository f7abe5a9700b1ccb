"""The whole chain, step by step, at growing numbers of cells: time, peak memory, and how both grow.

    python benchmarks/chain.py --cells 10000 100000 1000000 --features 1536 --peers

Cells are strewn at the density of tissue over squares of 600 µm, listed square by square as an assay lists its fields
of view. Their classes are drawn with odds that depend on the domain of tissue they lie in, so that there are niches to
find. Expression is a latent of 10 dimensions, class mean and noise; image features, likewise class mean and noise, are
written block by block, float16, into a feature store as nk.pp.histology_features makes it, in the order of its curve.
All steps after that read them from there. The step `crops` is nk.pp.histology_features itself, over the bundled H&E
laid side by side until it covers all cells, with an encoder that costs nothing: what is left is decoding, cutting and
storing.

Each step is a process of its own, which reads what the steps before wrote. Time is that of the public call, after what
it imports, and after a call on a small tissue where it compiles something; peak memory is that of the whole process,
interpreter and data included. Peers run on the same cells: squidpy's radius graph; and for prediction a plain network
of the same weights that projects all features of every neighbor (neighborhood_transformer.py), timed on some cells and
multiplied up. What the result file has already is not run again, unless by --again. On a machine that is busy with
other work, --figure cpu_seconds tells more than the clock does.
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
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from chain_steps import COMPILED, IMPORTED, PEERS, STEPS, agreement, keep, plain, prepare, squidpy, table

if TYPE_CHECKING:
    from collections.abc import Iterator

RESULTS = Path(__file__).parent / "results"
BYTES = 1e6 if sys.platform == "linux" else 1e9  # a GB in the unit of ru_maxrss

# a process a step ---------------------------------------------------------------------------------------------------


def child(step: str, n: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One step, in this process."""
    import warnings

    warnings.simplefilter("ignore")
    import nichekd as nk

    nk.settings.progress = False
    folder = arguments.scratch / str(n)
    if step == "prepare":
        prepare(folder, n)
        return {}
    if step == "plain":
        return plain(folder, min(n, arguments.peer_cells))
    work = squidpy if step == "squidpy" else STEPS[step][0]
    if step in COMPILED | {"squidpy"}:
        small = arguments.scratch / "small"
        prepare(small, 2_000)
        adata = table(small)
        nk.pp.estimate_radius(adata)
        work(adata, small, arguments)()
    for module in IMPORTED.get(step, ()):
        import_module(module)
    adata = table(folder)
    run = work(adata, folder, arguments)
    before, start, cpu = peak_gb(), time.perf_counter(), time.process_time()
    run()
    found = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    found |= {"peak_gb": peak_gb(), "start_gb": before}
    if step == "predict":
        found["ari_with_teacher"] = agreement(adata)
    if step != "squidpy":
        keep(adata, folder)
    return found


def peak_gb() -> float:
    """Of this process and of those that it waited for, the larger."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(whose).ru_maxrss for whose in who) / BYTES


def in_subprocess(step: str, n: int, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", step, "--cells", str(n), "--scratch", str(arguments.scratch)]
    command += ["--features", str(arguments.features), "--peer-cells", str(arguments.peer_cells)]
    command += [] if arguments.epochs is None else ["--epochs", str(arguments.epochs)]
    command += [] if arguments.device is None else ["--device", arguments.device]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


# results ------------------------------------------------------------------------------------------------------------


def measured(arguments: argparse.Namespace, known: dict[str, dict]) -> Iterator[tuple[str, dict]]:
    """Names and results of all that is asked for and not known."""
    for n in arguments.cells:
        if not (arguments.scratch / str(n) / "table.h5ad").exists():
            in_subprocess("prepare", n, arguments)
        for step in arguments.steps:
            wanted = [step, PEERS[step]] if arguments.peers and step in PEERS else [step]
            for name in wanted:
                if f"{name} {n}" in known and not arguments.again:
                    continue
                runs = []
                for _ in range(arguments.runs):
                    runs.append(in_subprocess(name, n, arguments))
                    print(f"{n:>9,} cells  {name:14} {runs[-1]}", file=sys.stderr, flush=True)
                middle = {key: median(run[key] for run in runs) for key in runs[0]}
                yield f"{name} {n}", {"step": name, "n_cells": n} | middle | {"runs": runs}


def exponent(rows: list[dict], figure: str) -> float | None:
    """Slope of log time over log cells."""
    import numpy as np

    if len(rows) < 2:
        return None
    n, value = (np.log([row[key] for row in rows]) for key in ("n_cells", figure))
    return float(np.polyfit(n, value, 1)[0])


def summary(rows: dict[str, dict], sizes: list[int], figure: str) -> str:
    heads = [f"{n:,} cells" for n in sizes]
    lines = ["| step | " + " | ".join(heads) + " | exponent |", "|---|" + "---:|" * (len(heads) + 1)]
    names = {step: title for step, (_, title) in STEPS.items()}
    names |= {"squidpy": "squidpy's radius graph", "plain": "plain padded network, multiplied up"}
    for name, title in names.items():
        found = [rows.get(f"{name} {n}") for n in sizes]
        if any(found):
            cells = [shown(row, figure) for row in found]
            slope = exponent([row for row in found if row], figure)
            lines.append(f"| {title} | " + " | ".join(cells) + f" | {'' if slope is None else f'{slope:.2f}'} |")
    return "\n".join(lines)


def shown(row: dict | None, figure: str) -> str:
    if row is None:
        return "not yet measured"
    memory = f", {row['peak_gb']:.2f} GB" if "peak_gb" in row else ""
    return f"{row[figure]:,.1f} s{memory}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--features", type=int, default=1536, help="length of a cell's image features")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--peers", action="store_true", help="run peers beside where there are some")
    parser.add_argument("--peer-cells", type=int, default=2048, help="cells that the plain network predicts")
    parser.add_argument("--epochs", type=int, help="epochs of distill at most; else its default")
    parser.add_argument("--device", help="of nolan, distill and predict; else that of nk.settings")
    parser.add_argument("--runs", type=int, default=1, help="runs of each; the median is reported")
    parser.add_argument("--figure", choices=("seconds", "cpu_seconds"), default="seconds", help="time of the table")
    parser.add_argument("--again", action="store_true", help="also run what the result file has")
    parser.add_argument("--scratch", type=Path, default=Path("chain"), help="folder for data, 4 GB a million cells")
    parser.add_argument("--out", type=Path, default=RESULTS / "chain.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child, arguments.cells[0], arguments)))
        return
    result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": {}}
    for name, row in measured(arguments, result["rows"]):
        about = {"n_features": arguments.features, "epochs": arguments.epochs, "load": os.getloadavg()[0]}
        result["rows"][name] = row | about
        result |= {
            "n_cpus": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "versions": {p: version(p) for p in ("nichekd", "torch", "squidpy", "zarr", "leidenalg", "numpy")},
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(summary(result["rows"], arguments.cells, arguments.figure))


if __name__ == "__main__":
    main()

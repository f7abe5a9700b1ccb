"""The paper's tables, over the public Xenium data sets of xenium_manifest.json.

    python benchmarks/table1.py FOLDER --list
    python benchmarks/table1.py FOLDER --out table1 --encoder uni2

FOLDER has a folder for each data set, named after its bundle, with what 10x Genomics offers of it: the unpacked
``BUNDLE_outs.zip``, at whatever depth; ``BUNDLE_he_image.ome.tif``; ``BUNDLE_he_imagealignment.csv``; and, where there
are some, cell types (the file that the manifest names, or ``cell_types.csv``, with columns cell_id and group).
Data sets that are not there are left out, and named. Nothing is downloaded.

Table 1 (ARI and NMI with the teacher, mean and standard deviation over data sets) is ``OUT/evaluation.csv``; the
composition divergence is in ``OUT/NAME/composition.csv`` of the data sets with cell types. The same call goes on where
an interrupted one stopped.

The manifest holds candidates: see docs/evaluation.md for what is known of the paper's sixteen.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

import nichekd as nk

if TYPE_CHECKING:
    from collections.abc import Callable

    from spatialdata import SpatialData

MANIFEST = Path(__file__).with_name("xenium_manifest.json")
PAPER = ("niche", "niche_histology_nolan", "niche_histology_leiden")  # the rows of the paper's Table 1
CELL_TYPE = "cell_type"


def entries() -> list[dict]:
    """Data sets of the manifest."""
    return json.loads(MANIFEST.read_text(encoding="utf-8"))["datasets"]


def missing(entry: dict, folder: Path) -> list[str]:
    """What of a data set is not in its folder."""
    here = folder / entry["bundle"]
    wanted = [entry["he_image"], entry["he_alignment"]]
    found = [] if any(here.rglob("experiment.xenium")) else [f"{entry['bundle']}_outs.zip, unpacked"]
    return found + [name for name in wanted if not (here / name).is_file()]


def cell_types(entry: dict, folder: Path) -> Path | None:
    """Table of the cells' types, if it is there."""
    names = filter(None, (entry["cell_types"], "cell_types.csv"))
    return next((file for file in (folder / entry["bundle"] / name for name in names) if file.is_file()), None)


def read(entry: dict, folder: Path) -> SpatialData:
    """One data set, its H&E's µm per pixel compared with the manifest's."""
    here = folder / entry["bundle"]
    outs = sorted(file.parent for file in here.rglob("experiment.xenium"))
    if len(outs) > 1:
        raise ValueError(f"{here} holds {len(outs)} Xenium outputs: {', '.join(map(str, outs))}. Keep one.")
    sdata = nk.io.xenium(outs[0], he_image=here / entry["he_image"], he_alignment=here / entry["he_alignment"])
    table = sdata["table"]
    mpp = table.uns["nichekd"]["xenium"]["mpp"]
    if abs(mpp / entry["mpp"] - 1) > 0.02:
        warnings.warn(f"{entry['name']}: {mpp:.4f} µm per pixel, {entry['mpp']} by the manifest.", stacklevel=1)
    if (file := cell_types(entry, folder)) is not None:
        group = pd.read_csv(file, usecols=["cell_id", "group"], dtype=str).set_index("cell_id")["group"]
        table.obs[CELL_TYPE] = pd.Categorical(group.reindex(table.obs["cell_id"].astype(str)).to_numpy())
    return sdata


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("table1"))
    parser.add_argument("--list", action="store_true", help="say what is there, and leave")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="data sets of the manifest")
    parser.add_argument("-K", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--encoder", default="uni2")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--methods", nargs="+", default=list(PAPER), help="rows; see nk.tl.evaluate")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("nichekd").setLevel(logging.INFO)

    known = {entry["name"]: entry for entry in entries()}
    if unknown := sorted(set(options.only or ()) - set(known)):
        parser.error(f"no data set {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = {name: entry for name, entry in known.items() if options.only is None or name in options.only}
    for name, entry in chosen.items():
        print(f"{name:20} {'; '.join(missing(entry, options.folder)) or 'complete'}")
    there = {name: entry for name, entry in chosen.items() if not missing(entry, options.folder)}
    if options.list:
        return
    if not there:
        parser.error(f"{options.folder} holds none of these data sets whole; --list tells what is missing")

    sections: dict[str, Callable[[], SpatialData]] = {
        name: partial(read, entry, options.folder) for name, entry in there.items()
    }
    how = {
        "K": options.K, "seeds": options.seeds, "encoder": options.encoder, "weights": options.weights,
        "methods": options.methods,
    }  # fmt: skip
    table = nk.tl.evaluate(sections, out=options.out, **how)
    for name, entry in there.items():
        if cell_types(entry, options.folder) is not None:  # its runs are finished: only scores are made
            nk.tl.evaluate(sections[name](), cell_type_key=CELL_TYPE, out=options.out / name, **how)
    print(table[table["dataset"] == "mean"].to_string(index=False, float_format="%.3f"))


if __name__ == "__main__":
    main()

"""Figures of CUCA on the test strip of the section, in ``docs/_static``.

    python benchmarks/cuca_figures.py --table section.h5ad --image he.ome.tif

The table is the one that ``cuca.py`` was given; the bundled crop without it. Trained with the default settings and seed
0 on the nine types within 27.5 µm of each cell; drawn are the six types that there is most of, and how all are
co-localised. Prints the agreement by type.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from cuca_units import TRUTH, cell_unit, load

import nichekd as nk

STATIC = Path(__file__).parents[1] / "docs" / "_static"
RADIUS_UM = 27.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--mpp", type=float, default=0.274)
    parser.add_argument("--types", default="cell_type")
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--out", type=Path, default=STATIC)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    use_rep = f"X_{options.encoder}"
    sdata = load(options.table, options.image, mpp=options.mpp, encoder=options.encoder, use_rep=use_rep)
    adata = cell_unit(sdata["table"], options.types, RADIUS_UM, around=False)
    nk.tl.cuca(adata, abundance_key=TRUTH, use_rep=use_rep, seed=0)
    table = nk.tl.abundance_agreement(adata, truth=TRUTH, prediction="abundance", subset="test")
    print(table.to_string(index=False, float_format="%.3f"))
    nk.pl.abundance(adata, truth=TRUTH, subset="test", save=options.out / "cuca_abundance.png", dpi=120)
    nk.pl.colocalization(adata, truth=TRUTH, subset="test", save=options.out / "cuca_colocalization.png", dpi=120)


if __name__ == "__main__":
    main()

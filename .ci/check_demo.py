"""Check what ``nichekd demo`` wrote: ``python .ci/check_demo.py FOLDER``."""

# ruff: noqa: D103, T201

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

METHODS = {"niche", "niche_frozen_encoder", "niche_histology_nolan", "niche_histology_leiden"}
N_NICHES = (5, 10)
FILES = {
    "result.zarr/zarr.json",
    "student/student.safetensors",
    "student/config.json",
    "student/README.md",
    "niches.png",
    "agreement.csv",
}


def check_files(out: Path) -> None:
    missing = sorted(name for name in FILES if not (out / name).is_file())
    if missing:
        raise SystemExit(f"{out} lacks {missing}; it has {sorted(path.name for path in out.iterdir())}")


def check_table(path: Path) -> None:
    table = pd.read_csv(path)
    rows = set(map(tuple, table[["K", "key"]].itertuples(index=False)))
    if rows != {(K, key) for K in N_NICHES for key in METHODS}:
        raise SystemExit(f"{path}: rows are {sorted(rows)}")
    scores = table[["ARI", "NMI"]].to_numpy()
    if not np.isfinite(scores).all() or np.abs(scores).max() > 1 or (table["n_cells"] <= 0).any():
        raise SystemExit(f"{path}: scores are not finite and in [-1, 1], or no cells:\n{table}")
    print(table.to_string(index=False))


def check_figure(path: Path) -> None:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    if min(pixels.shape[:2]) < 400 or pixels.std() < 10:
        raise SystemExit(f"{path} is {pixels.shape[1]} × {pixels.shape[0]} px with sd {pixels.std():.1f}: no figure")


def check_student_and_result(out: Path) -> None:
    import spatialdata

    import nichekd as nk

    student = nk.models.NicheStudent.load(out / "student")
    adata = spatialdata.read_zarr(out / "result.zarr")["table"]
    n_niches = N_NICHES[-1]
    if student.n_niches != n_niches or adata.obsm["student_logits"].shape != (adata.n_obs, n_niches):
        raise SystemExit(f"student of {student.n_niches} niches, logits {adata.obsm['student_logits'].shape}")
    missing = ({"niche_teacher", "split"} | METHODS) - set(adata.obs)
    if missing:
        raise SystemExit(f"result.zarr: obs lacks {sorted(missing)}")


def main() -> None:
    out = Path(sys.argv[1])
    check_files(out)
    check_table(out / "agreement.csv")
    check_figure(out / "niches.png")
    check_student_and_result(out)
    print(f"{out} is complete")


if __name__ == "__main__":
    main()

"""The tables of the page "Cell types from H&E", as Markdown, from what the scripts of CUCA wrote.

python benchmarks/cuca_tables.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).parent / "results"
TABLES = ("section_cells", "section_cells_28", "section_spots", "her2st")
CHOICES = ("cells_network", "spots_network", "cells_align")
COLUMNS = {"pearson": "Pearson", "spearman": "Spearman", "RMSE": "RMSE", "colocalization": "co-localisation"}


def rows_of(name: str) -> tuple[pd.DataFrame, str] | None:
    path = RESULTS / f"cuca_{name}.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return pd.DataFrame(found["rows"]), found["command"]


def number(values: pd.Series) -> str:
    """Mean, and standard deviation over seeds."""
    values = pd.to_numeric(values).dropna()
    if not len(values):
        return ""
    return f"{values.mean():.3f}" + (f" ± {values.std():.3f}" if len(values) > 1 else "")


def table(rows: pd.DataFrame, columns: dict[str, str], by: str = "method") -> str:
    lines = [f"| | {' | '.join(columns.values())} | seeds |", "|---" * (len(columns) + 2) + "|"]
    for name, part in rows.groupby(by, sort=False):
        seeds = part.groupby("seed")[list(columns)].mean()  # of her2st: over the sections
        lines.append(f"| {name} | {' | '.join(number(seeds[column]) for column in columns)} | {len(seeds)} |")
    return "\n".join(lines)


def main() -> None:
    for name in TABLES:
        if (found := rows_of(name)) is None:
            continue
        rows, command = found
        rows["group"] = rows["unit"] + ("" if name == "her2st" else ", " + rows["types"])
        for group, part in rows.groupby("group", sort=False):
            print(f"{group} (`{command}`)\n\n{table(part, COLUMNS)}\n")
    for name in CHOICES:
        if (found := rows_of(f"choice_{name}")) is not None:
            rows, command = found
            scores = rows.astype({"pearson": float}).pivot_table("pearson", "what", "held_out", sort=False)
            print(f"{name} (`{command}`)\n\n{scores.assign(mean=scores.mean(axis=1)).round(3).to_string()}\n")
    if (found := rows_of("niches")) is not None:
        for k, part in found[0].groupby("K"):
            print(f"K = {k} (`{found[1]}`)\n\n{table(part, {'ARI': 'ARI', 'NMI': 'NMI'})}\n")


if __name__ == "__main__":
    main()

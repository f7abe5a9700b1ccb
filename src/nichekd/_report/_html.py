"""Pieces of a page; whatever comes from a user is escaped here."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from matplotlib.figure import Figure

QUALITY = 88  # of JPEG


def picture(figure: Figure, alt: str, *, dpi: float) -> str:
    """The figure inside the page; it is closed."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    # no subsampling: dots of two colours side by side would run together
    style = {"quality": QUALITY, "subsampling": 0, "optimize": True}
    figure.savefig(buffer, format="jpeg", dpi=dpi, pil_kwargs=style)
    plt.close(figure)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/jpeg;base64,{encoded}">'


def facts_table(facts: Mapping[str, Any]) -> str:
    """Names and values, a row each."""
    rows = (f"<tr><th scope=row>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in facts.items())
    return f"<div class=wide><table class=facts>{''.join(rows)}</table></div>"


def notices(sentences: Sequence[str], *, kind: str, title: str) -> str:
    """A box; a sentence is a paragraph, several are a list."""
    if len(sentences) == 1:
        body = f"<p>{escape(sentences[0])}</p>"
    else:
        body = f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"
    return f'<section class="notice {kind}"><h2>{escape(title)}</h2>{body}</section>'


def tiles(numbers: Mapping[str, str]) -> str:
    """Large numbers with what they are below."""
    parts = (f"<div><b>{escape(number)}</b><span>{escape(what)}</span></div>" for what, number in numbers.items())
    return f"<div class=tiles>{''.join(parts)}</div>"


def shares_table(table: pd.DataFrame) -> str:
    """Niches, as :func:`nichekd._report._numbers.niche_table` counts them."""
    has_score = table["ood"].notna().any()
    head = ["niche", "share of cells", "cells", "mm²", "mean confidence", *(["unlike training"] if has_score else [])]
    widest = max(float(table["share"].max()), 1e-9)
    rows = []
    for row in table.itertuples():
        swatch = f'<span class=swatch style="background:{escape(row.color)}"></span>'
        bar = f'<span class=bar style="width:{100 * row.share / widest:.1f}%;background:{escape(row.color)}"></span>'
        cells = [f"{row.n_cells:,}", f"{row.mm2:,.3f}" if row.mm2 < 10 else f"{row.mm2:,.1f}", number(row.confidence)]
        cells += [percent(row.ood)] if has_score else []
        rows.append(
            f"<tr><th scope=row>{swatch}{escape(row.niche)}</th><td class=share><span class=track>{bar}</span>"
            f"{percent(row.share)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        )
    heads = "".join(f"<th scope=col>{name}</th>" for name in head)
    return f"<div class=wide><table class=shares><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def number(value: float) -> str:
    """Two decimals; a dash where there is no value."""
    return f"{value:.2f}" if np.isfinite(value) else "–"


def percent(value: float) -> str:
    """One decimal; a dash where there is no value."""
    return f"{100 * value:.1f} %" if np.isfinite(value) else "–"

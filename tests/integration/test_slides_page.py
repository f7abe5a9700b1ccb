"""What the page "From a slide to a niche map" shows first runs as it stands."""

import json
import re
from pathlib import Path

import matplotlib as mpl
import pytest

import nichekd as nk

PAGE = Path(__file__).parents[2] / "docs" / "slides.md"


@pytest.mark.skipif(not PAGE.is_file(), reason="the docs are not here")
@pytest.mark.filterwarnings("ignore:.*cells look unlike:UserWarning", "ignore:Cells have .* neighbors:UserWarning")
def test_first_snippet_runs(tmp_path, monkeypatch):
    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nk.settings, "progress", False)
    snippet = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL).group(1)
    names = {}
    exec(snippet, names)  # noqa: S102
    table = names["slide"]["table"]
    assert table.n_obs > 200
    assert table.obs["niche_ood"].notna().all()
    assert len(json.loads((tmp_path / "niches.geojson").read_text())["features"]) == table.n_obs
    card = (tmp_path / "student" / "README.md").read_text()
    assert re.search(r"\| student \| 0\.\d{3} \| 0\.\d{3} \| \d+ \|", card)

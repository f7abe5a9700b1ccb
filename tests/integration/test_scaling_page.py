"""What the page on large projects says of its example is what its own code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the docs are not here")


@pytest.fixture
def page():
    return PAGE.read_text(encoding="utf-8")


def python(page):
    return re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)


def test_the_example_is_computed_from_the_table(page, capsys):
    exec(python(page)[0], {})  # noqa: S102  the page's own
    printed = capsys.readouterr().out
    found = {name: float(value) for name, value in re.findall(r"^(.+?)  +([\d.]+) (?:h|GB)$", printed, flags=re.M)}
    prose = " ".join(page.split())
    assert f"{found['features']:.1f} hours of encoding" in prose
    assert f"{found['training, at most']:.1f} hours of training" in prose
    assert f"{60 * found['prediction']:.0f} minutes of prediction" in prose
    assert f"{found['feature stores']:.0f} GB of features" in prose


def test_all_code_is_python(page):
    for code in python(page):
        compile(code, "scaling.md", "exec")

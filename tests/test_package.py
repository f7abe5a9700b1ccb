from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import nichekd as nk

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(nk.__file__).parent
NAMESPACES = ("datasets", "io", "models", "pl", "pp", "tl")
TAKES_DATA = ("pl", "pp", "tl")


def stub_names(namespace: str) -> list[str]:
    """Public names of a namespace, as its stub lists them."""
    return re.findall(r"import \w+ as (\w+)$", (SOURCE / namespace / "__init__.pyi").read_text(), flags=re.MULTILINE)


def public_functions(*namespaces: str) -> list[str]:
    """Functions are lower case, classes are not; nothing is imported while tests are collected."""
    return [f"{namespace}.{name}" for namespace in namespaces for name in stub_names(namespace) if name.islower()]


def public(name: str) -> Callable[..., object]:
    namespace, name = name.split(".")
    return getattr(getattr(nk, namespace), name)


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_quick_and_loads_nothing_heavy():
    loaded = python(
        "import sys, time; start = time.perf_counter(); import nichekd; seconds = time.perf_counter() - start;"
        "print(seconds, *sorted({m.split('.')[0] for m in sys.modules}))"
    ).split()
    assert not {"anndata", "matplotlib", "numpy", "pandas", "scanpy", "spatialdata", "torch"} & set(loaded[1:])
    assert float(loaded[0]) < 1


def test_namespaces_are_listed_before_they_are_loaded():
    listed = python("import nichekd; print(*dir(nichekd)); print(*dir(nichekd.tl))").split("\n")
    assert {*NAMESPACES, "settings", "__version__"} <= set(listed[0].split())
    assert {"distill", "nolan"} <= set(listed[1].split())


def test_a_namespace_loads_no_torch():
    loaded = python("import sys, nichekd; nichekd.tl, nichekd.pp, nichekd.pl, nichekd.io; print(*sys.modules)").split()
    assert "torch" not in loaded


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_stub_names_resolve_to_what_is_defined_there(namespace):
    for name in stub_names(namespace):
        value = getattr(getattr(nk, namespace), name)
        assert value.__module__.startswith(f"nichekd.{namespace}."), name
        assert getattr(getattr(nk, namespace), name) is value, f"{name} is something else on second access"


@pytest.mark.parametrize("name", public_functions(*NAMESPACES))
def test_docstring_says_what_comes_back(name):
    function = public(name)
    doc = inspect.getdoc(function)
    assert doc, "no docstring"
    if inspect.signature(function).parameters:
        assert re.search(r"^Parameters\n-{10}$", doc, flags=re.MULTILINE)
    assert re.search(r"^Returns\n-{7}$", doc, flags=re.MULTILINE)


@pytest.mark.parametrize("name", public_functions(*TAKES_DATA))
def test_docstring_describes_every_parameter(name):
    function = public(name)
    section = re.search(r"Parameters\n-+\n(.*?)\n\n\w+\n-+\n", inspect.getdoc(function) or "", flags=re.DOTALL)
    described = re.findall(r"^(\w[\w, ]*)$", section[1] if section else "", flags=re.MULTILINE)
    assert [p for line in described for p in line.split(", ")] == list(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", public_functions(*TAKES_DATA))
def test_arguments_after_the_data_are_named(name):
    function = public(name)
    parameters = list(inspect.signature(function).parameters.values())
    assert parameters[0].name in {"data", "sdata"}
    assert "table_key" in inspect.signature(function).parameters
    positional = {p.name for p in parameters[1:] if p.kind is not p.KEYWORD_ONLY}
    # beside the number of niches, the student in predict_niches(data, student), the model in predict_abundance(data, model)
    assert positional <= {"K", "student", "model"}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_are_short(path):
    longest = 350 if "models" in path.relative_to(SOURCE).parts else 250
    assert len(path.read_text().splitlines()) <= longest


def test_every_public_name_is_in_the_api_docs():
    page = SOURCE.parents[1] / "docs" / "api.md"
    if not page.is_file():
        pytest.skip("installed without the checkout")
    listed = set(re.findall(rf"^   ((?:{'|'.join(NAMESPACES)})\.\w+)$", page.read_text(), flags=re.MULTILINE))
    assert listed == {f"{namespace}.{name}" for namespace in NAMESPACES for name in stub_names(namespace)}


def test_help_is_quick():
    env = os.environ | {"TERM": "dumb"}
    start = time.perf_counter()
    call = "import sys; from nichekd.cli import app; sys.argv = ['nichekd', '--help']\ntry: app()\nfinally: print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", call], env=env, capture_output=True, text=True, check=True).stdout
    assert "distill" in shown
    assert "torch" not in shown.splitlines()[-1].split()
    assert time.perf_counter() - start < 5  # about 0.5 s on a machine that does nothing else

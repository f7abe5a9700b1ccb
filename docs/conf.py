"""Sphinx. ``sphinx-build -W -b html docs docs/_build`` from the root; the notebooks are executed."""

from __future__ import annotations

import os
import sys
import warnings
from datetime import UTC, datetime
from importlib.metadata import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
from array_like import array_like  # noqa: E402

info = metadata("nichekd")
project = info["Name"]
author = "The nichekd developers"
copyright = f"{datetime.now(tz=UTC):%Y}, {author}"
version = release = info["Version"]
repository = "https://github.com/nichekd/nichekd"
os.environ["NICHEKD_PROGRESS"] = "false"  # bars of a run that is over tell nobody anything
os.environ.pop("MPLBACKEND", None)  # another than the notebook's own leaves it without figures
# sphinx_autodoc_typehints calls what Sphinx 10 will remove
warnings.filterwarnings("ignore", message=".*_RstSnippetParser.*")
# other projects' inventories are fetched from the web, so only where there is one
online = os.environ.get("READTHEDOCS") == "True"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
    "command_help",
    "prose_sections",
]
exclude_patterns = ["_build", ".jupyter_cache", "**.ipynb_checkpoints", "jupyter_execute"]
templates_path = ["_templates"]
default_role = "literal"
nitpicky = True
# names that only the other projects' inventories resolve, and those of modules that import them for type checkers only
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(anndata|spatialdata|dask|distributed|geopandas|huggingface_hub|lightning|matplotlib|numpy|pandas|pathlib|scanpy|scipy|squidpy)\..*",
    ),
    ("py:.*", r"nichekd\..*\._.*|Ellipsis"),  # private types of public arguments
    ("py:.*", r"(scvi|shapely|torch|torchvision|xarray|collections|typing|np|pd|nn|da)\..*"),
]

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # sphinx_autodoc_typehints writes them
typehints_defaults = "braces-after"
typehints_document_rtype = False  # "Returns" says what is returned and what is written
always_use_bars_union = True
typehints_formatter = array_like
suppress_warnings = ["config.cache"]  # a function as a setting can't be cached
napoleon_google_docstring = False
napoleon_use_ivar = True
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
intersphinx_mapping = {
    name: (f"https://{url}/", None)
    for name, url in {
        "anndata": "anndata.readthedocs.io/en/stable",
        "numpy": "numpy.org/doc/stable",
        "pandas": "pandas.pydata.org/docs",
        "python": "docs.python.org/3",
        "scanpy": "scanpy.readthedocs.io/en/stable",
        "scvi-tools": "docs.scvi-tools.org/en/stable",
        "spatialdata": "spatialdata.scverse.org/en/stable",
        "squidpy": "squidpy.readthedocs.io/en/stable",
        "torch": "docs.pytorch.org/docs/stable",
    }.items()
    if online
}

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"  # a notebook that did not change is not run again
nb_execution_in_temp = True  # a notebook writes files
nb_execution_timeout = 1200
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # other libraries' warnings

html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_title = "nichekd"
html_theme_options = {
    "repository_url": repository,
    "path_to_docs": "docs",
    "use_repository_button": True,
    "use_download_button": False,
    "show_navbar_depth": 1,
}

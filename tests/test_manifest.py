"""The manifest of public data sets, and the script that reads it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MANIFEST = json.loads((BENCHMARKS / "xenium_manifest.json").read_text(encoding="utf-8"))
PAPER, DATASETS = MANIFEST["paper"], MANIFEST["datasets"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("table1", BENCHMARKS / "table1.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("entry", DATASETS, ids=lambda entry: entry["name"])
def test_an_entry_is_complete(entry):
    assert entry["tissue"] in PAPER["tissues"]
    assert str(entry["mpp"]) in PAPER["n_at_mpp"]
    assert entry["version"].count(".") == 2
    assert entry["he_image"] == f"{entry['bundle']}_he_image.ome.tif"
    assert entry["he_alignment"] == f"{entry['bundle']}_he_imagealignment.csv"
    assert entry["cell_types"] is None or entry["cell_types"].startswith(f"{entry['bundle']}_")
    assert entry["mpp_source"]
    assert entry["basis"]
    # one of several says which else it may be
    assert entry["status"] in {"only candidate", "one of several"}
    assert entry["status"] == "only candidate" or entry["alternatives"]


def test_names_and_bundles_are_unique():
    assert len({entry["name"] for entry in DATASETS}) == len({entry["bundle"] for entry in DATASETS}) == len(DATASETS)


def test_it_fits_what_is_known_of_the_paper():
    assert sum(PAPER["n_at_mpp"].values()) == PAPER["n_datasets"]
    assert {entry["tissue"] for entry in DATASETS} == set(PAPER["tissues"])
    assert sum(entry["mpp"] == 0.137 for entry in DATASETS) == PAPER["n_at_mpp"]["0.137"]
    assert len(DATASETS) >= PAPER["n_datasets"]


def test_the_page_names_every_bundle():
    page = (BENCHMARKS.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert [entry["bundle"] for entry in DATASETS if f"`{entry['bundle']}`" not in page] == []


def test_the_script_says_what_is_missing(script, tmp_path):
    entry = DATASETS[0]
    here = tmp_path / entry["bundle"]
    assert script.missing(entry, tmp_path) == [
        f"{entry['bundle']}_outs.zip, unpacked",
        entry["he_image"],
        entry["he_alignment"],
    ]
    (here / "outs").mkdir(parents=True)
    for name in ("outs/experiment.xenium", entry["he_image"], entry["he_alignment"]):
        (here / name).touch()
    assert script.missing(entry, tmp_path) == []
    assert script.cell_types(entry, tmp_path) is None
    (here / "cell_types.csv").touch()
    assert script.cell_types(entry, tmp_path) == here / "cell_types.csv"


def test_the_script_reads_a_bundle_with_its_cell_types(script, tmp_path, monkeypatch):
    """`nk.io.xenium` has tests of its own; here, that it is called with the right files, and what comes of it."""
    import anndata
    import pandas as pd

    entry = DATASETS[0]
    here = tmp_path / entry["bundle"]
    (here / "outs").mkdir(parents=True)
    (here / "outs" / "experiment.xenium").touch()
    pd.DataFrame({"cell_id": ["b", "a"], "group": ["T", "B"], "color": "#000"}).to_csv(here / "cell_types.csv")
    table = anndata.AnnData(obs=pd.DataFrame({"cell_id": ["a", "b", "c"]}, index=["0", "1", "2"]))
    table.uns["nichekd"] = {"xenium": {"mpp": 0.274}}
    calls = []

    def xenium(path, **files):
        calls.append((path, files))
        return {"table": table}

    monkeypatch.setattr(script.nk.io, "xenium", xenium)
    with pytest.warns(UserWarning, match="0.137 by the manifest"):
        sdata = script.read(entry, tmp_path)
    assert calls == [
        (here / "outs", {"he_image": here / entry["he_image"], "he_alignment": here / entry["he_alignment"]})
    ]
    assert sdata["table"].obs["cell_type"].tolist()[:2] == ["B", "T"]
    assert sdata["table"].obs["cell_type"].isna().tolist() == [False, False, True]


def test_the_script_evaluates_what_is_whole(script, tmp_path, monkeypatch):
    """First all that is there, then once more, for the composition divergence, what has cell types."""
    import pandas as pd

    from nichekd.tl._evaluation_data import as_datasets

    typed, untyped, partial = DATASETS[:3]
    for entry in (typed, untyped):
        here = tmp_path / entry["bundle"]
        here.mkdir()
        for name in ("experiment.xenium", entry["he_image"], entry["he_alignment"]):
            (here / name).touch()
    (tmp_path / partial["bundle"]).mkdir()
    (tmp_path / typed["bundle"] / "cell_types.csv").touch()
    calls = []

    def evaluate(data, **options):
        calls.append((data, options))
        return pd.DataFrame({"dataset": ["mean"], "ARI": [0.5]})

    monkeypatch.setattr(script.nk.tl, "evaluate", evaluate)
    monkeypatch.setattr(script, "read", lambda entry, folder: entry["name"])
    monkeypatch.setattr("sys.argv", ["table1.py", str(tmp_path), "--out", str(tmp_path / "out"), "--encoder", "color"])
    script.main()
    (sections, first), (section, second) = calls
    assert {name: read() for name, read in as_datasets(sections).items()} == {
        typed["name"]: typed["name"],
        untyped["name"]: untyped["name"],
    }
    assert first["methods"] == ["niche", "niche_histology_nolan", "niche_histology_leiden"]
    assert section == typed["name"]
    assert (second["cell_type_key"], second["out"]) == ("cell_type", tmp_path / "out" / typed["name"])
    assert {name: second[name] for name in ("K", "seeds", "encoder", "methods")} == {
        name: first[name] for name in ("K", "seeds", "encoder", "methods")
    }

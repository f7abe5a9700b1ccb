"""The paper's experiment by its fast path: a quarter of a whole section, one call, resumed from what is finished."""

import importlib.util
from pathlib import Path

import pytest

import nichekd as nk

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real_data,
    pytest.mark.filterwarnings("ignore:.* cells have no counts:UserWarning"),  # 105 of them: it is real data
]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FROZEN_BASELINES = ["niche_histology_nolan", "niche_histology_leiden"]


@pytest.fixture(scope="module")
def fast(shared_data, tmp_path_factory):
    """The evaluation, and a function that calls it again."""
    folder = shared_data / "pancreas" / "section"
    out = tmp_path_factory.mktemp("section")
    spec = importlib.util.spec_from_file_location("pancreas_section", BENCHMARKS / "pancreas_section.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def evaluate():
        sdata = script.section(folder, fast=True)
        return nk.tl.evaluate(
            sdata, K=10, seeds=0, methods=script.MAIN, cell_type_key="cell_type", encoder="efficientnet_lite0",
            gene_aware_fit=script.SHORT, out=out,
        )  # fmt: skip

    return evaluate().set_index("key"), evaluate


def test_the_gene_aware_student_is_ahead_of_all_that_have_no_teacher(fast):
    table, _ = fast
    assert table.loc["niche_gene_aware", "ARI"] > 1.2 * table.loc[FROZEN_BASELINES, "ARI"].max(), table["ARI"]
    assert table.loc["niche_gene_aware", "NMI"] > 1.2 * table.loc[FROZEN_BASELINES, "NMI"].max(), table["NMI"]


def test_its_niches_are_of_the_teachers_composition(fast):
    table, _ = fast
    assert table.loc["niche_gene_aware", "JSD"] < table.loc[FROZEN_BASELINES, "JSD"].min(), table["JSD"]
    assert table.loc["niche_gene_aware", "p_value"] < 0.01


def test_a_second_call_takes_what_is_finished(fast, monkeypatch):
    table, evaluate = fast
    monkeypatch.setattr("nichekd.tl._evaluation_runs.timed", None)
    monkeypatch.setattr("nichekd.tl._evaluation_runs.teach", None)
    again = evaluate().set_index("key")
    assert again["ARI"].to_dict() == table["ARI"].to_dict()

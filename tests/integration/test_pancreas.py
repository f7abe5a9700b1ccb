"""What the package is for: niches of real tissue from its image, on a strip that nothing was fitted on."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score
from spatialdata import SpatialData

import nichekd as nk
from nichekd.models import NicheStudent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.* cells have no counts:UserWarning"),  # 20 of them: it is real data
]

FEATURES = "X_efficientnet_lite0"
BASELINES = ["niche_histology_nolan", "niche_histology_leiden"]


@pytest.fixture(scope="module")
def section() -> SpatialData:
    """The bundled section with all that does not depend on K."""
    sdata = nk.datasets.pancreas()
    nk.pp.split(sdata)
    nk.pp.histology_features(sdata, encoder="efficientnet_lite0")
    nk.pp.expression_features(sdata)
    nk.pp.neighborhoods(sdata)
    return sdata


@pytest.fixture(scope="module", params=[5, 10], ids=lambda K: f"K={K}")
def result(section, request) -> tuple[SpatialData, NicheStudent]:
    """Teacher, the paper's student, and the baselines, on the same frozen features."""
    K = request.param
    sdata = nk.tl.nolan(section, K, copy=True)
    student = nk.tl.distill(sdata, K, use_rep=FEATURES)
    nk.tl.histology_nolan(sdata, K, use_rep=FEATURES)
    nk.tl.histology_leiden(sdata, K, use_rep=FEATURES)
    return sdata, student


def ari(sdata: SpatialData) -> dict[str, float]:
    table = nk.tl.agreement(sdata, keys=["niche", *BASELINES])
    return dict(zip(table["key"], table["ARI"], strict=True))


def test_student_is_nearer_to_the_teacher_than_the_baselines(result):
    found = ari(result[0])
    assert found["niche"] > 1.2 * max(found[key] for key in BASELINES), found


def test_teacher_keeps_its_niches_alive(result):
    about = result[0]["table"].uns["nichekd"]["nolan"]
    assert about["n_live"] >= 0.9 * about["K"]


def test_shuffled_images_teach_nothing(result):
    sdata, student = result
    shuffled = sdata["table"].copy()
    rng = np.random.default_rng(0)
    shuffled.obsm[FEATURES] = shuffled.obsm[FEATURES][rng.permutation(shuffled.n_obs)]
    nk.tl.distill(shuffled, student.n_niches, use_rep=FEATURES)
    test = shuffled.obs["split"] == "test"
    assert adjusted_rand_score(shuffled.obs.loc[test, "niche_teacher"], shuffled.obs.loc[test, "niche"]) <= 0.1


def test_saved_student_maps_the_same_niches(result, tmp_path):
    sdata, student = result
    loaded = NicheStudent.load(student.save(tmp_path / "student"))
    again = nk.tl.predict_niches(sdata, loaded, copy=True)
    assert (again["table"].obs["niche"] == sdata["table"].obs["niche"]).all()


def test_gene_aware_student_is_nearer_still(result):
    sdata, student = result
    baselines = max(ari(sdata)[key] for key in BASELINES)
    encoder = nk.tl.gene_aware_encoder(sdata, encoder="efficientnet_lite0")
    aware = nk.pp.histology_features(sdata, encoder=encoder, copy=True)
    nk.tl.distill(aware, student.n_niches)
    assert ari(aware)["niche"] >= 1.5 * baselines
    assert ari(aware)["niche"] > ari(sdata)["niche"]

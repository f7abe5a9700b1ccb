from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import nichekd as nk
from nichekd.pp._stain import REFERENCE, REFERENCE_MEAN, REFERENCE_MOST, REFERENCE_SD, TO_LAB, TO_LMS, StainNormaliser

pytestmark = [
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning"),
    pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning"),
]

METHODS = ("macenko", "reinhard")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(nk.settings, "progress", False)
    monkeypatch.setattr(nk.settings, "device", "cpu")


def mixed(stains, most, n=20_000, seed=0):
    """Light through random amounts of two stains (3, 2); (n, 3)."""
    amounts = np.random.default_rng(seed).beta(1.2, 2, (n, 2)) * most
    return amounts, np.clip(np.rint(255 * np.exp(-amounts @ stains.T)), 0, 255).astype(np.uint8)


def normalised(normalise, pixels):
    return normalise(pixels.T[:, :, None])[:, :, 0].T


def unit(stains):
    stains = np.asarray(stains, float).T
    return stains / np.linalg.norm(stains, axis=0)


def test_macenko_finds_planted_stains():
    """Pixels of other stains and amounts become those of the reference with the same amounts, relative to the most."""
    stains, most = unit([(0.55, 0.75, 0.35), (0.15, 0.95, 0.25)]), np.array([1.2, 0.8])
    amounts, pixels = mixed(stains, most)
    found = normalised(StainNormaliser.fit("macenko", pixels), pixels).astype(float)
    tops = np.percentile(amounts, 99, axis=0)
    ideal = 255 * np.exp(-(amounts * REFERENCE_MOST / tops) @ REFERENCE.T)
    assert np.abs(found - ideal).mean() < 8


@pytest.mark.parametrize("method", METHODS)
def test_glass_stays_light_and_tissue_stays_apart(method):
    _, pixels = mixed(REFERENCE, REFERENCE_MOST)
    normalise = StainNormaliser.fit(method, pixels)
    glass = normalised(normalise, np.full((4, 3), 255, dtype=np.uint8))
    assert glass.min() > 225
    assert np.corrcoef(normalised(normalise, pixels)[:, 0], pixels[:, 0])[0, 1] > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_two_stainings_of_one_section_meet(method):
    one = mixed(unit([(0.55, 0.75, 0.35), (0.15, 0.95, 0.25)]), np.array([1.2, 0.8]))[1]
    other = mixed(unit([(0.70, 0.65, 0.25), (0.08, 0.98, 0.15)]), np.array([1.7, 1.3]))[1]
    before = np.abs(one.astype(float) - other).mean()
    found = [normalised(StainNormaliser.fit(method, pixels), pixels).astype(float) for pixels in (one, other)]
    assert np.abs(found[0] - found[1]).mean() < before / 3


def test_reinhard_meets_the_references_mean_and_spread():
    _, pixels = mixed(unit([(0.6, 0.7, 0.3), (0.2, 0.9, 0.3)]), np.array([1.0, 0.7]))
    tissue = pixels[pixels.min(axis=1) < 255 * np.exp(-0.15)]
    changed = normalised(StainNormaliser.fit("reinhard", pixels), tissue)
    lab = np.log10(np.maximum(changed, 1) / 255 @ TO_LMS.T) @ TO_LAB.T
    assert lab.mean(axis=0) == pytest.approx(REFERENCE_MEAN, abs=0.04)
    assert lab.std(axis=0) == pytest.approx(REFERENCE_SD, rel=0.35)


@pytest.fixture(scope="module")
def tissue():
    return nk.datasets.simulate(300, K=2, seed=0)


def restained(sdata):
    """The same section, darker, redder, under a yellower lamp."""
    pixels = np.asarray(sdata["he"].data).astype(float)
    density = -np.log(np.maximum(pixels, 1) / 255) * np.array([1.15, 1.4, 1.25])[:, None, None]
    light = 255 * np.exp(-density) * np.array([1, 0.99, 0.95])[:, None, None]
    cells = ad.AnnData(obsm={"spatial": sdata["table"].obsm["spatial"]})
    return nk.io.paired(cells, np.rint(light).astype(np.uint8), mpp=0.25)


def color_features(sdata, stain, **options):
    nk.pp.histology_features(sdata, encoder="color", crop_px=64, stain=stain, **options)
    return np.asarray(sdata["table"].obsm["X_color"]).astype(float)


@pytest.mark.parametrize("method", METHODS)
def test_features_are_alike_under_another_stain(tissue, method):
    other = restained(tissue)
    apart = {}
    for stain in (None, method):
        one, two = color_features(tissue, stain), color_features(other, stain)
        spread = np.vstack([one, two]).std(axis=0) + 1e-6
        apart[stain] = np.abs((one - two) / spread).mean()
    assert apart[method] < 0.5 * apart[None]


def test_student_repeats_it_by_the_record(tissue):
    from nichekd.tl._recorded_features import KIND

    color_features(tissue, "macenko")
    about = tissue["table"].uns["nichekd"]["features"]["X_color"]
    assert about["stain"] == "macenko"
    assert "stain" in KIND
    color_features(tissue, None)
    assert "stain" not in tissue["table"].uns["nichekd"]["features"]["X_color"]


def test_store_of_another_stain_is_refused(tissue, tmp_path):
    color_features(tissue, "reinhard", store=tmp_path / "store")
    with pytest.raises(ValueError, match="stain is 'reinhard' in the store and None now"):
        color_features(tissue, None, store=tmp_path / "store")


def test_same_whatever_the_batches(tissue):
    one = color_features(tissue, "macenko", batch_size=7, num_workers=0)
    assert np.array_equal(one, color_features(tissue, "macenko", batch_size=64, num_workers=3))


def test_unknown_method(tissue):
    with pytest.raises(ValueError, match=r"stain='vahadane'.*macenko"):
        nk.pp.histology_features(tissue, encoder="color", stain="vahadane")


@pytest.mark.parametrize("method", METHODS)
def test_no_tissue(method):
    with pytest.raises(ValueError, match="stained tissue"):
        StainNormaliser.fit(method, np.full((5000, 3), 250, dtype=np.uint8))


def test_one_stain_only():
    amounts = np.random.default_rng(0).uniform(0.8, 2, 5000)
    pixels = 255 * np.exp(-amounts[:, None] * REFERENCE[:, 0])
    with pytest.raises(ValueError, match="one stain only"):
        StainNormaliser.fit("macenko", np.rint(pixels).astype(np.uint8))

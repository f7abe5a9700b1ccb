"""From an H&E file alone to niches, in one call; and slides and students with which there are none."""

from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch

import nichekd as nk
from nichekd.models import Encoder, NicheStudent
from nichekd.tl import FitSettings

MPP = 0.5


@pytest.fixture(scope="module")
def lesson():
    """400 drawn cells with their image, and a student of them."""
    sdata = nk.datasets.simulate(400, K=2, seed=0, mpp=MPP)
    nk.pp.histology_features(sdata, encoder="color", crop_px=32)
    fit = FitSettings(max_epochs=3, min_steps=0, batch_size=64, validation=0, n_components=6)
    return sdata, nk.tl.distill(sdata, teacher="niche_true", fit=fit)


@pytest.fixture
def student(lesson) -> NicheStudent:
    return lesson[1]


@pytest.fixture
def write(tmp_path):
    """Writes pixels (3, y, x) as a tiled TIFF; returns its path."""

    def to_file(pixels, name="slide.tif"):
        path = tmp_path / name
        tifffile.imwrite(
            path, np.moveaxis(np.asarray(pixels), 0, -1), tile=(256, 256), photometric="rgb", metadata=None
        )
        return path

    return to_file


@pytest.mark.filterwarnings("ignore:.*cells look unlike:UserWarning", "ignore:Cells have .* neighbors:UserWarning")
def test_a_file_and_a_student_are_enough(lesson, student, write):
    path = write(lesson[0]["he"].data)
    slide = nk.io.slide(path, mpp=MPP)
    nk.tl.predict_niches(slide, student)
    by_hand = nk.io.slide(path, mpp=MPP)
    nk.pp.segment_nuclei(by_hand)
    nk.pp.histology_features(by_hand, encoder="color", crop_px=32)
    nk.pp.neighborhoods(by_hand, radius=student.config.radius)
    nk.tl.predict_niches(by_hand, student, use_rep="X_color")
    found = slide["table"]
    assert 250 < found.n_obs < 550
    np.testing.assert_array_equal(found.obsm["student_logits"], by_hand["table"].obsm["student_logits"])
    assert found.obs["niche_ood"].notna().all()
    assert {"niche", "niche_entropy", "area_um2"} <= set(found.obs)


@pytest.mark.filterwarnings("ignore:.*cells look unlike:UserWarning", "ignore:Cells have .* neighbors:UserWarning")
def test_the_weights_of_an_encoder_are_read_once(lesson, student, write):
    made = []

    def factory(weights=None):
        made.append(nk.models.get_encoder("color"))
        return replace(made[-1], name="counted")

    nk.models.register_encoder("counted", factory, overwrite=True)
    about = dict(student.config.features) | {"encoder": "counted", "fingerprint": factory().fingerprint}
    made.clear()
    of_counted = NicheStudent(replace(student.config, features=about))
    of_counted.load_state_dict(student.state_dict())
    slide = nk.io.slide(write(lesson[0]["he"].data), mpp=MPP)
    nk.tl.predict_niches(slide, of_counted)
    assert len(made) == 1
    assert "X_counted" in slide["table"].obsm


def blank(shape=(3, 400, 400)):
    return np.full(shape, 247, dtype=np.uint8)


def pink():
    """Tissue, but nothing in it."""
    pixels = blank()
    pixels[:, 40:360, 40:360] = np.array([235, 180, 215], dtype=np.uint8)[:, None, None]
    return pixels


@pytest.mark.parametrize(
    ("pixels", "message"), [(blank(), "no tissue"), (pink(), r"No nuclei in 0\.\d+ mm² of tissue")]
)
def test_a_slide_of_nothing(student, write, pixels, message):
    slide = nk.io.slide(write(pixels), mpp=MPP)
    with pytest.raises(ValueError, match=message):
        nk.tl.predict_niches(slide, student)
    assert not slide.tables
    assert not slide.shapes


def test_a_slide_that_is_too_coarse(student, write):
    slide = nk.io.slide(write(pink()), mpp=4.0)
    with pytest.raises(ValueError, match=r"4 µm per pixel; nuclei are told apart down to"):
        nk.tl.predict_niches(slide, student)


def test_a_slide_that_is_cut_off(lesson, write):
    path = write(lesson[0]["he"].data)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"slide\.tif is truncated.*Copy it again"):
        nk.io.slide(path, mpp=MPP)


# students of another encoder


def of_encoder(student: NicheStudent, **features) -> NicheStudent:
    other = NicheStudent(replace(student.config, features=student.config.features | features))
    other.load_state_dict(student.state_dict())
    return other.eval()


@pytest.fixture
def cells(lesson):
    """Without features."""
    sdata = lesson[0]
    table = sdata["table"].copy()
    for key in ("nichekd", "spatialdata_attrs"):
        del table.uns[key]
    del table.obsm["X_color"]
    return nk.io.paired(table, np.asarray(sdata["he"].data), mpp=MPP)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            {"encoder": "nobodys"},
            r"encoder 'nobodys', which is not here: There is no encoder 'nobodys'.*name the features by use_rep=",
        ),
        ({"fingerprint": "abc"}, r"encoder 'color' with other weights: its fingerprint is 'abc', here '\w+'"),
    ],
)
def test_an_encoder_that_is_not_the_students_encodes_nothing(student, cells, monkeypatch, features, message):
    monkeypatch.setattr(nk.pp, "histology_features", None)
    with pytest.raises(ValueError, match=message):
        nk.tl.predict_niches(cells, of_encoder(student, **features))


def test_weights_may_lie_elsewhere_than_where_it_was_trained(student, cells):
    nk.tl.predict_niches(cells, of_encoder(student, weights="/another/machine/weights.safetensors"))
    assert cells["table"].obs["niche"].notna().all()


def test_a_tampered_encoder_in_the_students_folder(student, monkeypatch, tmp_path):
    from torch import nn

    from nichekd.models._architectures import _ARCHITECTURES

    build = lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 42))  # noqa: E731
    monkeypatch.setitem(_ARCHITECTURES, "test_mean", build)
    encoder = Encoder("mine", build(), architecture="test_mean")
    features = student.config.features | {"encoder": "mine", "fingerprint": encoder.fingerprint}
    own = NicheStudent(replace(student.config, features=features), encoder=encoder)
    folder = own.save(tmp_path / "student")
    path = folder / "encoder" / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + bytes(4))
    with pytest.raises(ValueError, match=r"encoder\.safetensors is truncated or was changed"):
        NicheStudent.load(folder)
    with torch.no_grad():
        encoder.module[2].bias.add_(1)
    encoder.save(folder / "encoder")  # whole, but another
    with pytest.raises(ValueError, match="is not the encoder of this student"):
        NicheStudent.load(folder)

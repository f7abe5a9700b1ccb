import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import nn

from nichekd.models import (
    Encoder,
    NeighborhoodConfig,
    NeighborhoodIndex,
    NicheStudent,
    StudentConfig,
)
from nichekd.models._architectures import _ARCHITECTURES

FEATURES = {"encoder": "color", "fingerprint": "abc", "license": "BSD-3-Clause", "crop_px": 224, "mpp": 0.25}


def make_config(**changes):
    values = {
        "n_features": 9,
        "network": NeighborhoodConfig.preset("pooling", 5, d_model=16),
        "niche_names": ("duct", "acinus", "stroma"),
        "niche_colors": ("#112233", "#445566", "#778899"),
        "radius": 45.25,
        "temperature": 0.125,
        "calibration": 1.5,
        "features": FEATURES,
        "training": {"n_cells": 100, "seed": 0},
    }
    return StudentConfig(**values | changes)


@pytest.fixture
def student():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = NicheStudent(make_config())
    made.whiten.fit(np.random.default_rng(0).normal(size=(50, 9)))
    return made.eval()


@pytest.fixture
def batch():
    rng = np.random.default_rng(1)
    graph = csr_matrix(np.triu(rng.random((8, 8)) < 0.5, k=1))
    index = NeighborhoodIndex.from_graph(graph + graph.T, rng.uniform(0, 50, (8, 2)), 45.25)
    return index.batch(np.arange(8), rng.normal(size=(8, 9)))


@pytest.fixture
def folder(student, tmp_path):
    return student.save(tmp_path / "student")


def edit_config(folder, **changes):
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value != "gone"}))


def test_features_that_were_whitened_before_give_the_same(student, batch):
    whitened = torch.from_numpy(student.whiten.rows(batch.features.numpy()))
    with torch.inference_mode():
        torch.testing.assert_close(student.read(batch.with_features(whitened)), student(batch))


def test_forward_is_whiten_backbone_head_on_the_teachers_scale(student, batch):
    with torch.no_grad():
        embedding = student.backbone(batch.with_features(student.whiten(batch.features)))
        expected = 0.125 * (embedding @ student.head.weight.T + student.head.bias)
        torch.testing.assert_close(student(batch), expected)
    assert student(batch).shape == (8, 3)
    assert student.n_niches == 3


def test_probabilities_are_calibrated(student):
    logits = torch.tensor([[0.1, 0.0, -0.1]])
    expected = np.exp(logits.numpy() / (0.125 * 1.5))
    assert student.probabilities(logits).numpy() == pytest.approx(expected / expected.sum())
    sharper = student.configure(calibration=0.1)
    assert sharper is student
    assert student.probabilities(logits)[0, 0] > 0.9


def test_saved_and_loaded_it_says_the_same_to_the_bit(student, batch, folder):
    loaded = NicheStudent.load(folder)
    assert loaded(batch).equal(student(batch))
    assert loaded.config == student.config
    assert not loaded.training


def test_folder(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "student.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == 2
    assert config["radius"] == 45.25
    assert config["niche_names"] == ["duct", "acinus", "stroma"]
    assert config["features"] == FEATURES


def test_saving_again_replaces(student, folder):
    student.configure(radius=20.0).save(folder)
    assert NicheStudent.load(folder).config.radius == 20.0


def test_card_says_what_a_user_has_to_know(student):
    card = student.card()
    assert card.startswith("---\nlibrary_name: nichekd\n")
    for said in (
        "3 tissue niches",
        "duct, acinus, stroma",
        "color",
        "224 px at 0.25 µm/px",
        "45.25 µm",
        "n_cells: 100",
    ):
        assert said in card
    assert "not for diagnosis" in card
    assert "UNI2" not in card


def test_card_of_a_uni2_student_names_its_licence(student):
    license_of_uni2 = FEATURES | {"encoder": "uni2", "license": "CC-BY-NC-ND-4.0"}
    card = student.configure(features=license_of_uni2).card()
    assert "license: cc-by-nc-nd-4.0" in card
    assert "CC-BY-NC-ND 4.0 and gated" in card
    assert "non-commercial" in card


def test_card_of_features_nobody_recorded(student):
    card = student.configure(features={}, training={}).card()
    assert card.count("not recorded") == 4


def test_nothing_is_unpickled(student, folder, batch):
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("a pickle was opened",)

    for name in ("pytorch_model.bin", "student.pt", "student.pkl"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    assert NicheStudent.load(folder)(batch).equal(student(batch))
    assert NicheStudent.from_pretrained(folder)(batch).equal(student(batch))
    (folder / "student.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="truncated or was changed"):
        NicheStudent.load(folder)


def test_tampered_weights(folder):
    path = folder / "student.safetensors"
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)
    with pytest.raises(ValueError, match=r"student.safetensors is truncated or was changed.*checksum"):
        NicheStudent.load(folder)


def test_truncated_weights(folder):
    path = folder / "student.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        NicheStudent.load(folder)


def test_weights_that_are_none_though_their_checksum_is_right(folder):
    import hashlib

    (folder / "student.safetensors").write_bytes(b"no weights")
    edit_config(folder, sha256=hashlib.sha256(b"no weights").hexdigest())
    with pytest.raises(ValueError, match="no safetensors file"):
        NicheStudent.load(folder)


@pytest.mark.parametrize("name", ["student.safetensors", "config.json"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks \['{name}'\]; it has .*README.md"):
        NicheStudent.load(folder)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        NicheStudent.load(tmp_path / "nowhere")


def test_path_is_a_file(student, folder):
    with pytest.raises(NotADirectoryError, match=r"config.json is a file; name the folder"):
        NicheStudent.load(folder / "config.json")
    with pytest.raises(FileExistsError, match=r"config.json is a file; name a folder"):
        student.save(folder / "config.json")


@pytest.mark.parametrize(
    ("text", "message"), [("{'a': 1}", "is not JSON"), ("[1, 2]", "holds a list"), ("\xff", "is not JSON")]
)
def test_config_that_is_none(folder, text, message):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        NicheStudent.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 3}, r"of format 3; this version of nichekd reads formats 1 to 2.*Upgrade"),
        ({"format": 1}, r"unknown \['training_range'\]"),
        ({"format": "gone"}, "of format None"),
        ({"radius": "gone"}, r"lacks \['radius'\]"),
        ({"colour": 1}, r"unknown \['colour'\]"),
        ({"network": {"d_model": 16}}, r"network of config.json .* has to name .*architecture"),
        ({"network": 3}, r"network of config.json"),
        ({"radius": -1.0}, r"holds \{'radius': -1.0\}, as no student does.*damaged"),
        ({"temperature": float("nan")}, r"holds \{'temperature': nan\}"),
        ({"calibration": "1"}, r"holds \{'calibration': '1'\}"),
        ({"niche_names": "abc"}, r"holds \{'niche_names': 'abc'"),
        ({"niche_names": 3}, r"holds \{'niche_names': 3"),
        ({"niche_names": None}, r"'niche_names': None"),
        ({"niche_colors": ["red"]}, r"holds \{'niche_colors': \['red'\]\}"),
        ({"n_features": "9"}, r"holds \{'n_features': '9'\}"),
        ({"training_range": None}, r"holds \{'training_range': None\}"),
        ({"niche_names": ["a", "b"], "niche_colors": ["#111111", "#222222"]}, r"does not fit config.json.*head"),
        ({"n_features": 10}, r"does not fit config.json.*whiten"),
    ],
)
def test_config_of_another_student(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        NicheStudent.load(folder)


def test_hub_mixin_reads_what_it_wrote(student, batch, tmp_path):
    student.save_pretrained(tmp_path / "mine")
    loaded = NicheStudent.from_pretrained(tmp_path / "mine")
    assert loaded(batch).equal(student(batch))
    assert loaded.config == student.config
    assert (tmp_path / "mine" / "README.md").read_text() == student.card()


def test_hub_mixin_takes_a_snapshot(student, batch, folder, monkeypatch):
    asked = {}

    def snapshot(model_id, **options):
        asked.update(options, model_id=model_id)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    loaded = NicheStudent._from_pretrained(model_id="somebody/niches", revision="v1", token=None, proxies=None)
    assert loaded(batch).equal(student(batch))
    assert asked == {"model_id": "somebody/niches", "revision": "v1", "token": None}


def build_mean() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 9))


@pytest.fixture
def with_encoder(student, monkeypatch):
    """A student whose encoder was trained for it."""
    monkeypatch.setitem(_ARCHITECTURES, "test_mean", build_mean)
    encoder = Encoder("mine", build_mean(), architecture="test_mean")
    features = FEATURES | {"encoder": "mine", "fingerprint": encoder.fingerprint}
    made = NicheStudent(replace(student.config, features=features), encoder=encoder)
    return made.eval()


def test_a_trained_encoder_travels_along(with_encoder, tmp_path):
    loaded = NicheStudent.load(with_encoder.save(tmp_path))
    crops = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert loaded.encoder.fingerprint == with_encoder.encoder.fingerprint
    assert loaded.encoder.encode(crops).equal(with_encoder.encoder.encode(crops))
    assert not any(name.startswith("encoder") for name in loaded.state_dict())


def test_the_encoder_of_another_student_is_refused(student, with_encoder, tmp_path):
    with_encoder.save(tmp_path)
    edit_config(tmp_path, features=FEATURES)
    with pytest.raises(ValueError, match="is not the encoder of this student"):
        NicheStudent.load(tmp_path)
    with pytest.raises(FileExistsError, match="name another folder"):
        student.save(tmp_path)

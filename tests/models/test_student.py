import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
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
    assert config["format"] == 4
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


@pytest.mark.parametrize("license_name", ["CC-BY-NC-ND-4.0", "CC-BY-NC-4.0"])
def test_card_of_an_encoder_that_started_from_a_gated_one_names_its_licence(student, license_name):
    card = student.configure(features=FEATURES | {"encoder": "gene_aware", "license": license_name}).card()
    assert f"license: {license_name.lower()}" in card
    assert f"licensed {license_name}." in card
    assert "derivative" in card


def test_card_of_features_nobody_recorded(student):
    card = student.configure(features={}, training={}).card()
    assert card.count("not recorded") == 5
    assert "Not recorded. To judge it, run `nk.tl.agreement`" in card


def test_card_tells_protocol_and_limits(student):
    about = {"n_neighbors": [48.0, 52.5], "mpp": [0.25, 0.25]}
    dense = FEATURES | {"mode": "dense", "stride_px": 112, "stain": "macenko"}
    training = {"n_cells": 100, "data": "two sections of pancreas", "before": {"n_cells": 7}}
    card = student.configure(training_range=about, features=dense, training=training).card()
    for said in (
        "48.0 to 52.5 neighbors of a cell on average, images of 0.25 µm/px",
        "read off tiles 112 px apart, stain normalised by macenko",
        "n_cells: 100, data: two sections of pancreas, before: (n_cells: 7)",
        "calibrated, factor 1.5",
        "| 0.125 |",
        "Intended for research on H&E of the tissue, stain and scanner that it was trained on",
        'obs["niche_ood"]',
    ):
        assert said in card
    assert "not calibrated" in student.configure(calibration=1.0).card()


EVALUATED = pd.DataFrame(
    {
        "K": [3, 3, 3, 3, 20],
        "key": ["niche", "niche_color", "niche_expression", "mine", "niche"],
        "role": ["method", "floor", "ceiling", np.nan, "method"],
        "ARI": np.array([0.5, 0.25, 0.75, 0.125, 0.375], dtype=np.float32),
        "ARI_sd": [0.0625, np.nan, np.nan, np.nan, np.nan],
        "NMI": [0.5, 0.25, 0.75, np.nan, 0.4],
        "n_cells": np.array([1145] * 5, dtype=np.int32),
    }
)


def test_metrics_travel_with_floors_and_ceilings(student, tmp_path):
    student.configure(metrics=EVALUATED)
    assert [row["key"] for row in student.config.metrics] == ["niche", "niche_color", "niche_expression", "mine"]
    assert student.config.metrics[3] == {
        "K": 3,
        "key": "mine",
        "ARI": 0.125,
        "n_cells": 1145,
    }  # what is missing is left out
    assert type(student.config.metrics[0]["ARI"]) is float
    loaded = NicheStudent.load(student.save(tmp_path / "student"))
    assert loaded.config == student.config
    for line in (
        "| method | role | ARI | NMI | n_cells |",
        "| student | method | 0.500 ± 0.062 | 0.500 | 1,145 |",
        "| student, colours alone | floor | 0.250 | 0.250 | 1,145 |",
        "| student, expression in place of images | ceiling | 0.750 | 0.750 | 1,145 |",
        "| mine |  | 0.125 |  | 1,145 |",
        "floors are what images give that know nothing",
    ):
        assert line in (tmp_path / "student" / "README.md").read_text()


def test_metrics_of_agreement(student):
    """Without K and role."""
    student.configure(metrics=pd.DataFrame({"key": ["niche"], "ARI": [0.5], "NMI": [0.25], "n_cells": [10]}))
    assert "| method | ARI | NMI | n_cells |" in student.card()
    assert student.configure(metrics=()).config.metrics == ()


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        (0.5, TypeError, "metrics is a float. Hand in a table of nk.tl.agreement"),
        ({"ARI": 0.5}, TypeError, "metrics is a dict"),
        ([0.5], TypeError, "Row 0 of metrics is a float"),
        ([{"key": "niche", "ARI": [0.5]}], TypeError, "Row 0 of metrics has a list as 'ARI'"),
        ([{"ARI": 0.5}], ValueError, r"Row 0 of metrics is \{'ARI': 0.5\}: it names no method"),
        ([{"key": "niche", "ARI": 0.5}, {"key": "a", "ARI": np.nan}], ValueError, "Row 1 .* or has no score"),
        (EVALUATED.tail(1), ValueError, r"metrics are of K = \[20\], the student has 3 niches"),
    ],
)
def test_metrics_that_are_none(student, metrics, error, message):
    before = student.config
    with pytest.raises(error, match=message):
        student.configure(metrics=metrics)
    assert student.config is before


@pytest.mark.parametrize(("written", "lacks"), [(1, ("training_range", "metrics")), (2, ("metrics",))])
def test_folders_of_older_versions(student, batch, folder, written, lacks):
    edit_config(folder, format=written, **dict.fromkeys(lacks, "gone"))
    loaded = NicheStudent.load(folder)
    assert loaded(batch).equal(student(batch))
    assert loaded.config.metrics == ()


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
        ({"format": 5}, r"of format 5; this version of nichekd reads formats 1 to 4.*Upgrade"),
        ({"format": 1}, r"unknown \['metrics', 'training_range'\]"),
        ({"format": 2}, r"unknown \['metrics'\]"),
        ({"format": "gone"}, "of format None"),
        ({"radius": "gone"}, r"lacks \['radius'\]"),
        ({"colour": 1}, r"unknown \['colour'\]"),
        ({"network": {"d_model": 16}}, r"network of config.json lacks .*architecture.*damaged"),
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
        ({"metrics": None}, r"holds \{'metrics': None\}"),
        ({"metrics": [{"ARI": 0.5}]}, r"holds \{'metrics': \[\{'ARI': 0\.5\}\]\}"),
        ({"metrics": [{"key": "niche", "ARI": {}}]}, r"holds \{'metrics'"),
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"niche_names": ["a"]}, r"can't have \{'niche_colors'"),
        ({"niche_names": ["a"], "niche_colors": ["red"]}, r"niche_names=\('a',\) does not fit .* 'stroma'\)"),
        ({"niche_names": ["a", "a", "b"]}, "niche_names are different strings"),
        ({"niche_names": [1, 2, 3]}, r"can't have \{'niche_names': \[1, 2, 3\]"),
        ({"niche_colors": ["zz", "red", "blue"]}, r"can't have \{'niche_colors': \['zz'"),
        ({"calibration": 0}, r"\{'calibration': 0\}: .*calibration are above 0"),
        ({"calibration": "x"}, r"\{'calibration': 'x'\}"),
        ({"calibration": True}, r"\{'calibration': True\}"),
        ({"radius": float("nan")}, r"\{'radius': nan\}"),
        ({"training": None}, r"\{'training': None\}"),
        ({"n_features": 10}, "n_features=10 does not fit the student's weights"),
        ({"network": NeighborhoodConfig.preset("pooling", 6, d_model=16)}, "network=.* does not fit"),
        ({"training_range": {"n_groups": 3}}, r"training_range=\{'n_groups': 3\} does not fit"),
    ],
)
def test_values_that_no_folder_could_be_loaded_with(student, folder, changes, message):
    before = student.config
    with pytest.raises(ValueError, match=message):
        student.configure(**changes)
    assert student.config is before
    assert NicheStudent.load(student.save(folder)).config == before


def test_a_value_that_there_is_not(student):
    with pytest.raises(TypeError, match=r"config has no \['foo'\]; it has .*'niche_names'"):
        student.configure(foo=1)


def test_values_are_kept_as_a_folder_keeps_them(student, folder):
    student.configure(niche_names=["a", "b", "c"], calibration=np.float32(0.5), radius=20)
    assert student.config.niche_names == ("a", "b", "c")
    assert NicheStudent.load(student.save(folder)).config == student.config


def test_features_of_another_encoder_than_its_own(with_encoder):
    with pytest.raises(ValueError, match="features=.* does not fit"):
        with_encoder.configure(features=FEATURES)


@pytest.mark.parametrize(
    ("name", "content"), [("README.md", "# My project"), ("config.json", '{"mine": 1}'), ("config.json", "not JSON")]
)
def test_files_of_somebody_else_are_not_replaced(student, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(FileExistsError, match=f"{name} would be replaced.*Name another folder"):
        student.save(tmp_path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, content)]


def test_other_files_stay(student, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    student.save(tmp_path)
    student.save_pretrained(tmp_path)
    student.save_pretrained(tmp_path)  # takes the config away, and leaves the card
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "README.md", "config.json", "notes.txt", "student.safetensors",
    ]  # fmt: skip


def test_a_model_stays_whole_until_the_next_is_written(student, folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    torch.nn.init.ones_(student.head.weight)
    with pytest.raises(TypeError, match="not JSON serializable"):
        student.configure(training={"data": object()}).save(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_process_that_was_killed_between_two_files(student, folder, tmp_path):
    """The weights have taken their place, the config that goes with them lies beside the old one."""
    torch.nn.init.ones_(student.head.weight)
    newer = student.configure(radius=20.0).save(tmp_path / "newer")
    (folder / "student.safetensors").write_bytes((newer / "student.safetensors").read_bytes())
    (folder / ".config.nichekd-new.json").write_bytes((newer / "config.json").read_bytes())
    loaded = NicheStudent.load(folder)
    assert loaded.config == student.config
    assert loaded.head.weight.equal(student.head.weight)
    student.configure(radius=30.0).save(folder)
    assert NicheStudent.load(folder).config.radius == 30.0
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "student.safetensors"]


def test_what_takes_its_place_is_ready_before_the_first_does(student, folder, monkeypatch):
    left = []
    replace_ = Path.replace

    def replacing(new, path):
        left.append(sorted(file.name for file in folder.glob(".*nichekd-new*")))
        return replace_(new, path)

    monkeypatch.setattr(Path, "replace", replacing)
    student.save(folder)
    assert len(left[0]) == 3
    assert ".config.nichekd-new.json" in left[1]

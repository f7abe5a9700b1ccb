from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from nichekd.models import AlignedConfig, AlignedEncoder, Encoder
from nichekd.models._architectures import _ARCHITECTURES

FEATURES = {"encoder": "color", "fingerprint": "abc", "license": "none", "crop_px": 224, "mpp": 0.25}


def made(**changes) -> AlignedEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        values: dict[str, Any] = {
            "n_features": 6,
            "n_out": 4,
            "features": dict(FEATURES),
            "genes": ("A", "B"),
            "training": {"seed": 0},
        }
        return AlignedEncoder(AlignedConfig(**values | changes)).eval()


def edit(folder, **changes):
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value != "gone"}))


def test_saved_and_loaded_it_says_the_same_to_the_bit(tmp_path):
    model, x = made(), torch.randn(5, 6)
    loaded = AlignedEncoder.load(model.save(tmp_path / "model"))
    assert loaded(x).equal(model(x))
    assert loaded.config == model.config
    assert loaded.fingerprint == model.fingerprint
    assert not loaded.training
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"README.md", "aligned.safetensors", "config.json"}


def test_fingerprint_changes_with_the_weights():
    model = made()
    before = model.fingerprint
    with torch.no_grad():
        model.branch.head.linear.bias[0] += 1e-3
    assert model.fingerprint != before


def test_card(tmp_path):
    card = made().card()
    for said in ("color", "224 px at 0.25 µm/px", "seed: 0", "| genes in training | 2 |", "not for diagnosis"):
        assert said in card
    assert "UNI2" not in card
    gated = made(features=FEATURES | {"encoder": "uni2", "license": "CC-BY-NC-ND-4.0"}).card()
    assert "license: cc-by-nc-nd-4.0" in gated
    assert "CC-BY-NC-ND 4.0 and gated. A model" in gated
    assert made(features={}, training={}).card().count("not recorded") == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, r"of format 2; this version of nichekd reads format 1"),
        ({"n_out": "gone"}, r"lacks \['n_out'\]"),
        ({"colour": 1}, r"unknown \['colour'\]"),
        ({"n_features": 7}, "does not fit config.json"),
    ],
)
def test_config_of_another_model(tmp_path, changes, message):
    folder = made().save(tmp_path)
    edit(folder, **changes)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        AlignedEncoder.load(folder)


def test_damaged_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        AlignedEncoder.load(tmp_path / "nowhere")
    folder = made().save(tmp_path / "model")
    with pytest.raises(NotADirectoryError, match="is a file"):
        AlignedEncoder.load(folder / "config.json")
    blob = (folder / "aligned.safetensors").read_bytes()
    (folder / "aligned.safetensors").write_bytes(blob[:-1])
    with pytest.raises(ValueError, match="truncated or was changed"):
        AlignedEncoder.load(folder)


def build_mean() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 6))


def test_a_tuned_encoder_travels_along_and_another_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(_ARCHITECTURES, "test_mean6", build_mean)
    encoder = Encoder("mine", build_mean(), architecture="test_mean6")
    model = AlignedEncoder(made(features=FEATURES | {"fingerprint": encoder.fingerprint}).config, encoder=encoder)
    loaded = AlignedEncoder.load(model.save(tmp_path))
    assert loaded.encoder is not None
    assert loaded.encoder.fingerprint == encoder.fingerprint
    edit(tmp_path, features=FEATURES)
    with pytest.raises(ValueError, match="is not the encoder of this model"):
        AlignedEncoder.load(tmp_path)
    with pytest.raises(FileExistsError, match="name another folder"):
        made().save(tmp_path)

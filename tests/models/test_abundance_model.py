from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from nichekd.models import AbundanceConfig, AbundanceModel, CucaConfig, Encoder, LoraSettings
from nichekd.models._abundance_model import adapted_encoder
from nichekd.models._encoder_zoo import build_timm

FEATURES = {"encoder": "color", "fingerprint": "abc", "crop_px": 224, "mpp": 0.274, "license": "none"}


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = AbundanceConfig(
        CucaConfig(5, 3, width=8), types=("T", "B", "tumour"), genes=("CD3E",), features=FEATURES, training={"seed": 0}
    )
    model = AbundanceModel(config)
    model.network.standardize.fit(np.arange(5.0), np.arange(1.0, 6))
    model.network.scale_types(np.array([1.0, 2.0, 3.0]))
    return model.eval()


def test_a_reload_predicts_the_same(model, tmp_path):
    features = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float16)
    again = AbundanceModel.load(model.save(tmp_path / "model"))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "README.md",
        "abundance.safetensors",
        "config.json",
    ]
    assert again.config == model.config
    assert not again.training
    for mine, theirs in zip(model.predict(features), again.predict(features), strict=True):
        assert np.array_equal(mine, theirs)


def test_prediction_part_by_part_is_that_of_all(model, monkeypatch):
    features = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)
    whole = model.predict(features)[0]
    monkeypatch.setattr("nichekd.models._abundance_model.ROWS", 3)
    assert np.allclose(model.predict(features)[0], whole, atol=1e-6)
    assert (whole >= 0).all()


def test_by_the_hubs_words(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    assert AbundanceModel.from_pretrained(tmp_path / "model").types == ("T", "B", "tumour")


def test_the_card_says_what_it_is(model):
    card = model.card()
    assert "Abundances of 3 cell types" in card
    assert "T, B, tumour" in card
    assert "224 px at 0.274 µm/px" in card
    assert "UNI2-h" not in card


def test_models_on_uni2_carry_its_licence(model):
    config = AbundanceConfig(model.config.network, model.types, features=FEATURES | {"encoder": "uni2"})
    card = AbundanceModel(config).card()
    assert "license: cc-by-nc-nd-4.0" in card
    assert "UNI2-h is licensed CC-BY-NC-ND" in card


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 99}, "format 99.*Upgrade"),
        ({"types": None}, r"lacks \['types'\]"),
        ({"extra": 1}, r"unknown \['extra'\]"),
        ({"network": {"width": 3}}, "network of config.json lacks"),
        ({"lora": {"r": 8}}, "lora of config.json lacks"),
        ({"types": ["T", "B"], "network": {"n_features": 5, "n_types": 2, "width": 8, "gene_width": 9, "dropout": 0.1,
                                         "n_components": None}},
         "does not fit config.json"),
    ],
)  # fmt: skip
def test_damaged_config(model, tmp_path, change, says):
    folder = model.save(tmp_path / "model")
    values = json.loads((folder / "config.json").read_text())
    values = {name: value for name, value in (values | change).items() if value is not None or name == "lora"}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=says):
        AbundanceModel.load(folder)


def test_damaged_weights(model, tmp_path):
    folder = model.save(tmp_path / "model")
    blob = (folder / "abundance.safetensors").read_bytes()
    (folder / "abundance.safetensors").write_bytes(blob[:-9])
    with pytest.raises(ValueError, match="truncated or was changed"):
        AbundanceModel.load(folder)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        AbundanceModel.load(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        AbundanceModel.load(tmp_path / "file")


def test_adapters_need_the_encoder_they_were_trained_on():
    def encoder(seed):
        torch.manual_seed(seed)
        module = build_timm("vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2)
        return Encoder("tiny", module)

    described = {"encoder": "tiny", "fingerprint": encoder(0).fingerprint}
    lora = LoraSettings(r=2, blocks=1)
    base = encoder(0)
    adapted = adapted_encoder(described, lora, base)
    assert base.fingerprint == described["fingerprint"], "the user's encoder was changed"
    assert adapted.fingerprint != base.fingerprint
    with pytest.raises(ValueError, match="has fingerprint .*made by 'tiny'.*encoder="):
        adapted_encoder(described, lora, encoder(1))

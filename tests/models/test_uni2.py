"""UNI2-h by a stand-in with its arguments, but two narrow blocks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import nichekd as nk
from nichekd.models import _uni2

SMALL = {"depth": 2, "num_heads": 2, "embed_dim": 32}


@pytest.fixture(scope="module")
def stand_in():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _uni2.build_uni2(**SMALL)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(_uni2, "KWARGS", _uni2.KWARGS | SMALL)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A hub that can't be reached, and an empty cache of it."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def crops(px=224):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, px, px), dtype=np.uint8))


@pytest.mark.parametrize("file", ["pytorch_model.bin", "uni2.safetensors"])
def test_local_file(stand_in, small, tmp_path, file):
    save = save_file if file.endswith("safetensors") else torch.save
    save(stand_in.state_dict(), tmp_path / file)
    encoder = nk.models.get_encoder("uni2", weights=tmp_path / file)
    assert (encoder.name, encoder.n_features, encoder.license) == ("uni2", 32, "CC-BY-NC-ND-4.0")
    assert encoder.mean == (0.485, 0.456, 0.406)
    assert encoder.sd == (0.229, 0.224, 0.225)
    assert encoder.weights == str(tmp_path / file)

    x = crops()
    mean, sd = torch.tensor(encoder.mean).view(3, 1, 1), torch.tensor(encoder.sd).view(3, 1, 1)
    with torch.no_grad():
        tokens = stand_in.eval().forward_features((x / 255 - mean) / sd)  # CLS, 8 registers, 256 patches
    assert tokens.shape == (2, 1 + 8 + 256, 32)
    torch.testing.assert_close(encoder.encode(x, precision="32"), tokens[:, 0], rtol=1e-4, atol=1e-5)


def test_the_real_sizes():
    with torch.device("meta"):
        module = _uni2.build_uni2()
    assert module.num_features == 1536
    assert sum(p.numel() for p in module.parameters()) == pytest.approx(681.4e6, rel=1e-3)


def test_other_crops_are_taken_in_whole_patches(stand_in, small, tmp_path):
    save_file(stand_in.state_dict(), tmp_path / "w.safetensors")
    encoder = nk.models.get_encoder("uni2", weights=tmp_path / "w.safetensors")
    assert encoder.check(112) == 32
    with pytest.raises(ValueError, match=r"14 px patches.*\[98, 112\]"):
        encoder.check(100)


def test_weights_of_another_size(stand_in, small, tmp_path):
    state = stand_in.state_dict()
    save_file({k: v for k, v in state.items() if not k.startswith("blocks.1.")}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"does not fit VisionTransformer: \d+ tensors missing \['blocks.1"):
        nk.models.get_encoder("uni2", weights=tmp_path / "w.safetensors")


def test_from_the_hub(stand_in, small, hub_cache):
    repository = hub_cache / "models--MahmoodLab--UNI2-h"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    config = {
        "architecture": "vit_giant_patch14_224",
        "num_classes": 0,
        "num_features": 1536,
        "global_pool": "token",
        "pretrained_cfg": {"num_classes": 0, "input_size": [3, 224, 224], "first_conv": "patch_embed.proj"},
    }
    (snapshot / "config.json").write_text(json.dumps(config))
    save_file(stand_in.state_dict(), snapshot / "model.safetensors")
    encoder = nk.models.get_encoder("uni2")
    assert encoder.weights is None
    assert encoder.fingerprint == nk.models.Encoder("uni2", stand_in).fingerprint


def test_offline_names_the_ways_on(hub_cache):
    with pytest.raises(nk.models.EncoderAccessError, match=r"(?s)can't be fetched.*hf auth login.*weights=.*lite0"):
        nk.models.get_encoder("uni2")


def test_gated_names_the_ways_on(monkeypatch):
    import timm
    from huggingface_hub.errors import GatedRepoError

    def refuse(*args, **kwargs):
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(nk.models.EncoderAccessError, match=r"(?s)no access.*licence.*hf auth login.*weights=.*lite0"):
        nk.models.get_encoder("uni2")


def test_saved_and_loaded_in_its_small_form(stand_in, tmp_path):
    save_file(stand_in.state_dict(), tmp_path / "w.safetensors")
    encoder = _uni2.uni2(tmp_path / "w.safetensors", **SMALL)
    again = nk.models.Encoder.load(encoder.save(tmp_path / "folder"))
    assert again.fingerprint == encoder.fingerprint

"""A gene-aware encoder that starts from a vision transformer: UNI2-h's stand-in of two narrow blocks, and models of timm."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import nichekd as nk
from nichekd._keys import Keys
from nichekd.models import Encoder, LoraSettings, _encoder_registry, _uni2
from nichekd.models._encoder_zoo import build_timm
from nichekd.models._gene_aware import GeneAwareNetwork
from nichekd.models._lora import MARK, add_lora
from nichekd.models._weights import load_state
from nichekd.tl import FitSettings, GeneAwareSettings, _gene_aware_fit
from nichekd.tl._gene_aware_start import start_encoder

SMALL = {"depth": 2, "num_heads": 2, "embed_dim": 32}
VIT = "vit_tiny_patch16_224"
LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
LORA = LoraSettings(r=2, alpha=4, dropout=0.1, blocks=1)
OPTIONS = {"target": "X_latent", "crop_px": 56, "fit": GeneAwareSettings(max_epochs=1, crops_per_epoch=16)}
HEADS = {"n_targets": 4, "n_clusters": 3, "n_niches": 0}


def section():
    """Simulated cells with a latent that needs no training."""
    sdata = nk.datasets.simulate(n_cells=400, K=3, seed=0)
    adata = sdata["table"]
    counts = np.log1p(np.asarray(adata.X.todense(), dtype=np.float32))
    adata.obsm["X_latent"] = np.linalg.svd(counts - counts.mean(0), full_matrices=False)[0][:, :4]
    nk.pp.split(sdata, crop_px=64)
    return sdata


@pytest.fixture(scope="module")
def sdata():
    return section()


@pytest.fixture(scope="module", autouse=True)
def small_uni2():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_uni2, "KWARGS", _uni2.KWARGS | SMALL)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of UNI2-h's stand-in and of ``tiny_vit``."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(_uni2.build_uni2().state_dict(), folder / "uni2.safetensors")
        save_file(build_timm(VIT, **SMALL).state_dict(), folder / "tiny_vit.safetensors")
    return folder


@pytest.fixture
def tiny_vit(monkeypatch):
    """A registered encoder: a model of timm with arguments of its own."""

    def factory(weights=None):
        module = build_timm(VIT, **SMALL)
        if weights is not None:
            module.load_state_dict(load_state(weights))
        arguments = {"name": VIT} | SMALL
        return Encoder("tiny_vit", module, license="MIT", architecture="timm", architecture_kwargs=arguments)

    monkeypatch.setitem(_encoder_registry._ENCODERS, "tiny_vit", factory)
    return "tiny_vit"


@pytest.fixture(scope="module")
def adapted(sdata, weights):
    return nk.tl.gene_aware_encoder(sdata, encoder="uni2", weights=weights / "uni2.safetensors", lora=LORA, **OPTIONS)


def test_lora_leaves_all_but_the_adapted_layers_bit_for_bit(adapted, weights):
    before = load_state(weights / "uni2.safetensors")
    after = adapted.module.backbone.vit.state_dict()
    assert set(after) == set(before)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {f"blocks.1.{layer}.weight" for layer in LAYERS}
    for name in changed:
        spectrum = torch.linalg.svdvals(after[name] - before[name])
        assert spectrum[2] < 1e-3 * spectrum[0]  # of rank 2, but for rounding


def test_lora_trains_the_heads(adapted, weights):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = start_encoder("uni2", weights=weights / "uni2.safetensors", lora=LORA, **HEADS | {"n_targets": 8})
    own = start.module.state_dict()
    after = adapted.module.state_dict()
    assert not torch.equal(after["lateral.0.weight"], own["lateral.0.weight"])
    assert not torch.equal(after["targets.weight"], own["targets.weight"])


def test_the_best_epoch_is_kept_without_what_is_frozen(weights, monkeypatch):
    sdata = section()
    monkeypatch.setattr(_gene_aware_fit, "ENOUGH_TO_HOLD_BACK", 100)
    file = weights / "uni2.safetensors"
    encoder = nk.tl.gene_aware_encoder(sdata, encoder="uni2", weights=file, lora=LORA, **OPTIONS)
    assert len(sdata["table"].uns[Keys.UNS]["gene_aware_encoder"]["history"]["validation_loss"]) == 1
    before = load_state(file)
    after = encoder.module.backbone.vit.state_dict()
    assert {n for n in after if not torch.equal(after[n], before[n])} == {
        f"blocks.1.{layer}.weight" for layer in LAYERS
    }

    network = GeneAwareNetwork(VIT, backbone_kwargs=SMALL, n_targets=1, n_clusters=1)
    add_lora(network.backbone.vit, LORA)
    kept = _gene_aware_fit.trained_state(network)
    assert all(MARK in name or not name.startswith("backbone.") for name in kept)
    assert {"smooth.1.running_mean", "lateral.0.weight"} < set(kept)


def test_licence_and_preprocessing_are_the_vits(adapted, sdata):
    assert adapted.license == "CC-BY-NC-ND-4.0"
    assert (adapted.mean, adapted.multiple_px) == (_uni2.IMAGENET_MEAN, 14)
    assert not any(p.requires_grad for p in adapted.module.parameters())
    entry = sdata["table"].uns[Keys.UNS]["gene_aware_encoder"]
    assert entry["lora"]["r"] == 2
    assert entry["weights"].endswith("uni2.safetensors")


def test_same_seed_same_encoder(adapted, weights):
    again = nk.tl.gene_aware_encoder(
        section(), encoder="uni2", weights=weights / "uni2.safetensors", lora=LORA, **OPTIONS
    )
    assert again.fingerprint == adapted.fingerprint


def test_a_saved_one_needs_no_peft(adapted, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    again = Encoder.load(adapted.save(tmp_path / "encoder"))
    x = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    assert (again.fingerprint, again.license) == (adapted.fingerprint, "CC-BY-NC-ND-4.0")
    torch.testing.assert_close(again.encode(x), adapted.encode(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Of each cell .* are seen")  # tiles, by a split that knows of crops
def test_it_travels_with_the_student_of_its_dense_features(adapted, sdata, tmp_path):
    nk.pp.histology_features(sdata, encoder=adapted, crop_px=112, mode="dense")
    assert sdata["table"].obsm["X_gene_aware_dense"].shape == (400, 96)
    student = nk.tl.distill(
        sdata, teacher="niche_true", use_rep="X_gene_aware_dense", fit=FitSettings(max_epochs=1, min_steps=1)
    )
    loaded = nk.models.NicheStudent.load(student.save(tmp_path / "student"))
    assert loaded.encoder is not None
    assert loaded.encoder.fingerprint == adapted.fingerprint
    assert loaded.encoder.license == "CC-BY-NC-ND-4.0"


def test_whole_from_a_weights_file(sdata, weights, tiny_vit, tmp_path):
    file = weights / "tiny_vit.safetensors"
    start = start_encoder(tiny_vit, weights=file, lora=None, **HEADS)
    before = load_state(file)
    vit = start.module.backbone.vit
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())

    encoder = nk.tl.gene_aware_encoder(sdata, encoder=tiny_vit, weights=file, **OPTIONS | {"crop_px": 64})
    after = encoder.module.backbone.vit.state_dict()
    assert not any(
        torch.equal(after[f"blocks.0.{layer}.weight"], before[f"blocks.0.{layer}.weight"]) for layer in LAYERS
    )
    again = Encoder.load(encoder.save(tmp_path / "encoder"))
    assert (again.fingerprint, again.license) == (encoder.fingerprint, "MIT")


def test_whole_from_nothing(sdata):
    encoder = nk.tl.gene_aware_encoder(sdata, encoder="test_vit", **OPTIONS | {"crop_px": 32})
    assert (encoder.license, encoder.multiple_px, encoder.n_features) == ("none", 16, 96)


def test_a_convolutional_network_from_a_weights_file(sdata, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        state = build_timm("tf_efficientnet_lite0").state_dict()
    save_file(state, tmp_path / "w.safetensors")
    start = start_encoder("efficientnet_lite0", weights=tmp_path / "w.safetensors", lora=None, **HEADS)
    own = start.module.backbone.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in own.items())


def test_a_model_of_the_hub_is_built_again_without_it(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    data = {"num_classes": 0, "input_size": [3, 224, 224], "first_conv": "patch_embed.proj", "license": "mit"}
    config = {"architecture": VIT, "num_classes": 0, "num_features": 32, "model_args": SMALL, "pretrained_cfg": data}
    (snapshot / "config.json").write_text(json.dumps(config))
    save_file(build_timm(VIT, **SMALL).state_dict(), snapshot / "model.safetensors")
    start = start_encoder("hf-hub:someone/tiny", weights=None, lora=LORA, **HEADS)
    assert start.architecture_kwargs["backbone"] == VIT
    assert start.license == "mit"
    (snapshot / "config.json").unlink()
    assert Encoder.load(start.save(tmp_path / "encoder")).fingerprint == start.fingerprint


def test_crops_that_are_no_multiple_of_the_patch(sdata, weights):
    with pytest.raises(ValueError, match=r"crop_px=64 is no multiple of the 14 px patches.*\[56, 70\]"):
        nk.tl.gene_aware_encoder(
            sdata, encoder="uni2", weights=weights / "uni2.safetensors", **OPTIONS | {"crop_px": 64}
        )


@pytest.mark.parametrize("name", ["small_cnn", VIT, "tf_efficientnet_lite0"])
def test_lora_from_nothing(sdata, name):
    with pytest.raises(ValueError, match=f"'{name}' starts from nothing.*weights="):
        nk.tl.gene_aware_encoder(sdata, encoder=name, lora=LORA, **OPTIONS)


def test_lora_of_a_convolutional_network(sdata):
    with pytest.raises(ValueError, match="no transformer blocks.*encoder='uni2'"):
        nk.tl.gene_aware_encoder(sdata, encoder="efficientnet_lite0", lora=LORA, **OPTIONS)


def test_lora_of_more_blocks_than_there_are(sdata, weights):
    with pytest.raises(ValueError, match="adapts 3 blocks, but the encoder has 2"):
        nk.tl.gene_aware_encoder(
            sdata, encoder="uni2", weights=weights / "uni2.safetensors", lora=LoraSettings(blocks=3), **OPTIONS
        )


def test_lora_without_peft(sdata, weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r'pip install "nichekd\[lora\]"'):
        nk.tl.gene_aware_encoder(sdata, encoder="uni2", weights=weights / "uni2.safetensors", lora=LORA, **OPTIONS)


def test_lora_that_is_no_settings(sdata):
    with pytest.raises(TypeError, match=r"lora is a bool.*LoraSettings\(\)"):
        nk.tl.gene_aware_encoder(sdata, encoder="uni2", lora=True, **OPTIONS)


def test_encoder_that_is_no_name(sdata):
    with pytest.raises(TypeError, match="encoder is a Linear.*register_encoder"):
        nk.tl.gene_aware_encoder(sdata, encoder=torch.nn.Linear(1, 1), **OPTIONS)


def test_weights_of_a_network_that_takes_none(sdata):
    with pytest.raises(ValueError, match="'small_cnn' starts from nothing. Leave weights="):
        nk.tl.gene_aware_encoder(sdata, weights="w.safetensors", **OPTIONS)


def test_weights_that_are_no_file(sdata):
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
        nk.tl.gene_aware_encoder(sdata, encoder="uni2", weights="nowhere.safetensors", lora=LORA, **OPTIONS)


def test_an_encoder_that_could_not_be_built_again(sdata, monkeypatch):
    monkeypatch.setitem(_encoder_registry._ENCODERS, "mine", lambda weights: Encoder("mine", build_timm(VIT, **SMALL)))
    with pytest.raises(ValueError, match="'mine' has no architecture=.*register_architecture"):
        nk.tl.gene_aware_encoder(sdata, encoder="mine", **OPTIONS)


def test_an_encoder_without_a_map(sdata):
    with pytest.raises(ValueError, match="ColorStatistics shows no map"):
        nk.tl.gene_aware_encoder(sdata, encoder="color", **OPTIONS)

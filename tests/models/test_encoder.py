from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import nichekd as nk
from nichekd.models import _architectures
from nichekd.models._encoder_registry import _ENCODERS, _IN_USE, remember_encoder
from nichekd.models._precision import resolve_device, resolve_precision

CPU = torch.device("cpu")


class MeanColour(nn.Module):
    """Mean of what it is given, per channel: shows the normalisation."""

    def forward(self, x):
        return x.mean(dim=(2, 3))


def crops(n=2, px=8, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, px, px), dtype=np.uint8))


def small_cnn(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )


@pytest.fixture
def clean_registry(monkeypatch):
    nk.models.get_encoder("color")  # ours are registered
    monkeypatch.setattr("nichekd.models._encoder_registry._ENCODERS", dict(_ENCODERS))
    monkeypatch.setattr("nichekd.models._encoder_registry._IN_USE", set(_IN_USE))
    monkeypatch.setattr(_architectures, "_ARCHITECTURES", dict(_architectures._ARCHITECTURES))


def test_module_sees_normalised_values():
    x = crops()
    encoder = nk.models.Encoder("mean", MeanColour(), mean=(0.1, 0.2, 0.3), sd=(0.5, 0.6, 0.7))
    plain = (x.double() / 255).mean(dim=(2, 3))
    expected = (plain - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.6, 0.7])
    torch.testing.assert_close(encoder.encode(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_normalise_pixel_by_pixel():
    encoder = nk.models.Encoder("mean", MeanColour())
    x = crops()
    mean, sd = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(encoder.normalise(x), (x / 255 - mean) / sd, rtol=1e-5, atol=1e-6)


def test_a_module_is_called_histology_and_normalised_as_imagenet():
    encoder = nk.models.get_encoder(small_cnn())
    assert encoder.name == "histology"
    assert encoder.mean == (0.485, 0.456, 0.406)
    assert encoder.sd == (0.229, 0.224, 0.225)


def test_arrays_and_tensors_are_the_same_crops():
    encoder = nk.models.get_encoder(small_cnn())
    torch.testing.assert_close(encoder.encode(crops().numpy()), encoder.encode(crops()))
    turned = crops().numpy()[:, :, ::-1]  # a negative stride
    torch.testing.assert_close(encoder.encode(turned), encoder.encode(turned.copy()))


def test_frozen_and_in_evaluation_mode():
    encoder = nk.models.get_encoder(small_cnn().train())
    encoder.module.train()
    features = encoder.encode(crops())
    assert not features.requires_grad
    assert not any(p.requires_grad for p in encoder.module.parameters())
    torch.testing.assert_close(features, encoder.encode(crops()))  # no dropout, no running statistics


def test_features_may_train_what_follows():
    features = nk.models.get_encoder(small_cnn()).encode(crops())
    head = nn.Linear(4, 1)
    head(features).sum().backward()
    assert head.weight.grad is not None


def test_features_of_a_crop_do_not_depend_on_its_batch():
    encoder = nk.models.get_encoder(small_cnn())
    torch.testing.assert_close(encoder.encode(crops(6))[:2], encoder.encode(crops(6)[:2]))


@pytest.mark.parametrize("values", [np.zeros((1, 3, 4, 4)), torch.zeros(1, 3, 4, 4), "crops"])
def test_crops_have_to_be_uint8(values):
    with pytest.raises(TypeError, match="uint8"):
        nk.models.get_encoder(small_cnn()).encode(values)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 8, 8, 3)])
def test_crops_have_to_have_three_channels_first(shape):
    with pytest.raises(ValueError, match=r"\(b, 3, height, width\)"):
        nk.models.get_encoder(small_cnn()).encode(torch.zeros(shape, dtype=torch.uint8))


def test_a_feature_map_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="AdaptiveAvgPool2d"):
        nk.models.get_encoder(nn.Conv2d(3, 4, 3)).encode(crops())


def test_several_outputs_are_refused():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(TypeError, match="returns a tuple"):
        nk.models.get_encoder(Two()).encode(crops())


def test_fingerprint_is_of_classes_state_and_normalisation():
    encoder = nk.models.get_encoder(small_cnn())
    assert encoder.fingerprint == nk.models.get_encoder(copy.deepcopy(small_cnn())).fingerprint
    assert encoder.fingerprint == nk.models.Encoder("another name", small_cnn()).fingerprint
    others = [
        nk.models.get_encoder(small_cnn(seed=1)),
        nk.models.get_encoder(nn.Sequential(*small_cnn()[:2], nn.ReLU(), *small_cnn()[3:])),
        nk.models.Encoder("histology", small_cnn(), mean=(0, 0, 0)),
    ]
    assert len({encoder.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_fingerprint_follows_a_change_of_weights_and_nothing_else():
    encoder = nk.models.get_encoder(small_cnn())
    before = encoder.fingerprint
    encoder.to("cpu").encode(crops())  # channels last now
    assert encoder.fingerprint == before
    encoder.module[0].bias[0] += 1
    assert encoder.fingerprint != before


def test_fingerprint_and_features_are_the_same_in_another_process():
    code = (
        "import nichekd as nk, torch; e = nk.models.get_encoder('random');"
        "x = torch.arange(3 * 32 * 32).remainder(256).to(torch.uint8).view(1, 3, 32, 32);"
        "print(e.fingerprint, e.encode(x, precision='32').double().sum().item())"
    )
    fingerprint, total = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    encoder = nk.models.get_encoder("random")
    x = torch.arange(3 * 32 * 32).remainder(256).to(torch.uint8).view(1, 3, 32, 32)
    assert encoder.fingerprint == fingerprint
    assert encoder.encode(x, precision="32").double().sum().item() == pytest.approx(float(total), rel=1e-6)


def test_check_finds_the_number_of_features():
    encoder = nk.models.get_encoder(small_cnn())
    assert encoder.n_features is None
    assert encoder.check(16) == 4
    assert encoder.n_features == 4


def test_check_refuses_crops_the_encoder_does_not_take():
    with pytest.raises(ValueError, match="crop_px=64"):
        nk.models.Encoder("e", small_cnn(), crop_px=64).check(224)
    with pytest.raises(ValueError, match=r"nearest are \[98, 112\]"):
        nk.models.Encoder("e", small_cnn(), multiple_px=14).check(100)
    with pytest.raises(ValueError, match=r"nearest are \[14\]"):
        nk.models.Encoder("e", small_cnn(), multiple_px=14).check(8)
    with pytest.raises(ValueError, match="n_features=9, but returns 4"):
        nk.models.Encoder("e", small_cnn(), n_features=9).check(16)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"name": ""}, ValueError, "needs a name"),
        ({"module": lambda x: x}, TypeError, "torch.nn.Module"),
        ({"mean": (0.5, 0.5)}, ValueError, "three numbers"),
        ({"sd": (1, 0, 1)}, ValueError, "above 0"),
    ],
)
def test_bad_encoders(changes, error, match):
    with pytest.raises(error, match=match):
        nk.models.Encoder(**({"name": "e", "module": MeanColour()} | changes))


def test_get_encoder_refuses_other_things():
    with pytest.raises(TypeError, match="encoder is a int"):
        nk.models.get_encoder(3)
    with pytest.raises(ValueError, match="a module brings its own"):
        nk.models.get_encoder(small_cnn(), weights="w.safetensors")
    encoder = nk.models.get_encoder("color")
    assert nk.models.get_encoder(encoder) is encoder


def test_unknown_names_are_listed_and_the_nearest_named():
    with pytest.raises(ValueError, match=r"efficientnet_lite0.*resnet18"):
        nk.models.get_encoder("resnet-18")
    with pytest.raises(ValueError, match=r"nearest: \['efficientnet_lite0', 'efficientnet_lite\d', "):
        nk.models.get_encoder("efficientnet-lite0")


def test_register(clean_registry):
    @nk.models.register_encoder("mean")
    def mean(weights=None):
        return nk.models.Encoder("mean", MeanColour(), weights=str(weights))

    assert nk.models.get_encoder("mean", weights="there").weights == "there"
    nk.models.register_encoder("mean", mean)  # once more is no change
    with pytest.raises(ValueError, match="'mean' already"):
        nk.models.register_encoder("mean", lambda weights: None)
    nk.models.register_encoder("mean", lambda weights: "other", overwrite=True)
    assert nk.models.get_encoder("mean") == "other"


def test_a_registered_name_is_not_taken_by_an_encoder_in_use(clean_registry):
    used, again = (nk.models.Encoder("mean", MeanColour()) for _ in range(2))
    remember_encoder(used)
    assert nk.models.get_encoder("mean") is used
    nk.models.register_encoder("mean", lambda weights: "registered", overwrite=True)
    remember_encoder(again)
    assert nk.models.get_encoder("mean") == "registered"


def test_a_name_does_not_come_to_mean_weights_of_a_file(clean_registry):
    """An encoder made by name with a file of weights is found by both; the name alone keeps its meaning."""
    sdata = nk.datasets.simulate(60, K=2, mpp=0.5)
    for name, weights in (("from a file", "there.safetensors"), ("in use", None)):
        encoder = nk.models.Encoder(name, MeanColour(), weights=weights)
        nk.pp.histology_features(sdata, encoder=encoder, crop_px=16)
    assert nk.models.get_encoder("in use").name == "in use"
    with pytest.raises(ValueError, match="no encoder 'from a file'"):
        nk.models.get_encoder("from a file")


def test_save_and_load(tmp_path, clean_registry):
    nk.models.register_architecture("small", small_cnn)
    encoder = nk.models.Encoder(
        "mine", small_cnn(seed=3), mean=(0.1, 0.2, 0.3), architecture="small", architecture_kwargs={"seed": 1}
    )
    encoder.check(16)
    again = nk.models.Encoder.load(encoder.save(tmp_path / "encoder"))
    assert again.fingerprint == encoder.fingerprint
    assert (again.name, again.mean, again.n_features) == ("mine", (0.1, 0.2, 0.3), 4)
    torch.testing.assert_close(again.encode(crops()), encoder.encode(crops()))


def test_encoders_of_the_registry_can_be_saved(tmp_path):
    encoder = nk.models.get_encoder("random")
    assert nk.models.Encoder.load(encoder.save(tmp_path)).fingerprint == encoder.fingerprint


def test_save_needs_an_architecture(tmp_path, clean_registry):
    with pytest.raises(ValueError, match="register_architecture"):
        nk.models.get_encoder(small_cnn()).save(tmp_path)
    nk.models.register_architecture("small", small_cnn)
    with pytest.raises(ValueError, match="'small' already"):
        nk.models.register_architecture("small", MeanColour)


def test_load_refuses_what_it_can_not_build(tmp_path):
    nk.models.Encoder("mine", small_cnn(), architecture="unheard of").save(tmp_path)
    with pytest.raises(ValueError, match=r"'unheard of' is unknown; there are \['color', .*'timm', 'uni2'"):
        nk.models.Encoder.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        nk.models.Encoder.load(tmp_path / "absent")


def test_load_refuses_a_damaged_config(tmp_path):
    import json

    nk.models.get_encoder("color").save(tmp_path)
    config = json.loads((tmp_path / "encoder.json").read_text())
    del config["sd"]
    (tmp_path / "encoder.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lacks or adds \['sd'\]"):
        nk.models.Encoder.load(tmp_path)


def test_precision():
    assert resolve_precision("32", CPU, ("cpu",)) == "32"
    assert resolve_precision("bf16", CPU, ()) == "bf16"
    assert resolve_precision("auto", CPU, ("cuda",)) == "32"
    assert resolve_precision("auto", torch.device("mps"), ("mps",)) == "32"
    with pytest.raises(ValueError, match="'16'"):
        resolve_precision("16", CPU, ())


def test_precision_follows_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert resolve_precision("auto", CPU, ("cpu",)) == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    assert resolve_precision("auto", CPU, ("cpu",)) == "32"


def test_device(monkeypatch):
    assert resolve_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == CPU
    with pytest.raises(ValueError, match="0 devices of type 'cuda'"):
        resolve_device("gpu")
    with pytest.raises(ValueError, match="none that torch knows"):
        resolve_device("abacus")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match="'cuda:1'"):
        resolve_device("cuda:1")

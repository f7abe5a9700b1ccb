"""Students and other models on a hub, which stands in a thread; no test here asks another."""

from __future__ import annotations

import errno
import json
import pickle
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from nichekd.models import (
    AbundanceConfig,
    AbundanceModel,
    AlignedConfig,
    AlignedEncoder,
    CucaConfig,
    Encoder,
    HubAccessError,
    NeighborhoodConfig,
    NicheStudent,
    SlideClassifier,
    SlideClassifierConfig,
    StudentConfig,
)
from nichekd.models._architectures import _ARCHITECTURES

if TYPE_CHECKING:
    from nichekd.models._saved_model import SavedModel

NAME = "somebody/niches"


@pytest.fixture
def student():
    config = StudentConfig(
        n_features=9,
        network=NeighborhoodConfig.preset("pooling", 5, d_model=16),
        niche_names=("duct", "acinus"),
        niche_colors=("#112233", "#445566"),
        radius=45.25,
        features={"encoder": "color", "fingerprint": "abc", "license": "BSD-3-Clause", "crop_px": 224, "mpp": 0.25},
        metrics=({"key": "niche", "ARI": 0.5, "NMI": 0.4},),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = NicheStudent(config)
    made.whiten.fit(np.random.default_rng(0).normal(size=(50, 9)))
    return made.eval()


@pytest.fixture
def shared(hub, student):
    """The hub, with the student on it."""
    student.push_to_hub(NAME, token=hub.token)
    return hub


def same(one: SavedModel, other: SavedModel) -> bool:
    """In config and weights."""
    weights = other.state_dict()
    return one.config == other.config and all(value.equal(weights[key]) for key, value in one.state_dict().items())


def test_what_was_pushed_is_fetched(shared, student):
    assert sorted(shared.repositories[NAME]) == ["README.md", "config.json", "student.safetensors"]
    assert shared.repositories[NAME]["README.md"].decode() == student.card()
    fetched = NicheStudent.from_pretrained(NAME)
    assert same(fetched, student)
    assert fetched.config.metrics == ({"key": "niche", "ARI": 0.5, "NMI": 0.4},)
    assert not fetched.training


def test_its_own_encoder_goes_along(hub, student, monkeypatch):
    build = lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 9))  # noqa: E731
    monkeypatch.setitem(_ARCHITECTURES, "test_mean", build)
    encoder = Encoder("mine", build(), architecture="test_mean")
    features = student.config.features | {"encoder": "mine", "fingerprint": encoder.fingerprint}
    made = NicheStudent(replace(student.config, features=features), encoder=encoder)
    made.push_to_hub(NAME, token=hub.token, private=True)
    assert hub.private[NAME]
    assert "encoder/encoder.safetensors" in hub.repositories[NAME]
    assert NicheStudent.from_pretrained(NAME).encoder.fingerprint == encoder.fingerprint


@pytest.mark.parametrize(
    "model",
    [
        AbundanceModel(AbundanceConfig(CucaConfig(5, 3, width=8), types=("T", "B", "tumour"))),
        AlignedEncoder(AlignedConfig(n_features=6, n_out=4, genes=("A", "B"))),
        SlideClassifier(SlideClassifierConfig(n_features=6, classes=("low", "high"))),
    ],
    ids=lambda model: type(model).__name__,
)
def test_other_models_go_the_same_way(hub, model):
    model.push_to_hub(NAME, token=hub.token)
    assert hub.repositories[NAME]["README.md"].decode() == model.card()
    assert same(type(model).from_pretrained(NAME), model)
    with pytest.raises(FileNotFoundError, match=r"lacks \['student.safetensors'\]"):
        NicheStudent.from_pretrained(NAME)


def test_pushed_again_it_is_the_new_one(shared, student):
    student.configure(radius=20.0).push_to_hub(NAME, token=shared.token)
    assert NicheStudent.from_pretrained(NAME).config.radius == 20


def test_other_files_of_the_repository_stay_there(shared, tmp_path):
    """Pickles, say."""
    shared.repositories[NAME] |= {"pytorch_model.bin": pickle.dumps({}), "thesis/draft.pdf": b"%PDF"}
    NicheStudent.from_pretrained(NAME)
    assert not any("pytorch_model" in asked or "thesis" in asked for asked in shared.asked)
    assert not [path.name for path in (tmp_path / "cache").rglob("pytorch_model.bin")]


def test_a_copy_will_do_where_there_is_no_hub(shared, student, monkeypatch):
    NicheStudent.from_pretrained(NAME)
    asked = len(shared.asked)
    assert same(NicheStudent.from_pretrained(NAME, local_files_only=True), student)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert same(NicheStudent.from_pretrained(NAME), student)
    assert len(shared.asked) == asked


def test_a_folder_goes_first(hub, student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student.save(tmp_path / "somebody" / "niches")
    assert same(NicheStudent.from_pretrained(NAME), student)
    assert not hub.asked


# where it can't be read


def test_no_such_repository(hub):
    with pytest.raises(
        FileNotFoundError, match=r"no folder somebody/niches.*hub has no .*private.*hf auth login.*token="
    ):
        NicheStudent.from_pretrained(NAME)


def test_no_such_revision(shared):
    with pytest.raises(FileNotFoundError, match=r"somebody/niches has no revision 'v2'.*latest"):
        NicheStudent.from_pretrained(NAME, revision="v2")


def test_gated(shared, student):
    shared.gated.add(NAME)
    with pytest.raises(
        HubAccessError, match=r"is gated.*Ask at http://127\.0\.0\.1:\d+/somebody/niches.*hf auth login"
    ):
        NicheStudent.from_pretrained(NAME)
    assert same(NicheStudent.from_pretrained(NAME, token=shared.token), student)


def test_a_name_that_is_none(hub):
    with pytest.raises(ValueError, match=r"no folder 'my student/of/niches'.*OWNER/NAME"):
        NicheStudent.from_pretrained("my student/of/niches")
    assert not hub.asked


def test_a_repository_of_something_else(hub):
    hub.repositories[NAME] = {"model.bin": b"x"}
    with pytest.raises(
        FileNotFoundError, match=r"somebody/niches is on the hub, but holds none of .*student\.safetensors"
    ):
        NicheStudent.from_pretrained(NAME)
    hub.repositories["somebody/half"] = {"config.json": b"{}"}
    with pytest.raises(FileNotFoundError, match=r"lacks \['student\.safetensors'\]"):
        NicheStudent.from_pretrained("somebody/half")


def test_damaged_on_the_way(shared):
    weights = shared.repositories[NAME]["student.safetensors"]
    shared.repositories[NAME]["student.safetensors"] = weights[:-1] + bytes([weights[-1] ^ 1])
    with pytest.raises(ValueError, match="truncated or was changed"):
        NicheStudent.from_pretrained(NAME)
    shared.repositories[NAME]["config.json"] = b"{'a'"
    with pytest.raises(ValueError, match="is not JSON"):
        NicheStudent.from_pretrained(NAME)


def unused_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_no_network(student, ask_hub_at):
    ask_hub_at(unused_url())
    with pytest.raises(
        HubAccessError, match=r"no complete copy.*cache.*the hub gave none \(Connect.*with a connection"
    ):
        NicheStudent.from_pretrained(NAME)
    with pytest.raises(HubAccessError, match=r"can't be put on the hub \(Connect.*hf upload somebody/niches student"):
        student.push_to_hub(NAME, token="hf_owner")


def test_a_hub_out_of_order(shared):
    shared.down = True
    with pytest.raises(HubAccessError, match=r"the hub gave none \(.*500"):
        NicheStudent.from_pretrained(NAME)


def test_offline_without_a_copy(hub, student, monkeypatch):
    with pytest.raises(HubAccessError, match=r"no complete copy.*not to be asked.*local_files_only"):
        NicheStudent.from_pretrained(NAME, local_files_only=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubAccessError, match=r"not to be asked \(HF_HUB_OFFLINE"):
        NicheStudent.from_pretrained(NAME)
    assert not hub.asked


def test_a_full_disk_is_not_the_hubs_fault(shared, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(OSError, match="No space left") as raised:
        NicheStudent.from_pretrained(NAME)
    assert not isinstance(raised.value, HubAccessError)


# where it can't be written


@pytest.mark.parametrize(("name", "token"), [(NAME, "hf_old"), ("others/niches", "hf_owner")])
def test_no_right_to_write(hub, student, name, token):
    with pytest.raises(HubAccessError, match=rf"does not let you write to {name}.*owner's name.*hf auth login"):
        student.push_to_hub(name, token=token)
    assert not hub.repositories


def test_nowhere_to_write(hub, student):
    with pytest.raises(ValueError, match=r"'a/b/c' can't be a name on a hub.*OWNER/NAME"):
        student.push_to_hub("a/b/c", token=hub.token)


@pytest.mark.parametrize("features", [{"encoder": "uni2"}, {"encoder": "gene_aware", "license": "CC-BY-NC-ND-4.0"}])
def test_what_may_not_be_shared_freely_is_said(hub, student, features):
    student.configure(features=features)
    with pytest.warns(UserWarning, match=r"derives from an encoder under .*private=True"):
        student.push_to_hub(NAME, token=hub.token)
    student.push_to_hub(NAME, token=hub.token, private=True)  # without a word
    card = hub.repositories[NAME]["README.md"].decode()
    assert "license: cc-by-nc-nd-4.0" in card
    assert json.loads(hub.repositories[NAME]["config.json"])["features"] == features

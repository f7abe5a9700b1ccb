"""Training settings that no training can be run with are refused when they are made."""

import math

import pytest

import nichekd as nk

ALL = [
    nk.tl.FitSettings,
    nk.tl.CucaSettings,
    nk.tl.GeneAwareSettings,
    nk.tl.RankByGeneSettings,
    nk.tl.SlideSettings,
]


@pytest.mark.parametrize("settings", ALL)
def test_defaults_are_in_range(settings):
    assert settings() == settings()


@pytest.mark.parametrize("settings", ALL)
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"max_epochs": 0}, "max_epochs=0, which has to be a whole number, 1 or more"),
        ({"max_epochs": 2.5}, r"max_epochs=2\.5"),
        ({"max_epochs": True}, "max_epochs=True"),
        ({"learning_rate": 0}, "learning_rate=0, which has to be above 0"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"weight_decay": -0.1}, r"weight_decay=-0\.1, which has to be 0 or more"),
        ({"warmup": 1.0}, r"warmup=1\.0, which has to be from 0 to below 1"),
        ({"clip": "3"}, "clip='3'"),
        ({"max_epochs": -1, "warmup": 2}, "max_epochs=-1, .*; warmup=2"),
    ],
)
def test_out_of_range(settings, changes, match):
    with pytest.raises(ValueError, match=f"{settings.__name__}: .*{match}"):
        settings(**changes)


def test_none_only_where_it_means_something():
    assert nk.tl.FitSettings(batch_size=None).pace(1_000) == (24, 256)
    assert nk.tl.CucaSettings(n_components=None).n_components is None
    with pytest.raises(ValueError, match="patience=None"):
        nk.tl.FitSettings(patience=None)


def test_published_settings_of_cuca_are_in_range():
    assert nk.tl.CucaSettings.published().clip == math.inf

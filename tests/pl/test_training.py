import anndata as ad
import numpy as np
import pytest

import nichekd as nk

HISTORY = {
    "step": np.array([10.0, 20.0, 30.0]),
    "train_loss": np.array([3.0, 2.0, 1.0]),
    "validation_loss": np.array([3.5, np.nan, 1.5]),
    "validation_ari": np.array([0.1, np.nan, 0.5]),
}


@pytest.fixture
def trained(cells):
    cells.uns["nichekd"]["distill"] = {"history": HISTORY, "seed": 0}
    return cells


def curves(ax):
    return {line.get_label(): line.get_xydata().tolist() for line in ax.lines}


def test_losses_share_a_panel(trained):
    loss, ari = nk.pl.training(trained).axes
    assert curves(loss) == {
        "training cells": [[10, 3], [20, 2], [30, 1]],
        "validation cells": [[10, 3.5], [30, 1.5]],
    }
    assert curves(ari) == {"validation cells": [[10, 0.1], [30, 0.5]]}
    assert (loss.get_ylabel(), loss.get_xlabel()) == ("Loss", "step, one in 10")
    assert ari.get_ylabel() == "ARI against the teacher"
    assert loss.get_title("left") == "nk.tl.distill"


def test_a_row_per_training(trained, tmp_path):
    trained.uns["nichekd"]["nolan"] = {"history": {"train_loss": np.ones(2), "usage_entropy": np.ones(2)}}
    fig = nk.pl.training(trained, save=tmp_path / "training.png")
    titles = [ax.get_title("left") for ax in fig.axes if ax.get_title("left")]
    assert titles == ["nk.tl.distill", "nk.tl.nolan"]
    assert len(nk.pl.training(trained, function="nolan").axes) == 2
    assert (tmp_path / "training.png").exists()


def test_epochs_are_whole(cells):
    cells.uns["nichekd"]["distill"] = {"history": {"epoch": np.arange(1.0, 4), "train_loss": np.ones(3)}}
    (ax,) = nk.pl.training(cells).axes
    assert ax.get_xlabel() == "epoch"
    assert not np.mod(ax.get_xticks(), 1).any()


def test_steps_that_are_not_shown_are_told(cells):
    history = {"step": np.arange(0.0, 300, 20), "train_loss": np.ones(15)}
    cells.uns["nichekd"] |= {"nolan": {"history": history}, "distill": {"history": history}}
    labels = {ax.get_title("left"): ax.get_xlabel() for ax in nk.pl.training(cells).axes}
    assert labels == {
        "nk.tl.nolan": "step after the warm start, one in 20",
        "nk.tl.distill": "step, one in 20",
    }


def test_after_a_reload(trained, tmp_path):
    trained.write_h5ad(tmp_path / "cells.h5ad")
    fig = nk.pl.training(ad.read_h5ad(tmp_path / "cells.h5ad"))
    assert [len(ax.lines) for ax in fig.axes] == [2, 1]


def test_nothing_was_trained(cells):
    with pytest.raises(KeyError, match=r"no history.*nk\.tl\.distill"):
        nk.pl.training(cells)


def test_another_function(trained):
    with pytest.raises(KeyError, match=r"'nolan'.*there is one of \['distill'\]"):
        nk.pl.training(trained, function="nolan")


@pytest.mark.parametrize("losses", [[1.0], []])
def test_arrays_that_do_not_fit(trained, losses):
    trained.uns["nichekd"]["distill"]["history"] = {"step": np.arange(float(2 * len(losses))), "train_loss": losses}
    with pytest.raises(ValueError, match=r"equally long.*nk\.tl\.distill"):
        nk.pl.training(trained)

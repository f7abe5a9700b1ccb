"""Files that are whole or not there; nothing of anybody else's is touched."""

import pytest

from nichekd._files import held, unfinished, written


def fill(path, content, *, as_folder):
    if as_folder:
        path.mkdir(parents=True)
        (path / "part").write_text(content)
    else:
        path.write_text(content)


def content(path):
    return (path / "part").read_text() if path.is_dir() else path.read_text()


@pytest.mark.parametrize("as_folder", [False, True])
def test_takes_the_place_of_what_was_there(tmp_path, as_folder):
    path = tmp_path / "result.zarr"
    fill(path, "old", as_folder=as_folder)
    with written(path) as new:
        fill(new, "new", as_folder=as_folder)
        assert content(path) == "old"
    assert content(path) == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["result.zarr"]


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_failure_leaves_the_old_one(tmp_path, as_folder):
    path = tmp_path / "result.zarr"
    fill(path, "old", as_folder=as_folder)

    def half():
        with written(path) as new:
            fill(new, "half", as_folder=as_folder)
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        half()
    assert content(path) == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["result.zarr"]


def test_a_file_does_not_take_a_folders_place(tmp_path):
    path = tmp_path / "results"
    fill(path, "old", as_folder=True)
    with pytest.raises(IsADirectoryError, match="is a folder"), written(path) as new:
        fill(new, "new", as_folder=False)
    assert content(path) == "old"


def test_names_of_others_are_left_alone(tmp_path):
    for name in ("cells.new.h5ad", "cells.h5ad.new", "cells.old.h5ad"):
        (tmp_path / name).write_text(name)
    with written(tmp_path / "cells.h5ad") as new:
        new.write_text("new")
    assert (tmp_path / "cells.new.h5ad").read_text() == "cells.new.h5ad"
    assert len(list(tmp_path.iterdir())) == 4


def test_what_a_killed_process_left_is_taken_up(tmp_path):
    path = tmp_path / "result.zarr"
    fill(unfinished(path), "half", as_folder=True)
    fill(tmp_path / ".result.nichekd-old.zarr", "old", as_folder=True)  # killed between two renames
    with pytest.raises(RuntimeError), written(path):
        raise RuntimeError
    assert content(path) == "old"
    with written(path) as new:
        fill(new, "new", as_folder=True)
    assert [one.name for one in tmp_path.iterdir()] == ["result.zarr"]


def test_one_at_a_time(tmp_path):
    with held(tmp_path / "lock", RuntimeError("busy")):
        with pytest.raises(RuntimeError, match="busy"), held(tmp_path / "lock", RuntimeError("busy")):
            pass
    with held(tmp_path / "lock", RuntimeError("busy")):
        pass

from __future__ import annotations

from nichekd.tl import FitSettings, GeneAwareSettings


def test_large_sections_need_fewer_passes_of_larger_steps():
    small, large = FitSettings().pace(5_000), FitSettings().pace(50_000)
    assert small[0] > large[0]
    assert small[1] < large[1]


def test_what_is_asked_for_is_done():
    assert FitSettings(max_epochs=3).pace(50_000) == (3, FitSettings().pace(50_000)[1])
    assert FitSettings(batch_size=7).pace(50) == (FitSettings().pace(50)[0], 7)


def test_an_encoder_of_many_cells_trains_longer():
    settings = GeneAwareSettings()
    assert (settings.n_epochs(5_000), settings.n_epochs(30_000)) == (8, 10)
    assert GeneAwareSettings(max_epochs=3).n_epochs(30_000) == 3

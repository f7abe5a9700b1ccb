"""The main job, whole, on the section that ships with the package: what ``nichekd demo`` runs."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from nichekd._files import written
from nichekd._keys import Keys
from nichekd._seeds import check_seed
from nichekd._settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pandas as pd
    from spatialdata import SpatialData

    from nichekd.models import NicheStudent

log = logging.getLogger(__name__)

N_NICHES = (5, 10)
FROZEN = "niche_frozen_encoder"  # the paper's student, on the encoder as it comes
METHODS = (Keys.NICHE, FROZEN, Keys.niche(Keys.HISTOLOGY_NOLAN), Keys.niche(Keys.HISTOLOGY_LEIDEN))
TITLES = {Keys.NICHE: "Student, gene-aware encoder (H&E)", FROZEN: "Student, frozen encoder (H&E)"}
RESULT, STUDENT, FIGURE, TABLE = "result.zarr", "student", "niches.png", "agreement.csv"


class Step(NamedTuple):
    """A step of the demo; ``has_bar`` if the function shows its progress itself."""

    title: str
    run: Callable[[], object]
    has_bar: bool = False


def results(out: Path) -> list[Path]:
    """What :func:`run` writes."""
    return [out / name for name in (RESULT, STUDENT, FIGURE, TABLE)]


def run(
    out: Path,
    *,
    n_niches: tuple[int, ...] = N_NICHES,
    encoder: str = "efficientnet_lite0",
    seed: int = 0,
) -> pd.DataFrame:
    """Teach a student on three strips of the pancreas section, and judge it on the fourth, for each K.

    Parameters
    ----------
    out
        Folder for the results, which replace earlier ones.
    n_niches
        Each K; the last one's niches stay in the result and are drawn.
    encoder
        Of the image features.
    seed
        Of all that is fitted.

    Returns
    -------
    A row per K and method: ``K``, ``key``, ``ARI``, ``NMI``, ``n_cells``. Writes the files of :func:`results`.

    Raises
    ------
    ValueError
        If a K is given twice, or is none.
    """
    from nichekd.tl._inputs import check_n_niches

    check_seed(seed)
    if len(set(n_niches)) < len(n_niches):
        raise ValueError(f"K={list(n_niches)} has one number twice; each is run once.")
    chain = _Chain(out, encoder=encoder, seed=seed)
    for K in n_niches:
        check_n_niches(K, chain.sdata["table"].n_obs)  # now, not after minutes of encoding
    steps = [*chain.features(), *(step for K in n_niches for step in chain.niches(K)), *chain.write()]
    for number, step in enumerate(steps, 1):
        log.info("[%d/%d] %s", number, len(steps), step.title)
        _with_bar(step)
    return chain.table


def _with_bar(step: Step) -> None:
    from tqdm.auto import tqdm

    with tqdm(total=1, desc=step.title, unit="step", disable=step.has_bar or not settings.progress) as bar:
        step.run()
        bar.update()


class _Chain:
    """The calls of the demo, in order; each is one a user would make."""

    def __init__(self, out: Path, *, encoder: str, seed: int) -> None:
        from nichekd import datasets

        self.out, self.encoder, self.seed = out, encoder, seed
        self.sdata: SpatialData = datasets.pancreas()
        self.student: NicheStudent | None = None
        self.tables: list[pd.DataFrame] = []

    @property
    def table(self) -> pd.DataFrame:
        """Agreement of all methods with the teacher, for all K."""
        import pandas as pd

        return pd.concat(self.tables, ignore_index=True)

    def features(self) -> Iterator[Step]:
        """All that does not depend on K."""
        from nichekd import pp

        yield Step("Training strips and a test strip", partial(pp.split, self.sdata))
        yield Step(
            "Image features of each cell",
            partial(pp.histology_features, self.sdata, encoder=self.encoder),
            has_bar=True,
        )
        yield Step(
            "Expression features of each cell",
            partial(pp.expression_features, self.sdata, seed=self.seed),
            has_bar=True,
        )
        yield Step("Neighborhoods", partial(pp.neighborhoods, self.sdata))
        yield Step("Encoder that has seen genes", self.train_encoder, has_bar=True)

    def niches(self, K: int) -> Iterator[Step]:
        """Teacher, student and baselines with K niches, and how they agree."""
        from nichekd import tl

        seed = self.seed
        yield Step(f"Teacher, from expression, K={K}", partial(tl.nolan, self.sdata, K, seed=seed), has_bar=True)
        yield Step(f"Student, from H&E, K={K}", partial(self.distill, K), has_bar=True)
        frozen: dict[str, Any] = {"use_rep": Keys.features(self.encoder), "seed": seed}
        yield Step(
            f"Student on the frozen encoder, K={K}",
            partial(tl.distill, self.sdata, K, key_added=FROZEN, **frozen),
            has_bar=True,
        )
        yield Step(f"Baseline: NOLAN on H&E, K={K}", partial(tl.histology_nolan, self.sdata, K, **frozen), has_bar=True)
        yield Step(f"Baseline: Leiden on H&E, K={K}", partial(tl.histology_leiden, self.sdata, K, **frozen))
        yield Step(f"Agreement on the test strip, K={K}", partial(self.judge, K))

    def write(self) -> Iterator[Step]:
        """The files."""
        yield Step("Figure", self.draw)
        yield Step("Files", self.save)

    def train_encoder(self) -> None:
        """Image features of an encoder trained on the training cells' expression, from the frozen one's weights."""
        from nichekd import pp, tl

        start = self.encoder if self.encoder == "efficientnet_lite0" else "small_cnn"
        encoder = tl.gene_aware_encoder(self.sdata, encoder=start, seed=self.seed)
        pp.histology_features(self.sdata, encoder=encoder)

    def distill(self, K: int) -> None:
        """Keep the student, for :meth:`save`."""
        from nichekd import tl

        self.student = tl.distill(self.sdata, K, seed=self.seed)

    def judge(self, K: int) -> None:
        """Match the baselines' niches to the teacher's, and add K's rows to the table."""
        from nichekd import tl

        for key in METHODS[2:]:  # the students' niches are the teacher's by name
            tl.match_niches(self.sdata, key=key)
        table = tl.agreement(self.sdata, keys=METHODS)
        table.insert(0, "K", K)
        self.tables.append(table)

    def draw(self) -> None:
        """niches.png."""
        import matplotlib.pyplot as plt

        from nichekd import pl

        self.out.mkdir(parents=True, exist_ok=True)
        keys = [Keys.niche(Keys.TEACHER), *METHODS]
        plt.close(pl.niches(self.sdata, keys=keys, titles=TITLES, save=self.out / FIGURE))

    def save(self) -> None:
        """result.zarr, student/ and agreement.csv; those of an earlier run go when the new ones are whole."""
        with written(self.out / RESULT) as new:
            self.sdata.write(new)
        if self.student is not None:
            with written(self.out / STUDENT) as new:
                self.student.save(new)
        self.table.to_csv(self.out / TABLE, index=False)

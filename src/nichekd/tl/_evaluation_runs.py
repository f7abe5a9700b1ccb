"""The runs of an evaluation on one data set."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from tqdm.auto import tqdm

from nichekd._keys import Keys, Split
from nichekd._labels import REFERENCE, labels_of, subset_mask
from nichekd._record import notes
from nichekd._resolve import get_table, split_of
from nichekd._sections import recorded_library
from nichekd._settings import settings
from nichekd.pp._counts import has_counts
from nichekd.tl._evaluation_folder import TEACHER, EvaluationFolder
from nichekd.tl._evaluation_methods import (
    FROZEN,
    SHUFFLED,
    Run,
    teach,
    timed,
)
from nichekd.tl._evaluation_table import SOFT, label_columns, scores, soft_answer, teacher_probe
from nichekd.tl._inputs import check_n_niches, features_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nichekd.tl._evaluation_methods import Method
    from nichekd.tl._evaluation_plan import Plan

log = logging.getLogger(__name__)

SHUFFLED_REP = "X_shuffled"
N_MARKERS = 5


class Evaluation:
    """Methods, K and seeds on one data set.

    Parameters
    ----------
    data
        Cells.
    methods
        To be compared.
    plan
        What is to be done.
    """

    def __init__(self, data: Any, methods: Sequence[Method], plan: Plan) -> None:
        self.data, self.methods, self.plan = data, methods, plan
        self.adata = get_table(data, plan.table_key)

    def check(self) -> None:
        """What would otherwise fail after hours; splits the tissue where it is not."""
        from nichekd import pp
        from nichekd.pp._alignment_qc import warn_if_misaligned
        from nichekd.tl._pathology_probe import check_annotated

        if self.plan.split_key == Keys.SPLIT and self.plan.split_key not in self.adata.obs:
            log.info("no split yet: four strips, the second is test")
            pp.split(self.data, table_key=self.plan.table_key)
        n_train = int((split_of(self.adata, self.plan.split_key) == Split.TRAIN).sum())
        for n_niches in self.plan.K:
            check_n_niches(n_niches, n_train)
        self._check_columns()
        if self.plan.cell_type_key is not None and self.plan.n_permutations < 1:
            raise ValueError(f"n_permutations={self.plan.n_permutations}; it has to be at least 1.")
        test = subset_mask(self.adata, Split.TEST, split_key=self.plan.split_key)
        if self.plan.cell_type_key is not None:
            types = labels_of(self.adata, self.plan.cell_type_key, run="your cell typing")
            if not (types.codes[test] >= 0).any():
                raise ValueError(
                    f"obs[{self.plan.cell_type_key!r}] names the type of no test cell. Name another column."
                )
        if self.plan.annotation_key is not None:
            check_annotated(self.adata, self.plan.annotation_key, subset=Split.TEST, split_key=self.plan.split_key)
        warn_if_misaligned(self.data, table_key=self.plan.table_key)

    def _check_columns(self) -> None:
        """What is judged by must not be among the columns that the runs write."""
        written = {Keys.niche(Keys.TEACHER), *(method.key for method in self.methods)}
        for name, key in (("cell_type_key", self.plan.cell_type_key), ("annotation_key", self.plan.annotation_key)):
            if key in written:
                raise ValueError(
                    f"{name}={key!r} is a column that the evaluation writes itself. Rename yours: "
                    f"adata.obs['pathology'] = adata.obs.pop({key!r})."
                )

    def run(self, folder: EvaluationFolder, reps: Mapping[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Scores of each K, seed and method, and the niches of each teacher."""
        rows, teachers = [], []
        todo = [(n_niches, seed) for n_niches in self.plan.K for seed in self.plan.seeds]
        bar = tqdm(
            total=len(todo) * (1 + len(self.methods)), desc="evaluate", unit="run", disable=not settings.progress
        )
        for n_niches, seed in todo:
            name = f"K{n_niches}_seed{seed}"
            table = self._scratch(reps, seed)
            run = Run(
                table, n_niches, seed, dict(reps) | {SHUFFLED: SHUFFLED_REP},
                {"split_key": self.plan.split_key, "device": self.plan.device}, self.plan.fit, self.plan.nolan_fit,
                self.plan.n_teachers,
            )  # fmt: skip
            self._teach(folder, name, run)
            bar.update()
            about = {"K": n_niches, "seed": seed}
            teachers.append(self._summary(table, about))
            if self.plan.annotation_key is not None:
                probe = teacher_probe(table, annotation_key=self.plan.annotation_key, split_key=self.plan.split_key)
                rows.append(about | probe)
            for method in self.methods:
                bar.set_postfix_str(f"{method.key}, K={n_niches}, seed {seed}")
                rows.append(about | self._scored(folder, name, method, run))
                bar.update()
        bar.close()
        return pd.DataFrame(rows), pd.concat(teachers, ignore_index=True)

    def _scored(self, folder: EvaluationFolder, name: str, method: Method, run: Run) -> dict[str, Any]:
        """A method's scores on test; it runs only if it is not finished."""
        if not folder.has(name, method.key):
            outcome = timed(method, run)
            folder.keep(
                name, method.key, labels=outcome.labels, proba=outcome.proba, calibrated=outcome.calibrated,
                seconds=outcome.seconds,
            )  # fmt: skip
        return scores(
            run.adata, method, folder.outcome(name, method.key), cell_type_key=self.plan.cell_type_key,
            annotation_key=self.plan.annotation_key, n_permutations=self.plan.n_permutations, split_key=self.plan.split_key,
        )  # fmt: skip

    def _teach(self, folder: EvaluationFolder, name: str, run: Run) -> None:
        """The teacher's logits and niches, on the scratch table."""
        from nichekd.tl._write_niches import write_labels

        table = run.adata
        if not folder.has(name, TEACHER):
            teach(run, run.seed)
            folder.keep(name, TEACHER, logits=table.obsm[Keys.logits(Keys.TEACHER)])
        logits = folder.arrays(name, TEACHER)["logits"]
        table.obsm[Keys.logits(Keys.TEACHER)] = logits
        write_labels(table, REFERENCE, logits.argmax(1), n_niches=run.n_niches)
        table.obsm[SOFT] = soft_answer(table, split_key=self.plan.split_key)

    def _scratch(self, reps: Mapping[str, str], seed: int) -> AnnData:
        """A table that shares features and graphs with the user's, and nothing else: runs leave no trace there."""
        kept = label_columns(self.adata, self.plan.cell_type_key, self.plan.annotation_key)
        sections = filter(None, [recorded_library(self.adata)])
        table = AnnData(obs=self.adata.obs[[*dict.fromkeys([self.plan.split_key, *kept, *sections])]].copy())
        for key in (Keys.SPATIAL, *reps.values()):
            table.obsm[key] = self.adata.obsm[key]
        if any(method.rep == SHUFFLED for method in self.methods):
            order = np.random.default_rng(seed).permutation(self.adata.n_obs)
            table.obsm[SHUFFLED_REP] = np.asarray(features_of(self.adata, reps[FROZEN], run="…"))[order]
        for key in (Keys.CONNECTIVITIES, Keys.DISTANCES):
            if key in self.adata.obsp:
                table.obsp[key] = self.adata.obsp[key]
        table.uns[Keys.UNS] = copy.deepcopy(dict(notes(self.adata)))
        return table

    def _summary(self, table: AnnData, about: dict[str, int]) -> pd.DataFrame:
        """The niches of this teacher; markers where the counts are at hand."""
        from nichekd.tl._niche_summary import niche_summary

        whole = self.adata
        shown = AnnData(X=whole.X, obs=table.obs, var=whole.var[[]], obsp=dict(table.obsp))
        with_counts = has_counts(whole)
        if not with_counts:
            log.warning("X holds no counts: no marker genes of the teacher's niches")
        summary = niche_summary(shown, cell_type_key=self.plan.cell_type_key, n_markers=N_MARKERS if with_counts else 0)
        return summary.assign(**about, usage_entropy=summary.attrs["usage_entropy"])

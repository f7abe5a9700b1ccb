"""The runs of an evaluation on one data set."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pandas as pd
from anndata import AnnData
from tqdm.auto import tqdm

from nichekd._keys import Keys
from nichekd._labels import REFERENCE
from nichekd._resolve import get_table
from nichekd._settings import settings
from nichekd.pp._counts import has_counts
from nichekd.tl._evaluation_folder import TEACHER, EvaluationFolder, run_name
from nichekd.tl._evaluation_methods import METHODS, SHUFFLED, Run, teach, timed
from nichekd.tl._evaluation_scratch import ANNOTATION, CELL_TYPES, scratch_rep, scratch_table
from nichekd.tl._evaluation_table import SOFT, scores, soft_answer, teacher_probe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nichekd.tl._evaluation_methods import Method
    from nichekd.tl._evaluation_plan import Plan

log = logging.getLogger(__name__)

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
        self._shuffles = any(method.rep == SHUFFLED for method in methods)

    def run(self, folder: EvaluationFolder, reps: Mapping[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Scores of each K, seed and method, and the niches of each teacher; last those that were not asked for now."""
        rows, teachers = [], []
        todo = self._todo(folder)
        total = sum(1 + len(methods) for methods in todo.values())
        bar = tqdm(total=total, desc="evaluate", unit="run", disable=not settings.progress)
        for (n_niches, seed), methods in todo.items():
            name = run_name(n_niches, seed)
            table = scratch_table(self.adata, self.plan, reps, shuffled=seed if self._shuffles else None)
            run = Run(
                table, n_niches, seed, {kind: scratch_rep(kind) for kind in (*reps, SHUFFLED)},
                {"split_key": Keys.SPLIT, "device": self.plan.device}, self.plan.fit, self.plan.nolan_fit,
                self.plan.n_teachers,
            )  # fmt: skip
            self._teach(folder, name, run)
            bar.update()
            about = {"K": n_niches, "seed": seed}
            teachers.append(self._summary(table, about))
            if ANNOTATION in table.obs:
                rows.append(about | teacher_probe(table))
            for method in methods:
                bar.set_postfix_str(f"{method.key}, K={n_niches}, seed {seed}")
                rows.append(about | self._scored(folder, name, method, run))
                bar.update()
        bar.close()
        return pd.DataFrame(rows), pd.concat(teachers, ignore_index=True)

    def _todo(self, folder: EvaluationFolder) -> dict[tuple[int, int], list[Method]]:
        """Methods of each K and seed: what is asked for, and what else is finished, which is judged along with it."""
        todo = {(n_niches, seed): list(self.methods) for n_niches in self.plan.K for seed in self.plan.seeds}
        for run, keys in folder.finished().items():
            methods = todo.setdefault(run, [])
            methods += [METHODS[key] for key in keys if key in METHODS and METHODS[key] not in methods]
        return todo

    def _scored(self, folder: EvaluationFolder, name: str, method: Method, run: Run) -> dict[str, Any]:
        """A method's scores on test; it runs only if it is not finished."""
        if not folder.has(name, method.key):
            outcome = timed(method, run)
            folder.keep(
                name, method.key, labels=outcome.labels, proba=outcome.proba, calibrated=outcome.calibrated,
                seconds=outcome.seconds,
            )  # fmt: skip
        kept = folder.outcome(name, method.key, n_cells=run.adata.n_obs, n_niches=run.n_niches)
        return scores(run.adata, method, kept, n_permutations=self.plan.n_permutations)

    def _teach(self, folder: EvaluationFolder, name: str, run: Run) -> None:
        """The teacher's logits and niches, on the scratch table."""
        from nichekd.tl._write_niches import write_labels

        table = run.adata
        if not folder.has(name, TEACHER):
            teach(run, run.seed)
            folder.keep(name, TEACHER, logits=table.obsm[Keys.logits(Keys.TEACHER)])
        logits = folder.arrays(name, TEACHER, {"logits": (table.n_obs, run.n_niches)})["logits"]
        table.obsm[Keys.logits(Keys.TEACHER)] = logits
        write_labels(table, REFERENCE, logits.argmax(1), n_niches=run.n_niches)
        table.obsm[SOFT] = soft_answer(table)

    def _summary(self, table: AnnData, about: dict[str, int]) -> pd.DataFrame:
        """The niches of this teacher; markers where the counts are at hand."""
        from nichekd.tl._niche_summary import niche_summary

        whole = self.adata
        shown = AnnData(X=whole.X, obs=table.obs, var=whole.var[[]], obsp=dict(table.obsp))
        with_counts = has_counts(whole)
        if not with_counts:
            log.warning("X holds no counts: no marker genes of the teacher's niches")
        types = CELL_TYPES if CELL_TYPES in table.obs else None
        summary = niche_summary(shown, cell_type_key=types, n_markers=N_MARKERS if with_counts else 0)
        return summary.assign(**about, usage_entropy=summary.attrs["usage_entropy"])

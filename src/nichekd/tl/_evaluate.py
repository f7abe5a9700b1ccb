from __future__ import annotations

import logging
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from nichekd._keys import Keys
from nichekd._record import record
from nichekd._resolve import get_table
from nichekd._seeds import check_seed
from nichekd.tl._evaluation_data import MEAN, Datasets, as_datasets
from nichekd.tl._evaluation_folder import EvaluationFolder
from nichekd.tl._evaluation_methods import chosen_methods
from nichekd.tl._evaluation_plan import Plan
from nichekd.tl._evaluation_table import Tables, averaged, write_tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spatialdata import SpatialData

    from nichekd.models import LoraSettings, NolanSettings
    from nichekd.tl._fit_settings import FitSettings
    from nichekd.tl._gene_aware_fit import GeneAwareSettings

log = logging.getLogger(__name__)


def evaluate(
    data: AnnData | SpatialData | Datasets,
    *,
    K: int | Sequence[int] = (10, 20),
    seeds: int | Sequence[int] = (0, 1, 2),
    cell_type_key: str | None = None,
    annotation_key: str | None = None,
    use_rep: str | None = None,
    encoder: str | None = None,
    weights: str | Path | None = None,
    methods: Sequence[str] | None = None,
    gene_aware: str = "efficientnet_lite0",
    gene_aware_weights: str | Path | None = None,
    gene_aware_lora: LoraSettings | None = None,
    gene_aware_fit: GeneAwareSettings | None = None,
    n_teachers: int = 1,
    fit: FitSettings | None = None,
    nolan_fit: NolanSettings | None = None,
    n_permutations: int = 10_000,
    out: str | Path | None = None,
    split_key: str = Keys.SPLIT,
    device: str | None = None,
    table_key: str = "table",
) -> pd.DataFrame:
    r"""The paper's experiment on one data set, or on many: student, baselines, floors and ceiling, judged on test.

    Everything is fitted on the training strips: with each seed and K a teacher, the students of it, and the baselines;
    and once, with the first seed, what they read (scVI, the gene-aware encoder). What is missing is made first:
    the split into four strips, image features, expression features, neighborhoods. What is there is taken.

    Parameters
    ----------
    data
        Cells with counts, centres, and an H&E image or image features. Or many data sets: a mapping from names to
        these, to paths, or to functions that return one, a sequence of paths, or a folder with ``NAME.zarr``, or
        ``NAME.h5ad`` beside an image of the same name; they are read one at a time.
    K
        Numbers of niches.
    seeds
        Of teachers, students and baselines.
    cell_type_key
        Column of ``obs`` with cell types, for the composition divergence; none without.
    annotation_key
        Column of ``obs`` with a pathologist's annotation, for the probe; none without.
    use_rep
        ``obsm`` key of the frozen encoder's features; default: those of ``encoder``.
    encoder, weights
        Frozen encoder and its weights, see :func:`nichekd.pp.histology_features`; default: that of the features written
        last, or ``nk.settings.encoder``.
    methods
        Keys of the rows wanted, in this order. Default all of the first four groups:

        - ``niche``, the student on frozen features, and ``niche_gene_aware``, on those of
          :func:`nichekd.tl.gene_aware_encoder`;
        - baselines ``niche_histology_nolan``, ``niche_histology_leiden``, and on gene-aware features
          ``niche_gene_aware_nolan``, ``niche_gene_aware_leiden``;
        - floors: the student on colour statistics (``niche_color``), on an encoder of random weights
          (``niche_random_encoder``), on features permuted among cells (``niche_shuffled``);
        - ceilings: the student on the expression itself (``niche_expression``), and another seed's teacher
          (``niche_teacher_other_seed``);
        - ablations of the student on frozen features: ``niche_own_crop``, ``niche_no_position``,
          ``niche_hard_labels``, ``niche_transformer``.
    gene_aware, gene_aware_weights, gene_aware_lora, gene_aware_fit
        Where the gene-aware encoder starts, its weights file, adapters in a ViT in place of the whole network, and
        training settings: ``encoder``, ``weights``, ``lora`` and ``fit`` of :func:`nichekd.tl.gene_aware_encoder`.
    n_teachers
        Seeds whose consensus a teacher is, ``n_seeds`` of :func:`nichekd.tl.nolan`.
    fit, nolan_fit
        Training settings of the students, and of teachers and their histology baseline.
    n_permutations
        Of the composition divergence's p-value.
    out
        Folder for finished runs and tables: the same call goes on where an interrupted one stopped, and a call with
        more methods, K or seeds adds to it. With many data sets each has a folder of its own in it.
    split_key
        Column of ``obs`` with the split.
    device
        Fabric's accelerator; default ``nk.settings.device``.
    table_key
        Table of a ``SpatialData``.

    Returns
    -------
    A row per K and method: ``key``, ``role`` (``"method"``, ``"baseline"``, ``"floor"``, ``"ceiling"``, ``"ablation"``;
    ``"reference"`` is the teacher, which the probe alone can judge), and as mean and standard deviation
    (``<score>_sd``) over seeds ``ARI``, ``NMI``, ``JSD``, ``macro_f1``, and of students ``KL``, the divergence of the
    teacher's soft answer from theirs in nats, ``ECE``, ``Brier`` and the latter two ``_calibrated``; ``p_value``, the
    largest of the seeds; ``n_matched`` and ``n_unmatched``, ``seconds``, ``n_cells``, ``n_seeds``. With many data sets
    a row per ``dataset``, and of ``dataset="mean"`` mean and standard deviation over data sets. Writes features and
    split to ``data`` where they were missing, ``uns["nichekd"]["evaluate"]``, and to ``out`` this table,
    ``evaluation.csv``, and its parts ``agreement.csv``, ``composition.csv``, ``probe.csv`` and ``calibration.csv``; the
    scores of each seed, ``runs.csv``; and what the niches of each teacher are, ``teachers.csv``, see
    :func:`nichekd.tl.niche_summary`.

    Raises
    ------
    KeyError
        If a column or table is missing.
    ValueError
        If a K, seed or method is given twice, none is, or one is impossible; if no annotated cell is in the test
        strip; or if ``out`` holds results of another data set or of other features.
    RuntimeError
        If another process writes to ``out``.
    """
    seeds = distinct(seeds, "seeds")
    for seed in seeds:
        check_seed(seed, "seeds")
    plan = Plan(
        K=distinct(K, "K"), seeds=seeds, cell_type_key=cell_type_key, annotation_key=annotation_key,
        use_rep=use_rep, encoder=encoder, weights=weights, methods=methods, gene_aware=gene_aware,
        gene_aware_weights=gene_aware_weights, gene_aware_lora=gene_aware_lora, gene_aware_fit=gene_aware_fit,
        n_teachers=n_teachers, fit=fit, nolan_fit=nolan_fit, n_permutations=n_permutations, split_key=split_key,
        device=device, table_key=table_key,
    )  # fmt: skip
    folder = None if out is None else Path(out)
    datasets = as_datasets(data)
    return _evaluate_one(data, plan, folder).means if datasets is None else _evaluate_many(datasets, plan, folder)


def _evaluate_many(datasets: Mapping[str, Any], plan: Plan, out: Path | None) -> pd.DataFrame:
    """One after the other, then mean and standard deviation over them."""
    found = []
    for name, load in datasets.items():
        log.info("data set %s", name)
        try:
            tables = _evaluate_one(load(), plan, None if out is None else out / name)
        except Exception as err:
            if type(err) not in (KeyError, ValueError, TypeError, OSError, FileNotFoundError):
                err.add_note(f"In data set {name!r}.")
                raise
            message = err.args[0] if err.args else ""
            raise type(err)(f"Data set {name!r}: {message}") from err
        found.append(Tables(*(table.assign(dataset=name) for table in tables)))
    each, runs, teachers = (pd.concat(tables, ignore_index=True) for tables in zip(*found, strict=True))
    mean = averaged(each.drop(columns=[name for name in each if str(name).endswith("_sd")]), over="datasets")
    table = pd.concat([each, mean.assign(dataset=MEAN)], ignore_index=True)
    table.insert(0, "dataset", table.pop("dataset"))
    tables = Tables(table, runs, teachers)
    if out is not None:
        write_tables(tables, out)
    return table


def _evaluate_one(data: Any, plan: Plan, out: Path | None) -> Tables:
    from nichekd.tl._evaluation_features import prepare_features
    from nichekd.tl._evaluation_runs import Evaluation

    started = perf_counter()
    adata = get_table(data, plan.table_key)
    methods = chosen_methods(plan.methods, has_image=not isinstance(data, AnnData))
    evaluation = Evaluation(data, methods, plan)
    evaluation.check()
    folder = EvaluationFolder(out)
    with folder.writing():
        reps = prepare_features(evaluation, folder)
        runs, teachers = evaluation.run(folder, reps)
        tables = Tables(averaged(runs, over="seeds"), runs, teachers)
        if out is not None:
            write_tables(tables, out)
    record(
        adata, "evaluate", seconds=perf_counter() - started, K=plan.K, seeds=plan.seeds,
        methods=[method.key for method in methods],
    )  # fmt: skip
    return tables


def distinct(values: int | Sequence[int], name: str) -> tuple[int, ...]:
    """As a tuple of whole numbers, each once.

    Raises
    ------
    TypeError
        If one is no whole number.
    ValueError
        If there is none, or one twice.
    """
    found = (values,) if isinstance(values, (int, np.integer)) else tuple(values)
    if any(isinstance(value, bool) or not isinstance(value, (int, np.integer)) for value in found):
        raise TypeError(f"{name}={list(found)}; they have to be whole numbers, e.g. {name}=(0, 1).")
    if not found or len(set(found)) < len(found):
        raise ValueError(f"{name}={list(found)}: name at least one, each once.")
    return tuple(map(int, found))

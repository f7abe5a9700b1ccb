from __future__ import annotations

import logging
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from nichekd._image import has_image
from nichekd._keys import Keys
from nichekd._labels import REFERENCE
from nichekd._record import record
from nichekd._resolve import get_table
from nichekd.tl._evaluation_arguments import check_arguments, distinct
from nichekd.tl._evaluation_data import MEAN, Datasets, as_datasets
from nichekd.tl._evaluation_folder import EvaluationFolder, check_many
from nichekd.tl._evaluation_methods import EXPRESSION, chosen_methods
from nichekd.tl._evaluation_plan import Plan
from nichekd.tl._evaluation_table import Tables, averaged, part_of, tables_of, write_tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
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
        Frozen encoder, in place of ``use_rep``, and its weights, see :func:`nichekd.pp.histology_features`; default:
        that of the features written last, or ``nk.settings.encoder``.
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
        other methods, K or seeds adds to it; its tables hold all that is finished, the one returned what was asked for.
        With many data sets each has a folder of its own in it.
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
    split to ``data`` where they were missing (what ``use_rep=None`` means stays what it was), ``uns["nichekd"]["evaluate"]``, and to ``out`` this table,
    ``evaluation.csv``, and its parts ``agreement.csv``, ``composition.csv``, ``probe.csv`` and ``calibration.csv``; the
    scores of each seed, ``runs.csv``; and what the niches of each teacher are, ``teachers.csv``, see
    :func:`nichekd.tl.niche_summary`.

    Raises
    ------
    KeyError
        If a column, a table or named features are missing.
    TypeError
        If an argument is of the wrong kind; or if features are missing, and there is no image.
    ValueError
        If a K, seed or method is given twice, none is, or one is impossible; if arguments contradict each other; if
        there is no test cell, or none with a type or an annotation; if a data set is damaged; or if ``out`` holds
        results of another data set, of other features, or files of something else.
    FileNotFoundError
        If there is no such data set, or ``weights`` or ``gene_aware_weights`` are no file.
    RuntimeError
        If another process writes to ``out``.

    Warns
    -----
    UserWarning
        If there are fewer than five test cells per niche.
    """
    methods = None if methods is None else [method.key for method in chosen_methods(methods, has_image=True)]
    plan = Plan(
        K=distinct(K, "K"), seeds=distinct(seeds, "seeds"), cell_type_key=cell_type_key, annotation_key=annotation_key,
        use_rep=use_rep, encoder=encoder, weights=weights, methods=methods, gene_aware=gene_aware,
        gene_aware_weights=gene_aware_weights, gene_aware_lora=gene_aware_lora, gene_aware_fit=gene_aware_fit,
        n_teachers=n_teachers, fit=fit, nolan_fit=nolan_fit, n_permutations=n_permutations, split_key=split_key,
        device=device, table_key=table_key,
    )  # fmt: skip
    check_arguments(plan)
    folder = None if out is None else Path(out)
    reads_images = any(method.rep != EXPRESSION for method in chosen_methods(methods, has_image=False))
    datasets = as_datasets(data, image_features=reads_images)
    return _evaluate_one(data, plan, folder).asked.means if datasets is None else _evaluate_many(datasets, plan, folder)


class Results(NamedTuple):
    """All that the folder has finished, and the part of it that was asked for."""

    everything: Tables
    asked: Tables


def _evaluate_many(datasets: Mapping[str, Any], plan: Plan, out: Path | None) -> pd.DataFrame:
    """One after the other, then mean and standard deviation over them."""
    if out is not None:
        check_many(out)
    found: dict[str, Results] = {}
    for name, load in datasets.items():
        log.info("data set %s", name)
        try:
            results = _evaluate_one(load(), plan, None if out is None else out / name)
        except Exception as err:
            if type(err) not in (KeyError, ValueError, TypeError, OSError, FileNotFoundError):
                err.add_note(f"In data set {name!r}.")
                raise
            message = err.args[0] if isinstance(err, KeyError) and err.args else err  # a KeyError's text is its repr
            raise type(err)(f"Data set {name!r}: {message}") from err
        found[name] = results
    if out is not None:
        write_tables(_together({name: results.everything for name, results in found.items()}), out)
    return _together({name: results.asked for name, results in found.items()}).means


def _together(found: Mapping[str, Tables]) -> Tables:
    """Tables of many data sets in one, with mean and standard deviation over them."""
    named = [Tables(*(table.assign(dataset=name) for table in tables)) for name, tables in found.items()]
    each, runs, teachers = (pd.concat(tables, ignore_index=True) for tables in zip(*named, strict=True))
    mean = averaged(each.drop(columns=[name for name in each if str(name).endswith("_sd")]), over="datasets")
    table = pd.concat([each, mean.assign(dataset=MEAN)], ignore_index=True)
    table.insert(0, "dataset", table.pop("dataset"))
    return Tables(table, runs, teachers)


def _evaluate_one(data: Any, plan: Plan, out: Path | None) -> Results:
    from nichekd.tl._evaluation_checks import check_cells
    from nichekd.tl._evaluation_features import prepare_features
    from nichekd.tl._evaluation_runs import Evaluation

    started = perf_counter()
    adata = get_table(data, plan.table_key)
    methods = chosen_methods(plan.methods, has_image=has_image(data))
    check_cells(data, plan)
    evaluation = Evaluation(data, methods, plan)
    folder = EvaluationFolder(out)
    with folder.writing():
        reps = prepare_features(evaluation, folder)
        runs, teachers = evaluation.run(folder, reps)
        everything = tables_of(runs, teachers)
        if out is not None:
            write_tables(everything, out)
    record(
        adata, "evaluate", seconds=perf_counter() - started, K=plan.K, seeds=plan.seeds,
        methods=[method.key for method in methods],
    )  # fmt: skip
    keys = {REFERENCE, *(method.key for method in methods)}
    return Results(everything, tables_of(part_of(runs, plan, keys), part_of(teachers, plan)))

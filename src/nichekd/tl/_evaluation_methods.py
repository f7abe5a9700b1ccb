"""What an evaluation compares: each method labels the cells of one K and seed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nichekd._keys import Keys
from nichekd._labels import REFERENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from nichekd.models import NolanSettings
    from nichekd.tl._fit_settings import FitSettings

Role = Literal["method", "baseline", "floor", "ceiling", "ablation"]
FROZEN, GENE_AWARE, COLOR, RANDOM, SHUFFLED, EXPRESSION = (
    "frozen", "gene_aware", "color", "random", "shuffled", "expression",
)  # fmt: skip
OTHER_TEACHER = "niche_teacher_other_seed"
OTHER_SEED = 1000  # added to a seed: far from the seeds of an evaluation, which run from 0


@dataclass(frozen=True)
class Outcome:
    """What a method says of all cells.

    Attributes
    ----------
    labels
        Codes, (n,); -1 is missing.
    proba, calibrated
        Probabilities of a student, (n, K), before and after :func:`nichekd.tl.calibrate`; empty for other methods.
    seconds
        It took.
    """

    labels: NDArray[np.int16]
    proba: NDArray[np.float16] = field(default_factory=lambda: np.empty((0, 0), np.float16))
    calibrated: NDArray[np.float16] = field(default_factory=lambda: np.empty((0, 0), np.float16))
    seconds: float = 0.0


@dataclass(frozen=True)
class Run:
    """One K and one seed.

    Attributes
    ----------
    adata
        A table of its own, with the teacher, that methods may write to.
    n_niches, seed
        K and the seed.
    reps
        ``obsm`` key of each kind of features.
    options
        ``split_key``, ``device``.
    fit, nolan_fit
        Training settings of students, and of teachers and their histology baseline.
    """

    adata: AnnData
    n_niches: int
    seed: int
    reps: Mapping[str, str]
    options: Mapping[str, Any]
    fit: FitSettings | None = None
    nolan_fit: NolanSettings | None = None
    n_teachers: int = 1


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes
    ----------
    key
        Its name.
    role
        What it is there for.
    rep
        Kind of features that it reads.
    label
        Runs it.
    """

    key: str
    role: Role
    rep: str
    label: Callable[[Run, str], Outcome]


def _student(**changes: Any) -> Callable[[Run, str], Outcome]:
    """The student on some features, with changed options of :func:`nichekd.tl.distill`."""

    def label(run: Run, rep: str) -> Outcome:
        from nichekd.tl._calibrate import calibrate
        from nichekd.tl._distill import distill

        adata = run.adata
        student = distill(adata, use_rep=rep, seed=run.seed, fit=run.fit, **run.options, **changes)
        labels, proba = _in_the_teachers_niches(adata)
        if "held_out" not in adata.uns[Keys.UNS]["distill"]:
            return Outcome(labels, proba)
        calibrate(adata, student)
        return Outcome(labels, proba, calibrated=_in_the_teachers_niches(adata)[1])

    return label


def _in_the_teachers_niches(adata: AnnData) -> tuple[NDArray[np.int16], NDArray[np.float16]]:
    """The student's codes, (n,), and probabilities, (n, K), in the order of the teacher's K niches.

    A student of labels knows none of the niches that no cell has: their probability is 0.
    """
    niches = adata.obs[REFERENCE].cat.categories
    place = niches.get_indexer(adata.obs[Keys.NICHE].cat.categories)
    proba = np.zeros((adata.n_obs, len(niches)), dtype=np.float16)
    proba[:, place] = adata.obsm[Keys.STUDENT_PROBA]
    return place[_codes(adata, Keys.NICHE)].astype(np.int16), proba


def _own_crop(run: Run, rep: str) -> Outcome:
    """The student with no neighbors: its own crop is all it sees."""
    from scipy.sparse import csr_matrix

    graphs = {key: run.adata.obsp[key] for key in (Keys.CONNECTIVITIES, Keys.DISTANCES) if key in run.adata.obsp}
    try:
        for key, graph in graphs.items():
            run.adata.obsp[key] = csr_matrix(graph.shape, dtype=graph.dtype)
        return _student()(run, rep)
    finally:
        for key, graph in graphs.items():
            run.adata.obsp[key] = graph


def _histology_nolan(run: Run, rep: str) -> Outcome:
    from nichekd.tl._histology_nolan import histology_nolan

    histology_nolan(run.adata, run.n_niches, use_rep=rep, seed=run.seed, fit=run.nolan_fit, **run.options)
    return Outcome(_codes(run.adata, Keys.niche(Keys.HISTOLOGY_NOLAN)))


def _histology_leiden(run: Run, rep: str) -> Outcome:
    from nichekd.tl._histology_leiden import histology_leiden

    options = {name: value for name, value in run.options.items() if name != "device"}
    histology_leiden(run.adata, run.n_niches, use_rep=rep, seed=run.seed, **options)
    return Outcome(_codes(run.adata, Keys.niche(Keys.HISTOLOGY_LEIDEN)))


def _other_teacher(run: Run, rep: str) -> Outcome:
    teach(run, run.seed + OTHER_SEED, key_added="other", use_rep=rep)
    return Outcome(_codes(run.adata, Keys.niche("other")))


def teach(run: Run, seed: int, *, key_added: str = Keys.TEACHER, use_rep: str = Keys.SCVI) -> None:
    """Train a teacher and write its niches."""
    from nichekd.tl._nolan import nolan

    nolan(
        run.adata, run.n_niches, use_rep=use_rep, seed=seed, n_seeds=run.n_teachers, key_added=key_added,
        fit=run.nolan_fit, **run.options,
    )  # fmt: skip


def _codes(adata: AnnData, key: str) -> NDArray[np.int16]:
    return adata.obs[key].cat.codes.to_numpy().astype(np.int16)


METHODS = {
    method.key: method
    for method in (
        Method("niche", "method", FROZEN, _student()),
        Method("niche_gene_aware", "method", GENE_AWARE, _student()),
        Method("niche_histology_nolan", "baseline", FROZEN, _histology_nolan),
        Method("niche_histology_leiden", "baseline", FROZEN, _histology_leiden),
        Method("niche_gene_aware_nolan", "baseline", GENE_AWARE, _histology_nolan),
        Method("niche_gene_aware_leiden", "baseline", GENE_AWARE, _histology_leiden),
        Method("niche_color", "floor", COLOR, _student()),
        Method("niche_random_encoder", "floor", RANDOM, _student()),
        Method("niche_shuffled", "floor", SHUFFLED, _student()),
        Method("niche_expression", "ceiling", EXPRESSION, _student()),
        Method(OTHER_TEACHER, "ceiling", EXPRESSION, _other_teacher),
        Method("niche_own_crop", "ablation", FROZEN, _own_crop),
        Method("niche_no_position", "ablation", FROZEN, _student(sizes={"n_frequencies": 0})),
        Method("niche_hard_labels", "ablation", FROZEN, _student(teacher=REFERENCE)),
        Method("niche_transformer", "ablation", FROZEN, _student(preset="small")),
    )
}
DEFAULT = tuple(key for key, method in METHODS.items() if method.role != "ablation")


def chosen_methods(methods: Sequence[str] | None, *, has_image: bool) -> list[Method]:
    """The methods of these names; default: all but the ablations, on a table without an image those it has features for.

    Raises
    ------
    TypeError
        If they are no list of names.
    ValueError
        If a name is unknown or given twice, or there is none.
    """
    if methods is None:
        needs_image = {GENE_AWARE, COLOR, RANDOM}
        return [METHODS[key] for key in DEFAULT if has_image or METHODS[key].rep not in needs_image]
    if isinstance(methods, str) or not isinstance(methods, Iterable):
        raise TypeError(f"methods={methods!r} is a {type(methods).__name__}; hand in a list, e.g. methods=['niche'].")
    keys = list(methods)
    if unknown := [key for key in keys if not isinstance(key, str) or key not in METHODS]:
        raise ValueError(f"There is no method {unknown}; there are {list(METHODS)}.")
    if not keys or len(set(keys)) < len(keys):
        raise ValueError(f"methods={keys}: name at least one, each once.")
    return [METHODS[key] for key in keys]


def timed(method: Method, run: Run) -> Outcome:
    """Run the method."""
    from dataclasses import replace

    started = time.perf_counter()
    outcome = method.label(run, run.reps[method.rep])
    return replace(outcome, seconds=time.perf_counter() - started)

"""Every key nichekd reads or writes, once."""

from __future__ import annotations

import re
from typing import Any, Final

NOT_IN_A_KEY: Final = r"[^\w.\-]"


class Keys:
    """Names of slots in the cell table."""

    # obsm
    SPATIAL: Final = "spatial"  # (n, 2), cell centres, µm
    SCVI: Final = "X_scVI"
    FEATURES_PREFIX: Final = "X_"  # X_<encoder>
    # obs
    SPLIT: Final = "split"
    N_NEIGHBORS: Final = "n_neighbors"
    NICHE: Final = "niche"
    NICHE_ENTROPY: Final = "niche_entropy"
    AREA: Final = "area_um2"  # of a nucleus or a cell
    NICHE_OOD: Final = "niche_ood"  # how unlike the training tissue a cell's surroundings look
    NICHE_OOD_STAIN: Final = "niche_ood_stain"  # how unlike its stain alone is
    # obsm of the student
    STUDENT_LOGITS: Final = "student_logits"
    STUDENT_PROBA: Final = "student_proba"
    # obsm of cell-type abundances, DataFrames
    CELL_ABUNDANCE: Final = "cell_abundance"
    ABUNDANCE: Final = "abundance"  # predicted
    CUCA: Final = "X_cuca"  # its embedding
    # RankByGene and what is built on image features
    SMOOTHED: Final = "smoothed"  # layer, mean expression of a cell and its neighbors
    PREDICTED: Final = "predicted"  # layer, expression predicted from image features
    RANK_BY_GENE: Final = "X_rank_by_gene"  # obsm
    ATTENTION: Final = "attention"  # obs, share of a slide's attention, times the number of its cells
    RISK: Final = "risk"  # obs, log hazard of the slide
    # written by methods that take key_added
    TEACHER: Final = "teacher"
    HISTOLOGY_NOLAN: Final = "histology_nolan"
    HISTOLOGY_LEIDEN: Final = "histology_leiden"
    # obsp and uns, squidpy's own names
    CONNECTIVITIES: Final = "spatial_connectivities"
    DISTANCES: Final = "spatial_distances"
    SPATIAL_NEIGHBORS: Final = "spatial_neighbors"
    # uns
    UNS: Final = "nichekd"
    RADIUS: Final = "radius"  # uns["nichekd"]["radius"], float, µm
    FEATURES: Final = "features"  # uns["nichekd"]["features"], what pp.histology_features recorded
    LAST_REP: Final = "use_rep"  # uns["nichekd"]["use_rep"], image features written last
    # truth of nk.datasets.simulate
    NICHE_TRUE: Final = "niche_true"
    CELL_TYPE: Final = "cell_type"

    @staticmethod
    def logits(name: str) -> str:
        """``obsm`` key of a method's K logits: ``<name>_logits``."""
        return f"{name}_logits"

    @staticmethod
    def niche(name: str) -> str:
        """``obs`` key of a method's labels: ``niche_<name>``."""
        return f"niche_{name}"

    @staticmethod
    def student(niche: str) -> tuple[str, str, str]:
        """Keys of a student's logits, probabilities and entropy, beside its labels ``obs[niche]``."""
        name = "student" if niche == Keys.NICHE else niche.removeprefix("niche_")
        return f"{name}_logits", f"{name}_proba", f"{niche}_entropy"

    @staticmethod
    def check_writable(key: Any) -> None:
        """Refuse a ``key`` that no file can hold.

        Raises
        ------
        TypeError
            If it is no string.
        ValueError
            If it is empty, has a slash, or is a name that the file formats keep for themselves.
        """
        if not isinstance(key, str):
            raise TypeError(f"key_added={key!r} is a {type(key).__name__}; it has to be a string.")
        if "/" in key:
            raise ValueError(f"key_added={key!r}; files read a slash as a folder. Choose another, without one.")
        if key in ("", ".", "..", "_index") or key.startswith("__") or "\0" in key:
            raise ValueError(
                f"key_added={key!r} is no name that a file can hold. Choose another, of letters and digits."
            )

    @staticmethod
    def check_name(name: str, *, own: str) -> None:
        """Refuse a ``name`` of a result that another method keeps its own by, or that no file can hold.

        Parameters
        ----------
        name
            What ``obs["niche_<name>"]`` and ``obsm["<name>_logits"]`` are to be called.
        own
            The method's own name.

        Raises
        ------
        TypeError
            If it is no string.
        ValueError
            If it is another method's, or no name for a file.
        """
        Keys.check_writable(name)
        if name != own and name in OWNERS:
            raise ValueError(
                f"key_added={name!r} is kept for {OWNERS[name]}. Choose another, e.g. key_added='{own}_2'."
            )

    @staticmethod
    def check_added(key: str, *inputs: str) -> None:
        """Refuse ``key_added`` where it would replace the cells' centres, or what is read to make it.

        Raises
        ------
        TypeError
            If it is no string.
        ValueError
            If it would, or is no name for a file.
        """
        Keys.check_writable(key)
        if key == Keys.SPATIAL or key in inputs:
            holds = "the cells' centres" if key == Keys.SPATIAL else "what this is made of, or is judged by"
            raise ValueError(f"key_added={key!r} holds {holds}, which would be replaced. Name another.")

    @staticmethod
    def ood(niche: str) -> str:
        """``obs`` key of the out-of-distribution score beside a student's labels ``obs[niche]``: ``<niche>_ood``."""
        return f"{niche}_ood"

    @staticmethod
    def ood_stain(niche: str) -> str:
        """``obs`` key of the part of that score that is the stain's: ``<niche>_ood_stain``."""
        return f"{niche}_ood_stain"

    @staticmethod
    def features(encoder: str) -> str:
        """``obsm`` key of an encoder's features: ``X_<encoder>``, with ``_`` for what a key can't hold."""
        # the name of one of a hub has slashes, which are folders to zarr and HDF5
        return f"{Keys.FEATURES_PREFIX}{re.sub(NOT_IN_A_KEY, '_', encoder)}"

    @staticmethod
    def colors(obs_key: str) -> str:
        """``uns`` key of a column's palette, scanpy's own name."""
        return f"{obs_key}_colors"


#: whose the names of results are that other methods may not take
OWNERS: Final = {
    "student": "the default student of nk.tl.distill",
    Keys.TEACHER: "nk.tl.nolan",
    Keys.HISTOLOGY_NOLAN: "nk.tl.histology_nolan",
    Keys.HISTOLOGY_LEIDEN: "nk.tl.histology_leiden",
}


class Split:
    """Categories of ``obs["split"]``."""

    TRAIN: Final = "train"
    TEST: Final = "test"
    BUFFER: Final = "buffer"
    ALL: Final = (TRAIN, TEST, BUFFER)

"""One training by several processes: Lightning Fabric starts or finds them, each takes its share of every batch."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import distributed

from nichekd._keys import Keys
from nichekd._record import notes
from nichekd.tl._batches import prediction_order
from nichekd.tl._loop import new_fabric, quietly
from nichekd.tl._prediction import predict_logits

if TYPE_CHECKING:
    from anndata import AnnData
    from lightning.fabric import Fabric
    from numpy.typing import NDArray
    from torch import nn

    from nichekd.models import NeighborhoodBatch, NeighborhoodIndex

Devices = int | list[int] | str


def launched(device: str | None, devices: Devices, num_nodes: int) -> Fabric:
    """Fabric over ``devices`` of each of ``num_nodes`` machines, its processes running.

    Under ``torchrun`` or ``srun`` they run already. From a plain script the others are started here: they run the same
    script from its beginning.

    Raises
    ------
    TypeError, ValueError
        If ``devices`` or ``num_nodes`` are no numbers of devices, or others than the processes were started for.
    RuntimeError
        If there is no script that others could run, as in a notebook.
    """
    check_devices(devices, num_nodes)
    fabric = new_fabric(device, devices=devices, num_nodes=num_nodes)
    if fabric.world_size > 1:
        environment: Any = getattr(fabric.strategy, "cluster_environment", None)
        if not environment.creates_processes_externally and not _is_script():
            raise RuntimeError(
                f"devices={devices!r}, num_nodes={num_nodes} takes {fabric.world_size} processes, each of which runs "
                "the script that calls this; a notebook is none. Write the table, and distil in a script: "
                "torchrun --nproc-per-node 2 train.py."
            )
    with quietly():
        fabric.launch()
    if distributed.is_available() and distributed.is_initialized():
        there = distributed.get_world_size()
        if fabric.world_size not in {1, there}:
            raise ValueError(
                f"devices={devices!r}, num_nodes={num_nodes} makes {fabric.world_size} processes, but this script runs "
                f"in {there}. Name the same numbers in all calls of a script."
            )
    return fabric


def check_devices(devices: Devices, num_nodes: int) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless these are numbers, or a list, of devices, and of machines."""
    advice = "Give the number of devices a machine, a list of them, e.g. [0, 1], or 'auto' for all."
    if isinstance(devices, (list, tuple)):
        if not devices or len(set(devices)) < len(devices) or not all(_is_whole(d) and d >= 0 for d in devices):
            raise ValueError(f"devices={devices!r} lists no devices, each once. {advice}")
    elif devices != "auto":
        if not _is_whole(devices):
            raise TypeError(f"devices={devices!r} is no whole number. {advice}")
        if devices < 1:  # type: ignore[operator]
            raise ValueError(f"devices={devices!r}; it has to be at least 1. {advice}")
    if not _is_whole(num_nodes):
        raise TypeError(f"num_nodes={num_nodes!r} is no whole number of machines.")
    if num_nodes < 1:
        raise ValueError(f"num_nodes={num_nodes}; there is at least this machine, 1.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_script() -> bool:
    """Whether this process runs a file that another process could run, too."""
    import __main__

    is_interactive = hasattr(sys, "ps1") or bool(sys.flags.interactive)
    return hasattr(__main__, "__file__") and not is_interactive


def require_prepared(adata: AnnData, fabric: Fabric, *, use_rep: str | None, teacher: Any) -> None:
    """Raise ``ValueError`` if several processes would each make what is missing for themselves."""
    if fabric.world_size == 1:
        return
    makes_features = use_rep is None and Keys.LAST_REP not in notes(adata)
    makes_teacher = isinstance(teacher, str) and teacher == Keys.logits(Keys.TEACHER) and teacher not in adata.obsm
    missing = ["nk.pp.histology_features"] * makes_features + ["nk.tl.nolan"] * makes_teacher
    if missing:
        raise ValueError(
            f"{fabric.world_size} processes train, and each would run {' and '.join(missing)} for itself. Run "
            f"{'it' if len(missing) == 1 else 'them'} before, in one process, and write the table."
        )


def share_of(
    batch: NeighborhoodBatch, cells: NDArray[np.integer], rank: int, n_ranks: int
) -> tuple[NeighborhoodBatch, NDArray[np.integer], float]:
    """What one of ``n_ranks`` processes computes of a batch.

    Parameters
    ----------
    batch, cells
        B neighborhoods, as one process would see them, and their centres, (B,).

    Returns
    -------
    A run of the neighborhoods, over the cells that they need; their centres; and the factor by which the mean loss over
    them counts, so that its mean over the processes is the mean over the batch.

    Raises
    ------
    ValueError
        If there are fewer neighborhoods than processes.
    """
    if n_ranks == 1:
        return batch, cells, 1.0
    if len(cells) < n_ranks:
        raise ValueError(
            f"A batch of {len(cells)} cells is none for {n_ranks} processes. Raise FitSettings.batch_size."
        )
    rows = np.array_split(np.arange(len(cells)), n_ranks)[rank]
    first, last = int(rows[0]), int(rows[-1]) + 1
    mask = batch.mask[first:last]
    longest = int(mask.sum(1).max())
    needed, token = torch.unique(batch.token[first:last, :longest], return_inverse=True)
    mine = replace(
        batch,
        features=batch.features[needed],
        token=token,
        offset=batch.offset[first:last, :longest],
        mask=mask[:, :longest],
    )
    return mine, cells[first:last], len(rows) * n_ranks / len(cells)


def mean_over_all(fabric: Fabric, values: torch.Tensor) -> float:
    """Mean of ``values`` over the processes, all of which have as many."""
    mean: Any = fabric.all_reduce(values.mean(), reduce_op="mean")
    return float(mean)


def gathered(fabric: Fabric, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """``rows`` of all processes, those of the first first, the same to all."""
    if fabric.world_size == 1:
        return rows
    parts: list[Any] = [None] * fabric.world_size
    distributed.all_gather_object(parts, rows)
    return np.concatenate(parts)


def predict_together(
    fabric: Fabric,
    network: nn.Module,
    index: NeighborhoodIndex,
    features: Any,
    cells: NDArray[np.integer] | None = None,
    **options: Any,
) -> NDArray[np.float32]:
    """As :func:`nichekd.tl._prediction.predict_logits`, each process a region of the tissue; all get all logits."""
    options["device"] = fabric.device
    n_cells = len(index.xy) if cells is None else len(cells)
    if fabric.world_size == 1 or n_cells < fabric.world_size:
        return predict_logits(network, index, features, cells, **options)
    cells = np.arange(n_cells) if cells is None else cells
    order = prediction_order(index.xy[cells])
    mine = np.array_split(order, fabric.world_size)[fabric.global_rank]
    found = gathered(fabric, predict_logits(network, index, features, cells[mine], **options))
    logits = np.empty_like(found)
    logits[order] = found
    return logits

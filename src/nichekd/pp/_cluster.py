"""Blocks of cells that the workers of a dask cluster encode, each into files of its own of one store."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from nichekd.pp._cluster_work import Work, encode_block, its_version, meant_by
from nichekd.pp._crops import SEGMENT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from distributed import Client, Future

    from nichekd.models import Encoder
    from nichekd.models._precision import Precision
    from nichekd.pp._encode import Plan
    from nichekd.pp._feature_store import FeatureStore

log = logging.getLogger(__name__)

LOOK_UP = 1.0  # seconds after which to look whether the workers still have what they were sent
MOST_LOSSES = 3  # of all workers in a row, with nothing done in between
ADVICE = "Look at the workers' logs, perhaps for their memory limit; the same call goes on from there."

Span = tuple[int, int]  # segments, the second not included


@dataclass(frozen=True)
class Cluster:
    """Workers that encode in place of this process.

    Parameters
    ----------
    client
        Of their cluster.
    device
        Each worker's, by name.
    """

    client: Client
    device: str

    def precision(self, encoder: Encoder, precision: Precision) -> Precision:
        """What ``precision`` means on all the workers' devices.

        Raises
        ------
        ValueError
            If it does not mean the same to all of them.
        RuntimeError
            If a worker has another version of nichekd.
        """
        self._check_workers()
        meant = {*self.client.run(meant_by, precision, self.device, encoder.bf16_on).values()}
        if len(meant) > 1:
            raise ValueError(
                f"precision={precision!r} means {sorted(meant)} on different workers. Name one: precision='32'."
            )
        return meant.pop()

    def fill(self, plan: Plan, store: FeatureStore, made_of: Mapping[str, Any], precision: Precision) -> None:
        """Have all missing segments of ``store``, which this process holds, encoded and written.

        What a worker was at when it was lost is given to another one. If all are lost, and with them what they were
        sent, it is sent again to those that come in their place.

        Raises
        ------
        RuntimeError
            If that happens three times in a row, if one block takes down worker after worker, or if a worker has
            another version of nichekd.
        """
        from tqdm.auto import tqdm

        from nichekd._settings import settings

        work = Work.of(plan, store.path, made_of, self.device, precision)
        total, n_losses = len(store.order), 0
        done = total - _n_cells(store.missing, total)
        with tqdm(total=total, initial=done, unit="crop", desc="features", disable=not settings.progress) as bar:
            while missing := store.missing:
                for first, last in self._encoded(work, self._blocks(plan, missing)):
                    segments = list(range(first, last))
                    store.note_done(segments)
                    bar.update(_n_cells(segments, total))
                n_losses = n_losses + 1 if store.missing == missing else 0
                if n_losses == MOST_LOSSES:
                    safe = total - _n_cells(missing, total)
                    raise RuntimeError(
                        f"All workers were lost {MOST_LOSSES} times without a block done; {safe:,} cells are safe in "
                        f"{store.path}. {ADVICE}"
                    )

    def _blocks(self, plan: Plan, missing: list[int]) -> list[Span]:
        """Runs of missing segments, as long as the plan likes them, but so short that all workers have one."""
        n_workers = max(1, len(self.client.nthreads()))
        longest = max(1, min(-(-plan.block_cells // SEGMENT), -(-len(missing) // n_workers)))
        runs = np.split(missing, np.flatnonzero(np.diff(missing) != 1) + 1)
        return [
            (int(run[i]), int(run[min(i + longest, len(run)) - 1]) + 1)
            for run in runs
            for i in range(0, len(run), longest)
        ]

    def _encoded(self, work: Work, blocks: list[Span]) -> Iterator[Span]:
        """Blocks as they get done; ends early if what the workers were sent is lost with the last of them."""
        self._check_workers()
        log.info("sending %.1f MB to %d workers", len(work.sent) / 1e6, len(self.client.nthreads()))
        sent = self.client.scatter(work, broadcast=True, hash=False)
        over: SimpleQueue[Future] = SimpleQueue()
        futures = {self.client.submit(encode_block, sent, *block, pure=False): block for block in blocks}
        for future in futures:
            future.add_done_callback(over.put)
        try:
            while futures and sent.status == "finished":
                for future in _drain(over):
                    span = futures.pop(future)
                    if _is_done(future):
                        yield span
        finally:
            self.client.cancel([*futures, sent])

    def _check_workers(self) -> None:
        """Wait for one; raise ``RuntimeError`` if any has another version of nichekd."""
        if not self.client.nthreads():
            log.warning("the cluster has no worker yet; waiting for the first")
            self.client.wait_for_workers(1)
        versions = {*self.client.run(its_version).values()}
        if versions != {version("nichekd")}:
            raise RuntimeError(
                f"The workers have nichekd {sorted(versions)}, this process has {version('nichekd')}. Install the same "
                "on all."
            )


def require_client(client: Any, store: str | Path | None) -> Client:
    """``client``, found fit for :class:`Cluster`.

    Raises
    ------
    TypeError
        If it is no client, or one whose answers have to be awaited.
    ValueError
        If there is no ``store`` that workers could write to.
    """
    from distributed import Client

    if not isinstance(client, Client):
        raise TypeError(
            f"client is a {type(client).__name__}; it has to be a dask.distributed.Client. Make one of a cluster or of "
            "its scheduler's address: dask.distributed.Client(cluster)."
        )
    if client.asynchronous:
        raise TypeError("client is asynchronous, and this call waits. Hand in dask.distributed.Client(address).")
    if store is None:
        raise ValueError(
            "client= needs store=, a folder that all workers see: they write their features there. Name one."
        )
    return client


def _is_done(future: Future) -> bool:
    """Whether a block was done; raises what its worker raised, is false for one that was given up with its cluster."""
    from distributed import KilledWorker

    if future.status == "error":
        try:
            future.result()
        except KilledWorker as err:
            raise RuntimeError(
                f"One block of cells took down {err.allowed_failures + 1} workers, one after the other. What was done "
                f"before is safe. {ADVICE}"
            ) from err
    return future.status == "finished"


def _drain(queue: SimpleQueue[Future]) -> Iterator[Future]:
    """All that is in the queue; waits :data:`LOOK_UP` for the first."""
    with suppress(Empty):
        yield queue.get(timeout=LOOK_UP)
        while True:
            yield queue.get_nowait()


def _n_cells(segments: list[int], total: int) -> int:
    return sum(min((segment + 1) * SEGMENT, total) - segment * SEGMENT for segment in segments)

"""What a worker of a dask cluster runs: it opens what it was sent, encodes a block, and writes it to the store."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from threading import Lock
from typing import TYPE_CHECKING, Any

from nichekd.pp._crops import SEGMENT
from nichekd.pp._feature_store import FeatureStore
from nichekd.pp._store_segments import by_segment, write_segment

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from nichekd.models._precision import Precision
    from nichekd.pp._encode import Plan

_OPENING = Lock()  # a worker may have several threads, and one encoder does for all


@dataclass(eq=False)
class Work:
    """How cells are encoded, and where to.

    What is sent stays bytes until a task asks for it: an image or a module that a worker can't open is then an error
    of that task, which reaches the user, and not one of the connection between workers, which does not.
    """

    sent: bytes
    path: Path
    made_of: dict[str, Any]
    device: str
    precision: Precision
    _opened: Plan | None = field(default=None, repr=False)

    @classmethod
    def of(cls, plan: Plan, path: Path, made_of: Mapping[str, Any], device: str, precision: Precision) -> Work:
        """Packed as dask packs what it sends, modules defined in a notebook included."""
        from distributed.protocol.pickle import dumps

        return cls(dumps(plan), path, dict(made_of), device, precision)

    def __reduce__(self) -> tuple[type[Work], tuple[Any, ...]]:
        return type(self), (self.sent, self.path, self.made_of, self.device, self.precision)

    def plan(self) -> Plan:
        """Opened once a process, the encoder on this worker's device."""
        from distributed.protocol.pickle import loads

        from nichekd.models._precision import resolve_device

        with _OPENING:
            if self._opened is None:
                try:
                    plan: Plan = loads(self.sent)
                except (OSError, ImportError, AttributeError) as err:
                    err.add_note(
                        f"On worker {_here()}, which opens the image by the same path as this process, and imports the "
                        "encoder's module. Keep the image where all workers see it, and install the same packages there."
                    )
                    raise
                plan.encoder.to(resolve_device(self.device))
                self._opened = plan
            return self._opened

    def store(self) -> FeatureStore:
        """The store, found to be the one that was meant.

        Raises
        ------
        FileNotFoundError
            If it is not there.
        ValueError
            If it is another.
        """
        store = FeatureStore(self.path)
        if store.manifest is None:
            raise FileNotFoundError(
                f"Worker {_here()} finds no feature store {self.path}. Name a folder on a disk that all workers share."
            )
        store.check(self.made_of)
        return store


def encode_block(work: Work, first: int, last: int) -> None:
    """Encode and write the segments from ``first`` up to ``last``; they are on disk when it returns."""
    order, plan = work.store().order, work.plan()
    batches = plan.encoded(
        order, precision=work.precision, n_done=first * SEGMENT, stop=min(last * SEGMENT, len(order))
    )
    with closing(batches):  # an error, which dask keeps with its frames, would keep the reading threads with it
        for segment, features in enumerate(by_segment(features for _, features in batches), start=first):
            write_segment(work.store().path, segment, features)


def its_version() -> str:
    """Of nichekd, here."""
    return version("nichekd")


def meant_by(precision: Precision, device: str, bf16_on: tuple[str, ...]) -> Precision:
    """What ``precision`` means on ``device``, here."""
    from nichekd.models._precision import resolve_device, resolve_precision

    return resolve_precision(precision, resolve_device(device), bf16_on)


def _here() -> str:
    from distributed import get_worker

    return get_worker().address

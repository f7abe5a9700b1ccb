"""Ridge regression of many targets at once, its strength chosen on a group of cells it was not fitted on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

BLOCK = 16_384  # rows in double precision at once
STRENGTHS = tuple(10.0**power for power in range(-4, 3))  # of the penalty, in units of the number of cells


class GroupedRidge:
    """Sums over cells, group by group, from which a regression on any choice of groups follows.

    Features are standardised on all groups; targets are centred on the groups fitted.

    Parameters
    ----------
    features
        (n, F), in memory or lazy.
    targets
        (n, G).
    groups
        Group of each row, (n,), 0 to m − 1; rows below 0 take no part.
    """

    def __init__(self, features: Any, targets: NDArray[np.floating], groups: NDArray[np.integer]) -> None:
        self.features, self.targets, self.groups = features, targets, groups
        fitted = np.flatnonzero(groups >= 0)
        # about the first row, or the squares of features far from 0 would lose their last digits
        origin = np.asarray(features[fitted[:1]], dtype=np.float64)[0]
        total, squares = np.zeros_like(origin), np.zeros_like(origin)
        for cells in _blocks(fitted):
            rows = np.asarray(features[cells], dtype=np.float64) - origin
            total += rows.sum(axis=0)
            squares += (rows**2).sum(axis=0)
        about = total / len(fitted)
        self.mean, sd = origin + about, np.sqrt(np.maximum(squares / len(fitted) - about**2, 0))
        self.scale = np.where(sd > 1e-6 * np.maximum(np.abs(self.mean), 1), 1 / np.where(sd > 0, sd, 1), 0)
        self.n_groups = int(groups.max()) + 1
        self.sums = [self._sums(group) for group in range(self.n_groups)]

    def _rows(self, cells: NDArray[np.intp]) -> NDArray[np.float64]:
        return (np.asarray(self.features[cells], dtype=np.float64) - self.mean) * self.scale

    def _sums(self, group: int) -> tuple[int, NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Number of cells, sums of x, y, x xᵀ and x yᵀ."""
        members = np.flatnonzero(self.groups == group)
        n_features, n_targets = len(self.mean), self.targets.shape[1]
        x_sum, y_sum = np.zeros(n_features), np.zeros(n_targets)
        xx, xy = np.zeros((n_features, n_features)), np.zeros((n_features, n_targets))
        for cells in _blocks(members):
            x, y = self._rows(cells), np.asarray(self.targets[cells], dtype=np.float64)
            x_sum, y_sum, xx, xy = x_sum + x.sum(0), y_sum + y.sum(0), xx + x.T @ x, xy + x.T @ y
        return len(members), x_sum, y_sum, xx, xy

    def predict(self, cells: NDArray[np.intp], fit_on: Sequence[int]) -> NDArray[np.float32]:
        """Targets of ``cells``, (m, G), by a regression on the groups ``fit_on``.

        Its strength is the one at which a regression on all of them but the last predicts the last best; with one
        group, 0.01 times the number of cells.
        """
        strength = STRENGTHS[2]
        if len(fit_on) > 1:
            *others, last = fit_on
            held_out = np.flatnonzero(self.groups == last)
            spread = np.maximum(np.asarray(self.targets[held_out]).var(axis=0, dtype=np.float64), 1e-12)
            path = self._path(others)
            errors = [(self._squared_error(path, held_out, s) / spread).mean() for s in STRENGTHS]
            strength = STRENGTHS[int(np.argmin(errors))]
        path = self._path(fit_on)
        found = [self._at(path, part, strength).astype(np.float32) for part in _blocks(cells)]
        return np.concatenate(found) if found else np.empty((0, self.targets.shape[1]), dtype=np.float32)

    def _squared_error(self, path: tuple[Any, ...], cells: NDArray[np.intp], strength: float) -> NDArray[np.float64]:
        """Mean over ``cells``, (G,)."""
        total = np.zeros(self.targets.shape[1])
        for part in _blocks(cells):
            total += ((self._at(path, part, strength) - np.asarray(self.targets[part], dtype=np.float64)) ** 2).sum(0)
        return total / len(cells)

    def _path(self, groups: Sequence[int]) -> tuple[Any, ...]:
        """What regressions of all strengths on these groups share."""
        parts = [self.sums[group] for group in groups]
        n, x, y, xx, xy = (sum(part[i] for part in parts) for i in range(5))
        x_mean, y_mean = x / n, y / n
        values, vectors = np.linalg.eigh(xx - n * np.outer(x_mean, x_mean))
        return n, x_mean, y_mean, np.maximum(values, 0), vectors, vectors.T @ (xy - n * np.outer(x_mean, y_mean))

    def _at(self, path: tuple[Any, ...], cells: NDArray[np.intp], strength: float) -> NDArray[np.float64]:
        n, x_mean, y_mean, values, vectors, projected = path
        weights = vectors @ (projected / (values + strength * n)[:, None])
        return (self._rows(cells) - x_mean) @ weights + y_mean


def _blocks(cells: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    for start in range(0, len(cells), BLOCK):
        yield cells[start : start + BLOCK]


def pearson(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Correlation of each column of ``a`` with that of ``b``, (G,); NaN where one is constant."""
    x, y = (np.asarray(values, dtype=np.float64) for values in (a, b))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    size = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    return np.divide((x * y).sum(axis=0), size, out=np.full(x.shape[1], np.nan), where=size > 1e-12)

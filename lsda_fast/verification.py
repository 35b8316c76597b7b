"""Verification over many cases: scores summed up, and whole data sets against a truth.

The scores are those of `lsda_fast.scores`, their confidence intervals those of `lsda_fast.bootstrap`; both can be had
from here too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lsda_fast.bootstrap import Ratio, paired_bootstrap
from lsda_fast.errors import InputError
from lsda_fast.members import pairs_first, without_opposite
from lsda_fast.scores import (
    bias,
    checked_errors,
    checked_std,
    crps,
    crps_field,
    ensemble_variance,
    mae,
    mean_noise,
    normalized_rmse,
    rank_histogram,
    rmse,
    safe_ratio,
    spread,
    spread_skill,
    wasserstein,
    weighted_mean,
    weighted_sum,
)

if TYPE_CHECKING:
    import xarray as xr

    from lsda_fast.grid import Normalization
    from lsda_fast.layout import StateLayout

__all__ = [
    "Ratio",
    "Scores",
    "bias",
    "by_lead",
    "crps",
    "kind_of",
    "mae",
    "normalized_rmse",
    "paired_bootstrap",
    "pairs_together",
    "rank_histogram",
    "rmse",
    "spread",
    "spread_skill",
    "verify",
    "wasserstein",
]


class Scores:
    """Weighted sums of errors per channel over many cases; the roots are taken at the end, in `table`.

    Parameters
    ----------
    channels : names of the C channels.
    weights : (H,) area weights.
    std : (C,) scale of the "normalized" row; None takes the standard deviation of the truths themselves.
    kind : what the members are, one of `scores.ENSEMBLES`.
    alone : of opposite pairs, how many members behind them have no opposite.
    """

    def __init__(
        self,
        channels: Sequence[str],
        weights: ArrayLike,
        std: ArrayLike | None = None,
        *,
        kind: str = "independent",
        alone: int = 0,
    ) -> None:
        self.channels = tuple(channels)
        self.weights = np.asarray(weights, dtype=np.float64)
        self.std = None if std is None else checked_std(std, len(self.channels))
        self.kind, self.alone = kind, alone
        self.members = 0
        self.cases = 0
        self._offset = np.zeros(len(self.channels))
        # Rows: squared error, error, absolute error, CRPS, variance, truth, truth squared.
        self._sums = np.zeros((7, len(self.channels)))
        self._weight = np.zeros(len(self.channels))
        self._distances: list[np.ndarray] = []

    def add(self, ensemble: ArrayLike, truth: ArrayLike) -> Scores:
        """Add a case (or a batch): ensemble (M, ..., C, H, W) and truth (..., C, H, W); gives itself.

        Raises
        ------
        InputError
            As `crps`; also when the number of members or channels differs from that of the cases before.
        """
        errors = checked_errors(ensemble, truth, self.weights, members=True)
        M, C = errors.shape[0], errors.shape[-3]
        if len(self.channels) != C:
            raise InputError(f"the case has {C} channels, the scores have {len(self.channels)}: {self.channels}")
        if self.cases and self.members != M:
            raise InputError(f"the case has {M} members, the cases before had {self.members}")
        values = np.asarray(truth, dtype=np.float64)
        if not self.cases:
            # The truth's variance comes from sums of squares: a first guess of its mean keeps their digits.
            self._offset = np.nan_to_num(weighted_mean(values, self.weights))
        values = values - self._offset[:, None, None]
        mean = errors.mean(0)
        variance = ensemble_variance(errors) if M > 1 else np.zeros_like(mean)
        fields = (mean**2, mean, np.abs(mean), crps_field(errors, self.kind, self.alone), variance, values, values**2)
        self._sums += np.stack([weighted_sum(field, self.weights)[0] for field in fields])
        self._weight += weighted_sum(mean, self.weights)[1]
        self._distances.append(wasserstein(ensemble, truth))
        self.members = M
        self.cases += int(np.prod(mean.shape[:-3]))
        return self

    def table(self) -> pd.DataFrame:
        """Scores per channel and a last row "normalized".

        Returns
        -------
        DataFrame with columns rmse, bias, mae, crps, spread, spread_skill, wasserstein (rmse, bias and mae of
        the ensemble mean; wasserstein the mean over the calls of `add`). In the row "normalized" each channel is
        divided by its std first; then squares (rmse, spread) or values are averaged over channels. Without an ensemble
        (M = 1) crps is the mean absolute error, and spread is NaN. `attrs` has the numbers of "cases" and "members".
        """
        if not self.cases:
            raise InputError("no case has been added to the scores, at least one is needed")
        mse, error, absolute, probability, variance, first, second = safe_ratio(
            self._sums, np.broadcast_to(self._weight, self._sums.shape)
        )
        std = np.sqrt(np.maximum(second - first**2, 0.0)) if self.std is None else self.std
        std = np.where(std > 0, std, np.nan)
        rows = np.stack([mse, error, absolute, probability, variance, _mean_present(self._distances)])
        scale = np.stack([std**2, std, std, std, std**2, std])
        # On levels a data set may hold channels without a single value: they have no part in the mean.
        scored = self._weight > 0 if self._weight.any() else np.full(len(self.channels), True)
        rows = np.concatenate([rows, (rows / scale)[:, scored].mean(1, keepdims=True)], axis=1)
        if self.members < 2:
            rows[4] = np.nan
        ratio = np.sqrt(mean_noise(self.members, self.kind, self.alone) * safe_ratio(rows[4], rows[0]))
        columns = (np.sqrt(rows[0]), rows[1], rows[2], rows[3], np.sqrt(rows[4]), ratio, rows[5])
        frame = pd.DataFrame(
            dict(zip(("rmse", "bias", "mae", "crps", "spread", "spread_skill", "wasserstein"), columns)),
            index=pd.Index([*self.channels, "normalized"], name="channel"),
        )
        frame.attrs = {"cases": self.cases, "members": self.members}
        return frame


def kind_of(analysis: xr.Dataset) -> dict[str, Any]:
    """What the members of an analysis are: ``kind`` and ``alone`` of `scores.crps`, in the order of `pairs_together`.

    Its attributes ``ensemble`` and ``ensemble_size`` say so. A choice of some is no longer about its own mean: of
    recentred members it is draws, some of them perhaps opposite to each other.
    """
    kind, M = str(analysis.attrs.get("ensemble", "independent")), analysis.sizes.get("member", 1)
    if "recentred" in kind and analysis.attrs.get("ensemble_size", M) == M:
        return {"kind": kind, "alone": 0}
    alone = M if "member" not in analysis.coords or "pairs" not in kind else without_opposite(_numbers(analysis))
    return {"kind": "opposite pairs", "alone": alone} if alone < M else {"kind": "independent", "alone": 0}


def pairs_together(analysis: xr.Dataset) -> xr.Dataset:
    """Members beside their opposites, behind them those that have none; in their order where there are no pairs."""
    drawn = str(analysis.attrs.get("ensemble", ""))
    if "pairs" not in drawn or "member" not in analysis.dims or "member" not in analysis.coords:
        return analysis
    return analysis.isel(member=pairs_first(_numbers(analysis)))


def _numbers(analysis: xr.Dataset) -> list[int]:
    numbers = [int(member) for member in np.atleast_1d(analysis["member"].values)]
    twice = [number for number, count in Counter(numbers).items() if count > 1]
    if twice:
        raise InputError(f"member {twice[0]} is there more than once; accepted are members of different numbers")
    return numbers


def by_lead(
    ensemble: ArrayLike,
    truth: ArrayLike,
    weights: ArrayLike,
    std: ArrayLike | None = None,
    *,
    kind: str = "independent",
    alone: int = 0,
) -> pd.DataFrame:
    """RMSE of the mean and CRPS for every state of a window.

    Parameters
    ----------
    ensemble : (M, T, C, H, W)
    truth : (T, C, H, W)
    weights : (H,) area weights.
    std : (C,) scale of the channels; their own units when not given.
    kind, alone : what the members are, see `scores.crps`.

    Returns
    -------
    DataFrame, one row per state, with columns (score, channel number) for the scores rmse and crps.
    """
    ensemble, truth = np.asarray(ensemble, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if ensemble.shape[1:] != truth.shape:
        raise InputError(f"shapes {ensemble.shape} and {truth.shape} came; accepted are (M, T, C, H, W), (T, C, H, W)")
    scale = 1.0 if std is None else checked_std(std, truth.shape[-3])
    mean, present = ensemble.mean(0), ensemble.swapaxes(0, 1)
    rows = {
        "rmse": np.stack([rmse(x, y, weights) for x, y in zip(mean, truth)]) / scale,
        "crps": np.stack([crps(x, y, weights, kind=kind, alone=alone) for x, y in zip(present, truth)]) / scale,
    }
    frames = {name: pd.DataFrame(values) for name, values in rows.items()}
    return pd.concat(frames, axis=1).rename_axis(index="state", columns=("score", "channel"))


def _mean_present(distances: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over the cases of what is not NaN, (C,); NaN where all are."""
    values = np.stack(distances)
    present = np.isfinite(values)
    return safe_ratio(np.where(present, values, 0.0).sum(0), present.sum(0))


def verify(
    analysis: xr.Dataset,
    truth: xr.Dataset,
    *,
    layout: StateLayout | None = None,
    normalization: Normalization | None = None,
) -> pd.DataFrame:
    """Scores of an analysis, or an ensemble of them, over every time it has.

    Parameters
    ----------
    analysis, truth : datasets ([member,] [time,] [level,] latitude, longitude) as from `open_states`; the attribute
        ``ensemble`` of an analysis says what its members are (`scores.ENSEMBLES`), independent draws without it.
        The variables and levels of which both have values are scored, at the points and times of the analysis and in
        the units of the truth, which may cover more. They are read time by time, so that both may be larger
        than the memory.
    layout : channels and grid to score, where not all that are common.
    normalization : mean and std of the layout's channels for the "normalized" row, else the truth's own.

    Returns
    -------
    The table of `Scores`.

    Raises
    ------
    InputError
        Nothing in common; times or points of the analysis that the truth lacks; a truth with several members.
    """
    from lsda_fast.fields import canonical
    from lsda_fast.layout import StateLayout

    analysis, truth = canonical(analysis), canonical(truth)
    if layout is None:
        known, names = StateLayout.infer(analysis), StateLayout.infer(truth).names
        common = [name for name in names if name in known.names]
        # On levels, channels that a package has not are written as missing.
        missing = _without_values(analysis, known, common)
        if common and len(missing) == len(common):
            raise InputError(f"the analysis has not one value of {', '.join(common)}; accepted are complete fields")
        common = [name for name in common if name not in missing]
        if not common:
            raise InputError(f"the analysis has {known.names} and the truth {names}, nothing in common")
        layout = replace(StateLayout.infer(truth, common), grid=known.grid)
    if truth.sizes.get("member", 1) > 1:
        raise InputError(f"the truth has {truth.sizes['member']} members, one is accepted")
    truth = truth.isel(member=0, drop=True) if "member" in truth.dims else truth
    std = None if normalization is None else normalization.std
    analysis = pairs_together(analysis)
    scores = Scores(layout.names, layout.grid.area_weights, std, **kind_of(analysis))
    for one, other in _paired_times(analysis, truth):
        fields = layout.to_array(one, missing="mask")
        scores.add(fields if fields.ndim == 4 else fields[None], layout.to_array(other, missing="mask"))
    return scores.table()


def _without_values(dataset: xr.Dataset, layout: StateLayout, names: Sequence[str]) -> set[str]:
    """Those of the channels that are missing everywhere; what has a value in the first field is read no further."""
    left = set(names)
    for i in range(dataset.sizes.get("time", 1)):
        part = tuple(channel for channel in layout.channels if channel.name in left)
        if not part:
            break
        field = dataset.isel(time=i, drop=True) if "time" in dataset.dims else dataset
        values = replace(layout, channels=part).to_array(field, missing="mask")
        empty = np.isnan(values).all((-2, -1)).reshape(-1, len(part)).all(0)
        left = {channel.name for channel, none in zip(part, empty) if none}
    return left


def _paired_times(analysis: xr.Dataset, truth: xr.Dataset) -> Iterator[tuple[xr.Dataset, xr.Dataset]]:
    """Analysis and truth at each time of the analysis, without a time dimension."""
    if "time" not in analysis.coords and "time" not in truth.dims:
        yield analysis, truth
        return
    if "time" not in analysis.coords or "time" not in truth.coords:
        raise InputError("one dataset has times and the other has none, analysis and truth both need them")
    times, known = (
        pd.DatetimeIndex(np.atleast_1d(analysis["time"])),
        pd.DatetimeIndex(np.atleast_1d(truth["time"])),
    )
    for name, given in (("truth", known), ("analysis", times)):
        if not given.is_unique:
            raise InputError(f"the {name} has the time {given[given.duplicated()][0]} twice; accepted is each once")
    place = known.get_indexer(times)
    if (place < 0).any():
        raise InputError(
            f"the truth lacks {(place < 0).sum()} of {len(times)} analysis times, first {times[place < 0][0]}"
        )
    for i, j in enumerate(place):
        yield (
            analysis.isel(time=i, drop=True) if "time" in analysis.dims else analysis.drop_vars("time"),
            truth.isel(time=j, drop=True) if "time" in truth.dims else truth.drop_vars("time"),
        )

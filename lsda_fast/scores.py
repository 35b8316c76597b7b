"""Scores of one state or ensemble, or of several in one array, against a truth.

With w the area weights (cosine of latitude), x_m the members, y the truth, < > the weighted mean over cells
and cases:

    rmse = sqrt <(mean_m x_m - y)^2>                    (as WeatherBench2: squares are averaged, then rooted)
    spread = sqrt <1/(M-1) sum_m (x_m - mean x)^2>
    spread_skill = sqrt((M+1)/M) spread / rmse          (1 when truth and members are exchangeable)
    crps = <1/M sum_m |x_m - y| - 1/(2 M (M-1)) sum_mn |x_m - x_n|>           (fair: unbiased in M)
    wasserstein = 1/M sum_m mean_i |x_m(i) - y(i)|,  (i) the i-th in order of size: of values, wherever they are

Rasp et al. 2024 (WeatherBench2); Fortin et al. 2014 (spread and skill); Ferro 2014 (fair scores); the metric of SLAMS
(Qu et al. 2024), exact in one dimension, without area weights. Where the truth is
missing (NaN) nothing is scored; a member missing elsewhere is refused.

These hold for members that are independent draws. Others (``ENSEMBLES``) are told apart, so that their scores have the
same expectation. In *opposite pairs* (the first two, the next two, ...) noise comes with its opposite: the CRPS leaves
the distances within pairs out, sum_mn over different pairs / (2 M (M-2)), and one pair alone, x +- d, has that of a
Gaussian, |x_1 - x_2| / 2^1.5 in the place of the sum. Behind the pairs may stand ``alone`` members u that have no
opposite: M (M-2) + u is in the place of M (M-2) then, and the mean's error in units of the variance with M - 1 below it
(1 + u/M^2) (M-1) / (M - u/M). *Recentred* members stand about the average of their conditional
means (``members.recentred``): draws are the mean + sqrt(M/(M-1)) (x_m - mean). The mean of either has no sampling noise
to speak of: spread_skill is spread / rmse, of pairs that are not recentred sqrt((M-1)/M) of it.
"""

import numpy as np
from numpy.typing import ArrayLike

from lsda_fast.errors import InputError

__all__ = [
    "ENSEMBLES",
    "bias",
    "checked_errors",
    "checked_std",
    "crps",
    "crps_field",
    "ensemble_variance",
    "mae",
    "normalized_rmse",
    "rank_histogram",
    "rmse",
    "safe_ratio",
    "spread",
    "spread_skill",
    "wasserstein",
    "weighted_mean",
    "weighted_sum",
]


ENSEMBLES = ("independent", "opposite pairs", "recentred", "recentred opposite pairs")


def rmse(estimate: ArrayLike, truth: ArrayLike, weights: ArrayLike) -> np.ndarray:
    """Root of the area-weighted mean square error, over all leading dimensions together.

    Parameters
    ----------
    estimate, truth : (..., C, H, W), in the same units; for an ensemble pass its mean.
    weights : (H,) area weights; only their ratios matter.

    Returns
    -------
    (C,) float64, in the units of the fields; NaN for a channel whose truth is missing everywhere.

    Raises
    ------
    InputError
        Shapes that do not match, or an estimate that is not finite where the truth is.
    """
    return np.sqrt(weighted_mean(checked_errors(estimate, truth, weights) ** 2, weights))


def bias(estimate: ArrayLike, truth: ArrayLike, weights: ArrayLike) -> np.ndarray:
    """Area-weighted mean of estimate minus truth, (C,); arguments and errors as in `rmse`."""
    return weighted_mean(checked_errors(estimate, truth, weights), weights)


def mae(estimate: ArrayLike, truth: ArrayLike, weights: ArrayLike) -> np.ndarray:
    """Area-weighted mean absolute error, (C,); arguments and errors as in `rmse`."""
    return weighted_mean(np.abs(checked_errors(estimate, truth, weights)), weights)


def crps(
    ensemble: ArrayLike, truth: ArrayLike, weights: ArrayLike, *, kind: str = "independent", alone: int = 0
) -> np.ndarray:
    """Fair continuous ranked probability score, (C,), in the units of the fields.

    Parameters
    ----------
    ensemble : (M, ..., C, H, W); one member gives the mean absolute error.
    truth : (..., C, H, W).
    weights : (H,) area weights.
    kind : what the members are, one of `ENSEMBLES`.
    alone : of opposite pairs, how many members behind them have no opposite.

    Raises
    ------
    InputError
        As `rmse`; members that are not finite are named by number; another kind, or an odd number of members in pairs.
    """
    return weighted_mean(crps_field(checked_errors(ensemble, truth, weights, members=True), kind, alone), weights)


def wasserstein(ensemble: ArrayLike, truth: ArrayLike) -> np.ndarray:
    """First Wasserstein distance of the members' values from the truth's, over all cells and cases together, (C,).

    Parameters
    ----------
    ensemble : (M, ..., C, H, W); the distances of the members are averaged.
    truth : (..., C, H, W); values that are missing are left out of both.

    Returns
    -------
    (C,) float64, in the units of the fields; NaN for a channel whose truth is missing everywhere.

    Raises
    ------
    InputError
        As `crps`.
    """
    ensemble, truth = np.asarray(ensemble, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    checked_errors(ensemble, truth, np.ones(truth.shape[-2:-1]), members=True)
    distance = np.full(truth.shape[-3], np.nan)
    for c in range(len(distance)):
        y = truth[..., c, :, :]
        present = np.isfinite(y)
        if present.any():
            x = np.sort(ensemble[..., c, :, :][:, present], axis=1)
            distance[c] = np.abs(x - np.sort(y[present])).mean()
    return distance


def spread(ensemble: ArrayLike, weights: ArrayLike) -> np.ndarray:
    """Root of the area-weighted mean ensemble variance (denominator M - 1), (C,).

    Parameters
    ----------
    ensemble : (M, ..., C, H, W) with M >= 2; a cell that is NaN in every member is left out.
    weights : (H,) area weights.

    Raises
    ------
    InputError
        One member only, or members of which some are finite where others are not.
    """
    ensemble = np.asarray(ensemble, dtype=np.float64)
    truth = np.where(np.isfinite(ensemble).any(axis=0), 0.0, np.nan)
    return np.sqrt(weighted_mean(ensemble_variance(checked_errors(ensemble, truth, weights, members=True)), weights))


def spread_skill(
    ensemble: ArrayLike, truth: ArrayLike, weights: ArrayLike, *, kind: str = "independent", alone: int = 0
) -> np.ndarray:
    """sqrt((M+1)/M) times spread over the RMSE of the ensemble mean, (C,): 1 for a reliable ensemble.

    With the factor of its kind (see the module). Arguments and errors as in `crps` and `spread`; NaN where
    the mean has no error at all.
    """
    errors = checked_errors(ensemble, truth, weights, members=True)
    variance = weighted_mean(ensemble_variance(errors), weights)
    noise = mean_noise(len(errors), kind, alone)
    return np.sqrt(noise * safe_ratio(variance, weighted_mean(errors.mean(0) ** 2, weights)))


def mean_noise(members: int, kind: str, alone: int = 0) -> float:
    """The mean square error of the mean of a reliable ensemble, over its variance with M - 1 below it."""
    M = members
    if M == 1 or "recentred" in checked_kind(kind, M, alone):
        return 1.0
    u = M if kind == "independent" else alone
    return (1 + u / M**2) * (M - 1) / (M - u / M)


def checked_kind(kind: str, members: int, alone: int = 0) -> str:
    """The kind; InputError for one that is unknown, or that so many members cannot be."""
    if kind not in ENSEMBLES:
        raise InputError(f"an ensemble of kind {kind!r} came; accepted: {', '.join(ENSEMBLES)}")
    if alone and kind != "opposite pairs":
        raise InputError(f"{alone} members without an opposite came among {kind} ones; accepted among opposite pairs")
    if "pairs" in kind and members > 1 and ((members - alone) % 2 or not 0 <= alone <= members):
        raise InputError(f"{members - alone} members came in pairs of opposite noise, an even number is accepted")
    return kind


def normalized_rmse(estimate: ArrayLike, truth: ArrayLike, weights: ArrayLike, std: ArrayLike) -> float:
    """Root of the mean over channels of MSE_c / std_c^2: one number for the whole state, no units.

    Parameters
    ----------
    estimate, truth, weights : as in `rmse`.
    std : (C,) standard deviation of each channel, in its units.
    """
    scaled = rmse(estimate, truth, weights) / checked_std(std, np.shape(truth)[-3])
    return float(np.sqrt(np.mean(scaled**2)))


def rank_histogram(ensemble: ArrayLike, truth: ArrayLike, weights: ArrayLike) -> np.ndarray:
    """Area-weighted frequency of the rank of the truth among the members: flat for a reliable ensemble.

    Ties share their weight evenly between the ranks they could have, so the result needs no random numbers.

    Parameters
    ----------
    ensemble, truth, weights : as in `crps`.

    Returns
    -------
    (C, M + 1), each row summing to 1; rank 0 means that the truth lies below every member.
    """
    errors = checked_errors(ensemble, truth, weights, members=True)
    M, C = errors.shape[0], errors.shape[-3]
    low, ties = (errors < 0).sum(0), (errors == 0).sum(0)
    cell = np.where(np.isfinite(errors[0]), np.asarray(weights, dtype=np.float64)[:, None], 0.0) / (ties + 1)
    steps = np.zeros((C, M + 2))
    channel = np.broadcast_to(np.arange(C)[:, None, None], low.shape)
    # A cell fills the ranks low .. low + ties: add at the first, take off behind the last, then sum up.
    np.add.at(steps, (channel, low), cell)
    np.add.at(steps, (channel, low + ties + 1), -cell)
    counts = np.cumsum(steps, axis=1)[:, :-1]
    return safe_ratio(counts, np.broadcast_to(counts.sum(1, keepdims=True), counts.shape))


def checked_errors(estimate: ArrayLike, truth: ArrayLike, weights: ArrayLike, *, members: bool = False) -> np.ndarray:
    """Estimate minus truth in float64, NaN where the truth is missing; checks the input."""
    estimate, truth = np.asarray(estimate, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    weights = np.asarray(weights, dtype=np.float64)
    shape = estimate.shape[1:] if members else estimate.shape
    if shape != truth.shape or truth.ndim < 3 or weights.shape != truth.shape[-2:-1] or 0 in estimate.shape:
        names = "(M, ..., C, H, W), (..., C, H, W), (H,)" if members else "(..., C, H, W) twice, (H,)"
        raise InputError(f"shapes {estimate.shape}, {truth.shape}, weights {weights.shape} came, accepted are {names}")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise InputError("the area weights must be finite, not negative and not all zero")
    if np.isinf(truth).any():
        raise InputError("the truth has infinite values, finite ones and NaN for missing are accepted")
    present = np.isfinite(truth)
    errors = np.subtract(estimate, truth, out=np.full(estimate.shape, np.nan), where=present)
    bad = present & ~np.isfinite(errors)
    if bad.any():
        who = np.flatnonzero(bad.reshape(len(bad), -1).any(1)).tolist()
        where = f"members {who} are" if members else "the estimate is"
        raise InputError(f"{where} not finite at {bad.sum()} places where the truth is, finite values are accepted")
    return errors


def weighted_sum(field: np.ndarray, weights: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sum of the finite values (..., C, H, W) per channel and the sum of weights, (C,) each."""
    weights = np.asarray(weights, dtype=np.float64)
    field = field.reshape(-1, *field.shape[-3:])
    present = np.isfinite(field)
    total = np.einsum("nchw,h->c", np.where(present, field, 0.0), weights)
    return total, np.einsum("nch,h->c", present.sum(-1, dtype=np.float64), weights)


def weighted_mean(field: np.ndarray, weights: ArrayLike) -> np.ndarray:
    """Weighted mean of the finite values (..., C, H, W), (C,); NaN where there are none."""
    return safe_ratio(*weighted_sum(field, weights))


def safe_ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is not above zero."""
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=np.asarray(b) > 0)


def ensemble_variance(errors: np.ndarray) -> np.ndarray:
    """Variance over the members (M, ...) with denominator M - 1; InputError for one member."""
    # All members share the truth: the variance of the errors is that of the ensemble, with smaller numbers.
    if len(errors) < 2:
        raise InputError("one member came, the spread needs at least 2")
    return errors.var(axis=0, ddof=1)


def crps_field(errors: np.ndarray, kind: str = "independent", alone: int = 0) -> np.ndarray:
    """Fair CRPS at each cell from the errors (M, ...); the sum over all distances needs only a sort."""
    M, opposite = len(errors), "pairs" in checked_kind(kind, len(errors), alone)
    if M == 1:
        return np.abs(errors[0])
    draws = errors
    if "recentred" in kind:
        mean = errors.mean(0)
        draws = mean + (M / (M - 1)) ** 0.5 * (errors - mean)
    score = np.abs(draws).mean(0)
    if not opposite:  # distances of independent members are those of draws, wherever their mean is
        return score - _distances(errors) / (M * (M - 1))
    paired = draws[: M - alone]
    within = np.abs(paired[::2] - paired[1::2]).sum(0)
    if M == 2 and not alone:
        return score - within / 8**0.5
    return score - (_distances(draws) - within) / (M * (M - 2) + alone)


def _distances(errors: np.ndarray) -> np.ndarray:
    """1/2 sum_mn |x_m - x_n|."""
    M = len(errors)
    return np.tensordot(2.0 * np.arange(M) - M + 1, np.sort(errors, axis=0), axes=1)


def checked_std(std: ArrayLike, C: int) -> np.ndarray:
    """The standard deviations (C,) as float64; InputError for another shape or values not above zero."""
    std = np.asarray(std, dtype=np.float64)
    if std.shape != (C,) or not (np.isfinite(std).all() and (std > 0).all()):
        raise InputError(f"std of shape {std.shape} came, {C} finite values above zero are accepted, one per channel")
    return std

"""SLAMS' experiments on one window: what is degraded, the ways to observe, the analysis, its scores.

Ways: ``pixel`` is SDA in the space of states, by the gradient of its likelihood, with gamma and levels chosen on
November 2001; ``published`` SLAMS as its code has it (latents of the truth are degraded and observed), with the
published sampler; both in the reference path. ``ours`` observes the degraded fields through the decoder. Extra
modalities are degraded as the state is; a package is asked for fewer than it has by leaving them out (NaN).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from lsda_fast.calendar import calendar
from lsda_fast.degradations import Degradation
from lsda_fast.engine.backend import Backend, choose_backend
from lsda_fast.errors import InputError
from lsda_fast.guidance import DPS, LatentOptimization, Likelihood
from lsda_fast.latent_observations import degraded_latents, in_latent
from lsda_fast.likelihood import likelihood_of
from lsda_fast.modalities import Modality
from lsda_fast.package import Package
from lsda_fast.presets import sampler_preset
from lsda_fast.prior import Prior
from lsda_fast.sampler import Sampler
from lsda_fast.scores import wasserstein
from lsda_fast.verification import by_lead, crps, rmse

__all__ = ["DEGRADATIONS", "WAYS", "Extras", "Truth", "Way", "analysed", "scores", "starts", "truth_of"]

# Every fourth state and a block of 4 x 4 cells, but where the row says otherwise; a gap alone keeps the whole grid.
DEGRADATIONS: dict[str, Degradation] = {
    **{f"coarsen {factor}": Degradation(factor, 4) for factor in (4, 8, 12, 15, 20)},
    **{f"gap {gap}": Degradation(1, gap) for gap in (4, 8, 12, 16)},
    **{f"noise {noise:g}": Degradation(4, 4, noise) for noise in (0.1, 0.5, 1.0, 2.0, 4.0)},
}


@dataclass(frozen=True)
class Way:
    """How is observed, and sampled.

    Parameters
    ----------
    latent : bool
        Whether latents are observed, or states.
    sampler : mapping
        Arguments of ``Sampler``.
    backend : str
        As for ``Assimilator``.
    low : bool
        Matrix products of the networks in bfloat16, and native kernels for what is around them, whatever the backend.
    """

    latent: bool
    sampler: Mapping[str, Any]
    backend: str
    low: bool = False


WAYS = {
    "pixel": Way(
        False,
        {"guidance": DPS(gamma=3e-5), "solver": "ddim", "spacing": "log_rho", "steps": 16, "stop": 0.02},
        "reference",
    ),
    "published": Way(True, sampler_preset("slams_published"), "reference"),
    "ours": Way(False, sampler_preset("slams"), "auto"),
}


@dataclass(frozen=True)
class Extras:
    """What a package knows beside the state: channels of its own, and modalities that it encodes alone."""

    state: tuple[int, ...]
    modalities: tuple[Modality, ...]

    @classmethod
    def of(cls, package: Package) -> "Extras":
        """The state is every channel that is no other modality's."""
        others = tuple(m for m in package.modalities if m.kind != "state")
        taken = {name for m in others if m.decoded for name in m.layout.names}
        names = package.layout.names
        return cls(tuple(i for i, name in enumerate(names) if name not in taken), others)

    def channels(self, package: Package, count: int) -> list[int]:
        """Of state and decoded modalities, the first ``count`` of these."""
        seen = {name for m in self.modalities[:count] if m.decoded for name in m.layout.names}
        return [i for i, name in enumerate(package.layout.names) if i in self.state or name in seen]

    def most(self, way: Way) -> int:
        """How many the way can use: states are observed of what is decoded, from the first on."""
        decoded = [m.decoded for m in self.modalities]
        return len(decoded) if way.latent or all(decoded) else decoded.index(False)


@dataclass(frozen=True)
class Truth:
    """A window: states (T, C, H, W) in the package's channels, other modalities on their own grids, times."""

    states: np.ndarray
    others: Mapping[str, np.ndarray]
    times: pd.DatetimeIndex


def starts(times: pd.DatetimeIndex, period: Sequence[str], states: int, count: int) -> list[int]:
    """Positions of the first states of ``count`` windows, spread evenly over a period; InputError where none fit."""
    begin, end = map(pd.Timestamp, period)
    inside = np.flatnonzero((times >= begin) & (times <= end + pd.Timedelta("23:59:59")))
    last = len(inside) - states
    if last < count - 1:
        raise InputError(f"{len(inside)} states in {period[0]} .. {period[1]}; {count} windows of {states} do not fit")
    return [int(inside[i]) for i in np.linspace(0, last, count).round().astype(int)]


def truth_of(package: Package, data: xr.Dataset, start: int, states: int) -> Truth:
    """A window of the data; InputError where its states are not the package's hours apart."""
    assert package.window is not None
    part = data.isel(time=slice(start, start + states)).load()
    times = pd.DatetimeIndex(part["time"].values)
    if not (np.diff(times) == pd.Timedelta(hours=package.window.hours)).all():
        raise InputError(f"states from {times[0]} on are not {package.window.hours:g} h apart, as the package's are")
    others = {m.name: m.layout.to_array(part, missing="mask") for m in package.modalities if not m.decoded}
    return Truth(package.layout.to_array(part, missing="mask"), others, times)


@torch.no_grad()
def analysed(
    package: Package, way: Way, count: int, truth: Truth, degradation: Degradation, *, members: int, seed: int
) -> tuple[np.ndarray, float]:
    """States (M, T, C, H, W) of the window with ``count`` extra modalities, and the seconds from observations on."""
    extras = Extras.of(package)
    observed = _latent(package, extras, count, truth, degradation, seed) if way.latent else None
    backend = Backend("fused", "asked for") if way.low else choose_backend(way.backend, package)
    begin = time.perf_counter()
    with backend.kernels():
        season = torch.from_numpy(calendar(truth.times))
        precision = torch.bfloat16 if way.low else None
        prior = package.trajectory(len(truth.times), season=season, fused=backend.name == "fused", precision=precision)
        if observed is None:
            likelihood = _physical(package, extras.channels(package, count), truth, degradation, seed)
            sampled = prior
        else:
            likelihood, sampled = observed, in_latent(prior)
        sampler = Sampler(**_fitting(way.sampler, prior), block=members)
        # Draws: members about the average of their conditional means would be nearer to it.
        z = sampler(sampled, likelihood, members=members, seed=seed, recenter=False).z
        x = torch.cat([prior.decode(member[None]) for member in z]).unflatten(1, (len(truth.times), -1))
    states = package.denormalize(x)
    return states, time.perf_counter() - begin


def scores(package: Package, states: np.ndarray, truth: Truth, *, kind: str, alone: int = 0) -> dict[str, Any]:
    """Wasserstein distance, RMSE and CRPS of the state's channels, in units of their climatological spread.

    ``kind``: what the members are, one of ``lsda_fast.scores.ENSEMBLES``; ``alone``: see ``lsda_fast.scores.crps``.
    """
    state = list(Extras.of(package).state)
    weights, std = package.layout.grid.area_weights, np.asarray(package.normalization.std)[state]
    x, y = states[:, :, state], truth.states[:, state]
    names = [package.layout.names[i] for i in state]
    found = {
        "wasserstein": wasserstein(x, y) / std,
        "rmse": rmse(x.mean(0), y, weights) / std,
        "member_rmse": rmse(x, np.broadcast_to(y, x.shape), weights) / std,
        "crps": crps(x, y, weights, kind=kind, alone=alone) / std,
    }
    leads = by_lead(x, y, weights, std, kind=kind, alone=alone)
    result: dict[str, Any] = {score: dict(zip(names, values.tolist())) for score, values in found.items()}
    result["rmse_by_lead"] = np.sqrt(np.mean(leads["rmse"].to_numpy() ** 2, axis=1)).tolist()
    result["crps_by_lead"] = np.mean(leads["crps"].to_numpy(), axis=1).tolist()
    return result


def _fitting(settings: Mapping[str, Any], prior: Prior) -> dict[str, Any]:
    """The settings, without a covariance of the latent where the prior has none."""
    guidance = settings["guidance"]
    if isinstance(guidance, LatentOptimization) and prior.covariance is None:
        guidance = replace(guidance, prior_covariance="isotropic")
    return {**settings, "guidance": guidance}


def _physical(package: Package, channels: list[int], truth: Truth, degradation: Degradation, seed: int) -> Likelihood:
    """Degraded fields, seen through the decoder."""
    area = package.layout.grid.area_weights
    operator = degradation(truth.states, package.normalization, seed=seed, area=area, channels=channels)
    error = np.tile(package.errors, len(truth.times))
    return likelihood_of(operator, error=error, device=package.device, dtype=package.dtype)


def _latent(
    package: Package, extras: Extras, count: int, truth: Truth, degradation: Degradation, seed: int
) -> Likelihood:
    """Degraded latents of the truth."""
    states = np.full_like(truth.states, np.nan)
    channels = extras.channels(package, count)
    states[:, channels] = truth.states[:, channels]
    x, others = package.normalize(states), {}
    for i, m in enumerate(extras.modalities):
        if not m.decoded:
            values = m.normalization.normalize(truth.others[m.name])
            others[m.name] = torch.from_numpy(values if i < count else np.full_like(values, np.nan)).to(x)
    operator = degraded_latents(_encoded(package, x, others), degradation, seed=seed)
    return likelihood_of(operator, device=package.device, dtype=package.dtype)


def _encoded(package: Package, x: Tensor, others: Mapping[str, Tensor]) -> Tensor:
    """The sampler's variable (T, c, h, w) of states (T, C, H, W) and modalities beside them."""
    if not others:
        prior: Prior = package.trajectory(len(x))
        assert prior.encode is not None
        return prior.encode(x.flatten(0, 1)[None])[0]
    z = torch.cat(
        [package.autoencoder.encode(x[t][None], {n: v[t][None] for n, v in others.items()}) for t in range(len(x))]
    )
    model: Any = package.modules.get("trajectory")
    return z if model is None else model.standardize(z)

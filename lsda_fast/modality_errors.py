"""What a prior of trajectories does not know of its modalities, as a part of R.

The prior's covariance is Gaussian and the same everywhere, and says too much of fields like rain: where the state alone
is analysed, what is left open of a modality is less than what is wrong of it, and an observation of it, taken at its
word, pulls at the state. Over blocks of b x b cells, of an analysis with mean m and variance s^2,

    prior error^2 = max(0, <(m - truth)^2> - <s^2> - reconstruction error^2)

is what R needs beside the decoder's own error, so that departures are as large as they are said to be. It is
estimated on a window of validation, the state's channels observed in every cell of every fourth state, from the first
one on that has most of the modalities among these.
"""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from lsda_fast.degradations import Degradation
from lsda_fast.engine.backend import choose_backend
from lsda_fast.guidance import LatentOptimization
from lsda_fast.likelihood import likelihood_of
from lsda_fast.package import Package
from lsda_fast.presets import sampler_preset
from lsda_fast.sampler import Sampler

__all__ = ["modality_channels", "modality_errors", "unexplained"]

GAP = 4


def modality_channels(package: Package) -> list[int]:
    """The package's channels that are those of a modality beside the state."""
    names = {name for m in package.modalities if m.decoded and m.kind != "state" for name in m.layout.names}
    return [i for i, name in enumerate(package.layout.names) if name in names]


@torch.no_grad()
def modality_errors(package: Package, x: Tensor, season: Tensor, *, noise: float = 0.1, seed: int = 0) -> np.ndarray:
    """The prior's errors (B, C) of means over 1, 2 x 2, 4 x 4, ... cells, normalised; 0 of the state's channels.

    Parameters
    ----------
    package : Package
        With a prior of trajectories.
    x : Tensor, shape (T, C, H, W)
        Normalised states that follow each other, NaN where missing; no shorter than a window.
    season : Tensor, shape (T, 4)
        Their times (``lsda_fast.calendar``).
    noise : float
        Of the observed state, normalised.

    Warns
    -----
    UserWarning
        A modality that is known at none of the observed states: nothing can be said of it, and 0 is.
    """
    assert package.window is not None
    extra = modality_channels(package)
    known_at = ~x[:, extra].isnan().flatten(2).all(2)
    begins = range(max(1, min(GAP, len(x) - package.window.size + 1)))
    begin = max(begins, key=lambda k: int(known_at[k::GAP].any(0).sum()))
    x, season = x[begin:], season[begin:]
    never = [package.layout.names[c] for c, seen in zip(extra, known_at[begin::GAP].any(0)) if not seen]
    if never:
        warnings.warn(f"{', '.join(never)}: no value at the states that modality errors are taken from", stacklevel=2)
    T = len(x)
    state = [i for i in range(x.shape[1]) if i not in extra]
    known = np.stack([package.reconstruction_error, *package.block_errors])
    truth = package.normalization.denormalize(x.double().numpy())
    operator = Degradation(gap=GAP, noise=noise)(truth, package.normalization, seed=seed, channels=state)
    backend = choose_backend("auto", package)
    with backend.kernels():
        prior = package.trajectory(T, season=season, fused=backend.name == "fused")
        likelihood = likelihood_of(operator, error=np.tile(known, T), device=package.device, dtype=package.dtype)
        plain = {"guidance": LatentOptimization(prior_covariance="stationary")}
        settings = sampler_preset("slams") if prior.tangent else plain
        z = Sampler(**settings, block=2)(prior, likelihood, members=2, seed=seed).z
        pair = torch.cat([prior.decode(member[None]) for member in z]).unflatten(1, (T, -1)).cpu()
    # The two are of opposite noise, their mean the analysis, and their sample variance (half their difference's square)
    # that of the ensemble.
    mean, spread = pair.mean(0)[::GAP], 0.5**0.5 * (pair[0] - pair[1])[::GAP]
    found = unexplained(mean - x[::GAP], spread, known)
    found[:, state] = 0
    return found


def unexplained(error: Tensor, spread: Tensor, known: np.ndarray) -> np.ndarray:
    """The module's equation, (B, C), of fields (N, C, H, W) of errors, NaN where unknown, and spreads.

    Row i of ``known`` (B, C) and of the result is that of means over 2^i x 2^i cells; where no whole block is known, it
    is the row before.
    """
    rows: list[Any] = []
    for i in range(len(known)):
        e, s = (_squares(t, 2**i, error) for t in (error, spread))
        row = (e - s).clamp_min(0).numpy() - np.square(known[i], dtype=np.float64)
        rows.append(np.where(np.isnan(row), rows[-1] if rows else 0.0, row.clip(0)))
    return np.sqrt(rows).astype(np.float32)


def _squares(field: Tensor, b: int, mask: Tensor) -> Tensor:
    """Mean squares (C,) of means over b x b cells that the mask knows."""
    square = avg_pool2d(field.double(), b).square()
    return torch.where(avg_pool2d(mask, b).isnan(), torch.nan, square).nanmean((0, 2, 3))

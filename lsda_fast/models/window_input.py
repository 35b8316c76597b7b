"""What the network of a window reads, in training and in sampling alike, and the estimate that it corrects.

For ``wiener`` the network reads the noised states and, behind them as further channels, their linear-Gaussian estimate
in the window,

    D_G = alpha S (alpha^2 S + sigma^2)^-1 z_t,   E[z | z_t] = D_G + s F,   s^2 = tr((S^-1 + rho^-2)^-1) / n,

with S the window's part of the trajectory's covariance: F is in units of what D_G leaves open, and 0 to begin with.
The other predictions read the noised states alone. Noised states are divided by sqrt(alpha^2 + sigma^2).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lsda_fast.models.trajectory_covariance import TrajectoryCovariance

__all__ = ["WindowInput", "window_input"]


class WindowInput(NamedTuple):
    """What is read (N, size, c or 2 c, h, w), log rho (N,), D_G (N, size, c, h, w), and s (N, 1, 1, 1, 1)."""

    scaled: Tensor
    log_rho: Tensor
    base: Tensor
    spread: Tensor


def window_input(z_t: Tensor, alpha: Tensor, sigma: Tensor, covariance: TrajectoryCovariance | None) -> WindowInput:
    """Of windows z_t (N, size, c, h, w) at the levels (N,) ``alpha``, ``sigma``; without ``covariance`` D_G is 0."""
    each = lambda t, ndim: t.reshape(-1, *[1] * (ndim - 1))  # noqa: E731
    scaled = z_t * each((alpha**2 + sigma**2).rsqrt(), 5)
    log_rho = (sigma / alpha).log()
    if covariance is None:
        return WindowInput(scaled, log_rho, torch.zeros_like(z_t), torch.ones_like(each(alpha, 5)))
    base = covariance.wiener(z_t, each(alpha, 4), each(sigma, 4))
    spread = each(covariance.spread((sigma / alpha) ** 2), 5)
    return WindowInput(torch.cat([scaled, base], dim=2), log_rho, base, spread)

"""What SLAMS degrades a truth with: coarsening, gaps in time, noise (Qu et al. 2024, arXiv:2404.06665).

Of a truth (T, C, H, W), every ``gap``-th state is seen, as means over blocks of ``coarsen`` x ``coarsen`` cells, with
noise of ``noise`` climatological standard deviations. The result is a stencil operator on the trajectory (T*C, H, W)
with its values and R: states and latents are degraded alike.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lsda_fast.errors import InputError
from lsda_fast.grid import Normalization
from lsda_fast.observations import StencilOperator
from lsda_fast.observations.averages import blocks, field_averages, observing
from lsda_fast.observations.trajectory import at_times, every

__all__ = ["Degradation"]


@dataclass(frozen=True)
class Degradation:
    """One degradation.

    Parameters
    ----------
    coarsen : int
        Cells of a block in either direction; 1 leaves the grid as it is. Blocks at the end may be smaller.
    gap : int
        Every so many states are observed, from the first.
    noise : float
        Standard deviation, in units of the normalization's.
    """

    coarsen: int = 1
    gap: int = 1
    noise: float = 0.1

    def __post_init__(self) -> None:
        if self.coarsen < 1 or self.gap < 1 or not self.noise > 0:
            raise InputError(f"{self}: accepted are coarsen and gap of at least 1 and noise above 0")

    def __call__(
        self,
        truth: np.ndarray,
        normalization: Normalization,
        *,
        seed: int,
        area: np.ndarray | None = None,
        channels: Any = None,
    ) -> StencilOperator:
        """What is observed of a truth.

        Parameters
        ----------
        truth : np.ndarray, shape (T, C, H, W)
            In the channels' units; a block with a missing value (NaN) is not observed.
        normalization : Normalization
        seed : int
        area : np.ndarray, shape (H,), optional
            As for ``blocks``.
        channels : sequence of int, optional
            Those that are observed; all when not given.

        Raises
        ------
        InputError
            A truth of another shape, or a factor beyond the grid.
        """
        if truth.ndim != 4:
            raise InputError(f"a truth {truth.shape} given; accepted: (T, C, H, W)")
        T, C, H, W = truth.shape
        cells = blocks((H, W), self.coarsen, area)
        one = field_averages((C, H, W), normalization, cells, channels, dtype=torch.float64)
        seen = every(T, self.gap)
        x = torch.from_numpy(normalization.normalize(np.asarray(truth[:: self.gap], dtype=np.float64)))
        scale = one.representativeness(torch.ones(C, dtype=torch.float64)).sqrt().numpy()
        std = np.tile(self.noise * scale, len(seen))
        # Of every channel of the state, so that a channel's noise is the same whichever of them are observed.
        noise = np.random.default_rng(seed).standard_normal((len(seen), C, len(cells.cells)))
        noise = noise if channels is None else noise[:, list(channels)]
        return observing(at_times(one, seen, T), one(x).numpy().ravel() + std * noise.ravel(), std)

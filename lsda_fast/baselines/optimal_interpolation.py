"""Optimal interpolation with a full background-error covariance, for states small enough to hold one.

x_a = x_b + K (y - H x_b),  K = B H' (H B H' + R)^-1,  A = (I - K H) B      (Lorenc 1986, doi:10.1002/qj.49711247414)

The exact linear-Gaussian analysis: what a latent method must reach, and what it may beat only by knowing more than B.
"""

from functools import cached_property

import torch
from torch import Tensor

from lsda_fast.diffusion.noise import normal

__all__ = ["OptimalInterpolation"]


class OptimalInterpolation:
    """Optimal interpolation of normalised states.

    Parameters
    ----------
    errors : Tensor, shape (T, C, H, W)
        Background minus truth, normalised; B is their second moment in float64.
    """

    def __init__(self, errors: Tensor) -> None:
        self.shape = tuple(errors.shape[1:])
        flat = errors.flatten(1).double()
        self.B = flat.T @ flat / len(flat)

    @cached_property
    def _root(self) -> Tensor:
        """A with A' A = B, once for all analyses."""
        values, vectors = torch.linalg.eigh(self.B)
        return values.clamp_min(0).sqrt()[:, None] * vectors.T

    def analysis(
        self, background: Tensor, H: Tensor, y: Tensor, variance: Tensor, *, members: int = 0, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The analysis and an ensemble of its error distribution.

        Parameters
        ----------
        background : Tensor, shape (C, H, W)
        H : Tensor, shape (P, C*H*W)
            Observation operator on the flattened normalised state.
        y, variance : Tensor, shape (P,)
        members : int
            Samples of N(x_a, A), by perturbing background and observations; their mean is x_a.

        Returns
        -------
        x_a : Tensor, shape (C, H, W)
        ensemble : Tensor, shape (members, C, H, W)
        """
        x_b, H, y, variance = background.flatten().double(), H.double(), y.double(), variance.double()
        BH = self.B @ H.T
        S = torch.linalg.cholesky(H @ BH + variance.diag())
        gain = lambda d: BH @ torch.cholesky_solve(d, S)  # noqa: E731
        x_a = x_b + gain((y - H @ x_b)[:, None])[:, 0]
        if members == 0:
            return x_a.reshape(self.shape).float(), x_a.new_zeros(0, *self.shape).float()
        draw = lambda n, stream: normal((n,), seed=seed, members=range(members), stream=stream, dtype=torch.float64)  # noqa: E731
        e_b = draw(len(x_b), 0) @ self._root
        e_o = draw(len(y), 1) * variance.sqrt()
        ensemble = e_b + gain((e_o - e_b @ H.T).T).T
        ensemble = x_a + ensemble - ensemble.mean(0)
        return x_a.reshape(self.shape).float(), ensemble.reshape(members, *self.shape).float()

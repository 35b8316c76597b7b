"""A cheap linear stand-in for a decoder's derivative, for preconditioning: one convolution, fitted to the derivative.

    D'(z_b) dz ~ W * dz,   W = argmin sum_i |D'(z_b) dz_i - W * dz_i|^2 + ridge

over random increments dz_i of the latent, W a 3 x 3 convolution from latent places to patches of the state. The
derivative is nearly the same everywhere (decoders are close to linear at the size of background errors), so few
increments fit it, and one convolution serves every member, iteration and noise level of an analysis.

It may be multiplied in a higher precision than the decoder is: ten iterations of conjugate gradients with a precise
observation's J J' amplify the rounding of its products a hundredfold (``docs/results.md``).
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lsda_fast.kernels.geo_pad import geo_pad
from lsda_fast.models.head import Head
from lsda_fast.prior import Linearization

__all__ = ["Increments", "PatchTangent", "once", "tangent_samples"]

Made = Callable[[Tensor], Tensor]


def tangent_samples(latent: Sequence[int], state: Sequence[int]) -> int:
    """How many increments fit it, for latents (k, h, w) of states (C, H, W); 0 where places are too few, or no grid."""
    if len(latent) != 3 or state[1] % latent[1] or state[2] % latent[2]:
        return 0
    k, h, w = latent
    count = max(8, math.ceil(4 * 9 * k / (h * w)))
    return count if count <= 256 else 0


def once(make: Callable[[Counter[str]], Made]) -> Callable[[Counter[str]], Made]:
    """The same, made when first asked for."""
    made: list[Made] = []

    def get(evaluations: Counter[str]) -> Made:
        if not made:
            made.append(make(evaluations))
        return made[0]

    return get


class Increments:
    """Random increments of the latent, and what makes of their images the weight that fits.

    Parameters
    ----------
    z : Tensor, shape (N, k, h, w)
        As the errors of the latent are distributed.
    periodic, poles
        As for ``geo_pad``.
    ridge : float
        Relative to the mean squared latent increment.
    """

    def __init__(self, z: Tensor, *, periodic: bool, poles: Sequence[bool] = (True, True), ridge: float = 1e-3) -> None:
        self.z, self.periodic, self.poles = z, periodic, tuple(poles)
        rows = self.neighbourhoods(z).transpose(0, 1).flatten(1)  # (9 k, N h w): copied as they lie
        normal = (rows @ rows.T).double()
        normal.diagonal().add_(ridge * normal.diagonal().mean())
        self.inverse = torch.cholesky_solve(rows.double(), torch.linalg.cholesky(normal)).to(z)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """What it holds."""
        return self.z, self.inverse

    def neighbourhoods(self, dz: Tensor) -> Tensor:
        """The 3 x 3 places around every place, (M, 9 k, h w)."""
        return F.unfold(geo_pad(dz, 1, self.periodic, self.poles), 3)

    def fit(self, patches: Tensor) -> Tensor:
        """The weight (9 k, patch) of least squares, for what the increments became, (patch, N h w)."""
        return self.inverse @ patches.T


class PatchTangent:
    """The fitted convolution, dz (M, k, h, w) -> dx (M, C, H, W).

    Parameters
    ----------
    decode : callable (M, k, h, w) -> (M, C, H, W)
        H and W are multiples of h and w.
    z : Tensor, shape (1, k, h, w)
        Where the derivative is taken.
    increments : Increments
        Of which the derivative is fitted.
    evaluations : Counter
        Gains a value of the decoder and N products.
    dtype : torch.dtype, optional
        Of the convolution, and of the increments that it is given; the decoder's when not given.
    """

    def __init__(
        self,
        decode: Callable[[Tensor], Tensor],
        z: Tensor,
        increments: Increments,
        evaluations: Counter[str],
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._increments = increments
        dx = Linearization.of(decode, z, evaluations, "decoder").jvp(increments.z)
        self.shape = dx.shape[1], dx.shape[2], dx.shape[3]
        self.patch = dx.shape[2] // z.shape[2], dx.shape[3] // z.shape[3]
        patches = dx.unflatten(3, (-1, self.patch[1])).unflatten(2, (-1, self.patch[0])).permute(1, 3, 5, 0, 2, 4)
        self.weight = increments.fit(patches.flatten(0, 2).flatten(1)).to(dtype or dx.dtype)

    def decode(self, dz: Tensor) -> Tensor:
        """W * dz."""
        size = dz.shape[2] * self.patch[0], dz.shape[3] * self.patch[1]
        return F.fold(self.weight.T @ self._increments.neighbourhoods(dz), size, self.patch, stride=self.patch)

    def features(self, dz: Tensor) -> tuple[Tensor, ...]:
        """What the head decodes: the increment itself."""
        return (dz,)

    def heads(self) -> tuple[Head, ...]:
        """The convolution, see ``models.head``."""
        weight = self.weight.unflatten(0, (-1, 9)).permute(2, 1, 0)
        edges = self._increments.periodic, self._increments.poles
        return (Head(weight, weight.new_zeros(()), self.shape, self.patch, *edges),)

"""The linear heads that decoders end in, as what makes any one number of the state.

A head makes the state of features, a patch of p x q points at every place of the features' grid:

    x[m, c, y, x] = bias[c, y, x] + sum_tf weight[(c, y mod p, x mod q), t, f] features[m, f, place(y / p, x / q), t]

with t over the k x k places around a place, as ``geo_pad`` continues the grid. That is a 1 x 1 or 3 x 3 convolution
(p = q = 1) as well as an un-patchify projection (k = 1).

An autoencoder (or ``PatchTangent``) has a head when it offers ``features(z)``, a tuple of Tensor (M, F, h, w), and
``heads()``, as many ``Head``; its ``decode(z)`` is the sum of each head on its features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lsda_fast.kernels.geo_conv import geo_conv_products
from lsda_fast.kernels.geo_pad import geo_fold, geo_pad
from lsda_fast.kernels.head_plan import HeadPlan
from lsda_fast.kernels.packed import BLOCK
from lsda_fast.models.layers import GeoConv2d

__all__ = ["Head"]


@dataclass(frozen=True)
class Head:
    """One linear head; see the module's equation.

    Parameters
    ----------
    weight : Tensor, shape (C p q, k k, F)
    bias : Tensor, shape (C, H, W) or one that broadcasts to it
    shape : (C, H, W)
    patch : (p, q)
    periodic, poles
        As for ``geo_pad``; without meaning for k = 1.
    """

    weight: Tensor
    bias: Tensor
    shape: tuple[int, int, int]
    patch: tuple[int, int] = (1, 1)
    periodic: bool = False
    poles: Sequence[bool] = (False, False)

    @classmethod
    def of_convolution(cls, layer: GeoConv2d, shape: tuple[int, int, int]) -> "Head":
        """A decoder that ends in this convolution."""
        weight, bias = layer.conv.weight.flatten(2).mT, layer.conv.bias
        assert bias is not None
        return cls(weight, bias[:, None, None], shape, periodic=layer.periodic, poles=layer.poles)

    @property
    def grid(self) -> tuple[int, int]:
        """Places (h, w) of the features."""
        return self.shape[1] // self.patch[0], self.shape[2] // self.patch[1]

    def neighbours(self) -> Tensor:
        """The places (h w, k k) around each place: ``geo_pad`` itself, on their numbers."""
        (h, w), k = self.grid, 2 * self._reach + 1
        number = torch.arange(h * w, device=self.weight.device).reshape(1, 1, h, w)
        padded = geo_pad(number, self._reach, self.periodic, self.poles)[0, 0]
        return padded.unfold(0, k, 1).unfold(1, k, 1).reshape(h * w, k * k)

    def state(self, features: Tensor) -> Tensor:
        """What it makes of features (M, F, h, w) everywhere, (M, C, H, W), without the bias."""
        C, H, W = self.shape
        patches = self._everywhere(features)
        parts = patches.unflatten(1, (C, *self.patch)).permute(0, 1, 4, 2, 5, 3)
        return parts.reshape(-1, C, H, W)

    def state_adjoint(self, x: Tensor) -> Tensor:
        """The transpose, of states (M, C, H, W)."""
        (h, w), (p, q) = self.grid, self.patch
        patches = x.unflatten(3, (w, q)).unflatten(2, (h, p)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
        return geo_fold(F.conv_transpose2d(patches, self._kernel), self._reach, self.periodic, self.poles)

    def _everywhere(self, features: Tensor) -> Tensor:
        """All rows of the weight at every place, (M, C p q, h, w)."""
        kernel, pad = self._kernel, (self._reach, self.periodic, self.poles)
        count = len(kernel)
        # Filled up to what C++ reads together, which it still does in half the time of torch.
        own = geo_conv_products(features, F.pad(kernel, [0] * 7 + [-count % BLOCK]), None, pad) if self._reach else None
        return own[0][:, :count] if own else F.conv2d(geo_pad(features, *pad), kernel)

    @property
    def _reach(self) -> int:
        return round(self.weight.shape[1] ** 0.5) // 2

    @property
    def _kernel(self) -> Tensor:
        """The weight as a convolution's, (C p q, F, k, k)."""
        k = 2 * self._reach + 1
        return self.weight.mT.unflatten(2, (k, k))

    def at(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """The feature place, and the row of the weight, that make each of these cells of the flattened state."""
        (_, H, W), (p, q) = self.shape, self.patch
        channel, y, x = cells // (H * W), cells // W % H, cells % W
        return y // p * (W // q) + x // q, (channel * p + y % p) * q + x % q

    def plan(self, cells: Tensor, round_up: Callable[[int], int] | None = None) -> HeadPlan:
        """The head at these cells (U,) of the flattened state; ``round_up`` as for ``HeadPlan``."""
        place, row = self.at(cells)
        return HeadPlan.from_rows(self.weight, self.neighbours(), place, row, round_up=round_up)

    def offset(self, cells: Tensor) -> Tensor:
        """The bias at these cells, (U,)."""
        return self.bias.expand(self.shape).flatten()[cells]

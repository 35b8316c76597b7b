"""Decoders that end in linear heads, observed through them without forming the state.

A head makes the state of features, a patch of p x q points at every place of the features' grid:

    x[m, c, y, x] = bias[c, y, x] + sum_tf weight[(c, y mod p, x mod q), t, f] features[m, f, place(y / p, x / q), t]

with t over the k x k places around a place, as ``geo_pad`` continues the grid. That is a 1 x 1 or 3 x 3 convolution
(p = q = 1) as well as an un-patchify projection (k = 1). A stencil operator commutes with it: the features of the
cells that it touches are projected to those cells alone, and the operator takes the observations from there. Equal to
decoding and observing up to rounding.

An autoencoder (or ``PatchTangent``) has a head when it offers ``features(z)``, a tuple of Tensor (M, F, h, w), and
``heads()``, as many ``Head``; its ``decode(z)`` is the sum of each head on its features.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lsda_fast.kernels.head_plan import HeadPlan
from lsda_fast.kernels.head_project import head_project
from lsda_fast.kernels.obs_plan import ObservationPlan
from lsda_fast.kernels.obs_project import obs_project
from lsda_fast.models.layers import GeoConv2d, geo_pad
from lsda_fast.observations.affine import SparseAffine

__all__ = ["Head", "HeadedDecoder"]

Observed = Callable[[Tensor], Tensor]

# Share of the state's cells above which forming all of them is as quick (bench/head.py: 34 % touched, still 2 % saved).
_DENSE = 0.4


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
        (h, w), k = self.grid, round(self.weight.shape[1] ** 0.5)
        number = torch.arange(h * w, device=self.weight.device).reshape(1, 1, h, w)
        padded = geo_pad(number, k // 2, self.periodic, self.poles)[0, 0]
        return padded.unfold(0, k, 1).unfold(1, k, 1).reshape(h * w, k * k)

    def plan(self, cells: Tensor) -> HeadPlan:
        """The head at these cells (U,) of the flattened state."""
        (_, H, W), (p, q) = self.shape, self.patch
        channel, y, x = cells // (H * W), cells // W % H, cells % W
        place = y // p * (W // q) + x // q
        return HeadPlan.from_rows(self.weight, self.neighbours(), place, (channel * p + y % p) * q + x % q)

    def offset(self, cells: Tensor) -> Tensor:
        """The bias at these cells, (U,)."""
        return self.bias.expand(self.shape).flatten()[cells]


@dataclass(frozen=True, eq=False)
class HeadedDecoder:
    """A decoder with its heads.

    Parameters
    ----------
    decode : callable z (M, *latent) -> x (M, C, H, W)
    features : callable z -> tuple of Tensor (M, F, h, w)
    heads : sequence of Head
        ``decode(z)`` is their sum on the features.
    """

    decode: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], tuple[Tensor, ...]]
    heads: Sequence[Head]
    _made: WeakKeyDictionary[SparseAffine, Observed] = field(default_factory=WeakKeyDictionary, init=False, repr=False)

    def __call__(self, z: Tensor) -> Tensor:
        """The whole state."""
        return self.decode(z)

    def observe(self, operator: Any) -> Observed:
        """z -> H(D(z)), (M, P): through the heads for a stencil that does not touch most of the state, else of it all.

        What is prepared for a stencil is kept as long as the stencil.
        """
        decode = self.decode
        if not isinstance(operator, SparseAffine):
            return lambda z: operator(decode(z))
        if operator not in self._made:
            self._made[operator] = self._of_stencil(operator)
        return self._made[operator]

    def _of_stencil(self, operator: SparseAffine) -> Observed:
        index, weight = operator.index, operator.weight
        if weight.numel():
            # Points without weight are not looked at.
            heaviest = index.gather(1, weight.abs().argmax(1, keepdim=True))
            index = torch.where(weight != 0, index, heaviest)
        cells, compact = index.unique(return_inverse=True)
        if len(cells) > _DENSE * math.prod(operator.shape):
            decode, kept = self.decode, copy(operator)  # a copy: who holds the key of a weak dictionary keeps it alive
            return lambda z: kept(decode(z))
        plan = ObservationPlan.from_stencil(compact, weight, len(cells))
        plans = [head.plan(cells) for head in self.heads]
        bias = torch.stack([head.offset(cells) for head in self.heads]).sum(0, keepdim=True)
        offset = operator.offset + obs_project(bias, plan)[0]

        def observed(z: Tensor) -> Tensor:
            first, *others = (head_project(f, p) for f, p in zip(self.features(z), plans, strict=True))
            return obs_project(sum(others, first), plan) + offset

        return observed

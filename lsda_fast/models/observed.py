"""Decoders observed through their heads, without forming the state.

A stencil operator commutes with the linear heads (``models.head``) that a decoder ends in: the features of the cells
that it touches are projected to those cells alone, and the operator takes the observations from there,

    H D(u) = S sum_i P_i f_i(z(u)) + offset,   J v = S sum_i P_i J_i A v,   J' r = A' sum_i J_i' P_i' S' r

with A the derivative of z(u): equal to decoding and observing up to rounding. J J' needs A A' alone, which a whitening
has at once. With ``products`` the derivatives J_i of the features are those written out by hand
(``models.decoder_derivatives``) instead of torch.func's.
"""

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lsda_fast.kernels.head_plan import HeadPlan
from lsda_fast.kernels.head_project import head_adjoint, head_project
from lsda_fast.kernels.obs_plan import ObservationPlan
from lsda_fast.kernels.obs_project import obs_adjoint, obs_project
from lsda_fast.kernels.obs_residual import Departures, obs_residual
from lsda_fast.kernels.restricted_solve import ObservedCovariance
from lsda_fast.models.decoder_derivatives import feature_derivatives, features_are_latents
from lsda_fast.models.zonal_whitening import ZonalCovariance
from lsda_fast.observations.affine import SparseAffine
from lsda_fast.prior import Derivative, Differentiable, Gram

__all__ = ["HeadedDecoder", "Observed", "cell_derivative", "cell_values", "headed_decode"]

Observed = Callable[[Tensor], Tensor]

# Share of the state's cells above which forming all of them is as quick (bench/head.py: 34 % touched, still 2 % saved).
_DENSE = 0.4


@dataclass(frozen=True, eq=False)
class HeadedDecoder:
    """A decoder with heads, behind a map from the sampler's variable to its latent.

    Parameters
    ----------
    model : Any
        With ``decode``, ``features`` and ``heads``, see ``models.head``.
    latent : Differentiable
        u (M, *latent) -> z (M, *latent).
    products : bool
        Whether the features' derivatives are those written out by hand.
    network : Any, optional
        What makes the features that observations are taken from, the model itself when not given: the model in a
        lower precision (``models.precision``). States are always decoded by the model.
    """

    model: Any
    latent: Differentiable
    products: bool = False
    network: Any = None
    _made: WeakKeyDictionary[SparseAffine, Observed] = field(default_factory=WeakKeyDictionary, init=False, repr=False)

    def __call__(self, u: Tensor) -> Tensor:
        """The whole state."""
        return self.model.decode(self.latent(u))

    def observe(self, operator: Any) -> Observed:
        """u -> H(D(u)), (M, P): through the heads for a stencil that does not touch most of the state, else of it all.

        What is prepared for a stencil is kept as long as the stencil.
        """
        if not isinstance(operator, SparseAffine):
            return lambda u: operator(self(u))
        if operator not in self._made:
            self._made[operator] = self._of_stencil(operator)
        return self._made[operator]

    def _of_stencil(self, operator: SparseAffine) -> Observed:
        cells, compact = operator.touched.unique(return_inverse=True)
        # Who holds the key of a weak dictionary, or self, keeps it alive.
        model, latent, network = self.model, self.latent, self.network or self.model
        if len(cells) > _DENSE * math.prod(operator.shape) and not self.products:
            kept = copy(operator)
            return lambda u: kept(model.decode(latent(u)))
        round_up = operator.round_up
        if round_up:
            idle = torch.arange(round_up(len(cells)) - len(cells), device=cells.device)
            cells = torch.cat([cells, cells[idle % max(len(cells), 1)]])
        heads = model.heads()
        weight = operator.weight.to(heads[0].weight)
        plan = ObservationPlan.from_stencil(compact, weight, len(cells), round_up=round_up)
        plans = [head.plan(cells, round_up) for head in heads]
        bias = torch.stack([head.offset(cells) for head in heads]).sum(0, keepdim=True)
        offset = operator.offset + obs_project(bias, plan)[0]
        observed = _Headed(network, latent, plans, plan, offset)
        return observed if self.products else observed.__call__


@dataclass(frozen=True, eq=False)
class _Headed:
    """u -> H(D(u)) with its derivative, and with what the observations say to it."""

    network: Any
    latent: Differentiable
    plans: list[HeadPlan]
    plan: ObservationPlan
    offset: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is prepared for the stencil, and what the latent is made with."""
        plans = (t for head in self.plans for t in head.tensors)
        return (self.offset, *self.plan.tensors, *plans, *self.latent.tensors)

    def __call__(self, u: Tensor) -> Tensor:
        return obs_project(cell_values(self.network.features(self.latent(u)), self.plans), self.plan) + self.offset

    def derivative(self, u: Tensor) -> Derivative:
        """Value and products."""
        values, jvp, vjp, gram = self._linearize(u)
        return Derivative(obs_project(values, self.plan) + self.offset, jvp, vjp, gram)

    def departures(self, u: Tensor, y: Tensor, **data: Any) -> tuple[Departures, tuple[Observed, Observed]]:
        """``obs_residual`` of the values at the stencil's cells, and the products."""
        values, jvp, vjp, _ = self._linearize(u)
        return obs_residual(values, self.plan, y - self.offset, **data), (jvp, vjp)

    def _linearize(self, u: Tensor) -> Derivative:
        """The values at the stencil's cells, and the products of the observations of them."""
        z = self.latent.derivative(u)
        values, jvp, vjp, _ = cell_derivative(self.network, self.plans, z.value)
        forward = lambda v: obs_project(jvp(v), self.plan)  # noqa: E731
        adjoint = lambda r: vjp(obs_adjoint(r, self.plan))  # noqa: E731
        covariance, gram = z.gram, None
        if covariance is not None:
            gram = Gram(lambda r: forward(covariance(adjoint(r))), self._solve(covariance))
        return Derivative(values, lambda v: forward(z.jvp(v)), lambda r: z.vjp(adjoint(r)), gram)

    def _solve(self, covariance: Any) -> Any:
        """See ``prior.Gram``."""
        if not isinstance(covariance, ZonalCovariance) or not features_are_latents(self.network):
            return None
        return ObservedCovariance(self.plan, self.plans[0], covariance.square).solve


def headed_decode(model: Any, network: Any = None) -> Differentiable:
    """The model's ``decode`` with the derivative of ``models.decoder_derivatives`` (of ``network``) and its heads."""
    heads = model.heads()
    bias = _total(head.bias for head in heads)
    state = lambda features: _total(head.state(f) for head, f in zip(heads, features))  # noqa: E731

    def derivative(z: Tensor) -> Derivative:
        parts = feature_derivatives(network or model, z)
        return Derivative(
            state(part.value for part in parts) + bias,
            lambda v: state(part.jvp(v) for part in parts),
            lambda u: _total(part.vjp(head.state_adjoint(u)) for head, part in zip(heads, parts)),
        )

    return Differentiable(model.decode, derivative)


def cell_derivative(network: Any, plans: list[HeadPlan], z: Tensor) -> Derivative:
    """What the heads make at the plans' cells of the features at z, without bias."""
    parts = feature_derivatives(network, z)

    def vjp(values: Tensor) -> Tensor:
        return _total(part.vjp(_features(values, plan, part.value)) for part, plan in zip(parts, plans))

    value = cell_values([part.value for part in parts], plans)
    return Derivative(value, lambda v: cell_values([part.jvp(v) for part in parts], plans), vjp)


def cell_values(features: Any, plans: list[HeadPlan]) -> Tensor:
    """What the heads make of the features at the plans' cells, without bias."""
    return _total(map(head_project, features, plans))


def _features(values: Tensor, plan: HeadPlan, like: Tensor) -> Tensor:
    """What ``values`` at the wanted cells are to the features (M, F, h, w), channels last in memory."""
    F, h, w = like.shape[1:]
    return head_adjoint(values, plan, last=True).reshape(len(values), h, w, F).permute(0, 3, 1, 2)


def _total(parts: Any) -> Tensor:
    first, *others = parts
    return sum(others, first)

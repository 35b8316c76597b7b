"""Trajectories observed through the decoder's heads, without forming states: ``models.observed`` for many times.

The features of the observed times are projected to the cells that some time is observed at; derivatives are those
written out by hand. Latents go through in parts of ``chunk``; features of the first are kept for the
products, those of the others made anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lsda_fast.kernels.head_plan import HeadPlan
from lsda_fast.kernels.obs_plan import ObservationPlan
from lsda_fast.kernels.obs_project import obs_adjoint, obs_project
from lsda_fast.kernels.obs_residual import Departures, obs_residual
from lsda_fast.models.head import Head
from lsda_fast.models.merged_head import merge
from lsda_fast.models.observed import Observed, cell_derivative, cell_values
from lsda_fast.observations.affine import SparseAffine
from lsda_fast.prior import Derivative, OfTimes, ToTimes

__all__ = ["HeadedTrajectory"]


@dataclass(frozen=True, eq=False)
class HeadedTrajectory:
    """v (M, T, c, h, w) -> H(D(v)), (M, P), with its derivative and with what the observations say to it."""

    network: Any
    model: Any
    times: Tensor
    plans: list[HeadPlan]
    plan: ObservationPlan
    offset: Tensor
    chunk: int

    @classmethod
    def of(
        cls,
        network: Any,
        heads: Sequence[Head],
        model: Any,
        times: Tensor,
        operator: SparseAffine,
        size: int,
        chunk: int,
    ) -> "HeadedTrajectory":
        """Of a stencil over the states of ``times`` alone, each of ``size`` numbers."""
        time, cell = operator.index // size, operator.index % size
        bias = torch.stack([head.offset(cell.flatten()) for head in heads]).sum(0).reshape(cell.shape)
        offset = operator.offset + (bias * operator.weight).sum(-1)
        merged = merge(heads[0], operator.index, operator.weight, size) if len(heads) == 1 else None
        if merged is not None:
            plans, index, weight = [merged.plan], merged.where, merged.weight
        else:
            cells, at = cell.unique(return_inverse=True)
            plans, index, weight = [head.plan(cells) for head in heads], time * len(cells) + at, operator.weight
        plan = ObservationPlan.from_stencil(index, weight, len(times) * plans[0].size, round_up=operator.round_up)
        return cls(network, model, times, plans, plan, offset, chunk)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is prepared for the stencil."""
        return (self.offset, self.times, *self.plan.tensors, *(t for head in self.plans for t in head.tensors))

    def __call__(self, v: Tensor) -> Tensor:
        parts = [cell_values(self.network.features(z), self.plans) for z in self._latents(v)]
        return obs_project(torch.cat(parts).reshape(len(v), -1), self.plan) + self.offset

    def derivative(self, v: Tensor) -> Derivative:
        """Value and products."""
        values, jvp, vjp = self._linearize(v)
        return Derivative(obs_project(values, self.plan) + self.offset, jvp, vjp)

    def departures(self, v: Tensor, y: Tensor, **data: Any) -> tuple[Departures, tuple[Observed, Observed]]:
        """``obs_residual`` of the values at the stencil's cells, and the products."""
        values, jvp, vjp = self._linearize(v)
        return obs_residual(values, self.plan, y - self.offset, **data), (jvp, vjp)

    def _latents(self, v: Tensor) -> tuple[Tensor, ...]:
        seen = v[:, self.times]
        return (seen if self.model is None else self.model.restore(seen)).flatten(0, 1).split(self.chunk)

    def _linearize(self, v: Tensor) -> tuple[Tensor, Observed, Observed]:
        points = self._latents(v)
        make = partial(cell_derivative, self.network, self.plans)
        kept = make(points[0])
        values = torch.cat([kept.value] + [make(z).value for z in points[1:]]).reshape(len(v), -1)
        parts = lambda: (kept if i == 0 else make(z) for i, z in enumerate(points))  # noqa: E731
        std = 1.0 if self.model is None else self.model.std

        def jvp(u: Tensor) -> Tensor:
            changes = (std * u).flatten(0, 1).split(self.chunk)
            cells = torch.cat([part.jvp(d) for part, d in zip(parts(), changes)])
            return obs_project(cells.reshape(len(v), -1), self.plan)

        def vjp(r: Tensor) -> Tensor:
            cells = obs_adjoint(r, self.plan).reshape(len(v) * len(self.times), -1).split(self.chunk)
            return std * torch.cat([part.vjp(d) for part, d in zip(parts(), cells)]).unflatten(0, (len(v), -1))

        return values, OfTimes(self.times, jvp), ToTimes(self.times, v.shape[1], vjp)

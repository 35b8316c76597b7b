"""The decoder of a trajectory: T latents to T states, whose channels stand one time behind the other.

Channel t C + c of the (T C, H, W) numbers is channel c at time t: a stencil operator of that shape observes a window,
in space and in time. Latents are decoded some at a time, and what ``derivative`` gives decodes them anew in the same
parts, so that memory does not grow with members and times.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsda_fast.prior import Derivative, Differentiable

__all__ = ["TrajectoryDecoder"]


@dataclass(frozen=True, eq=False)
class TrajectoryDecoder:
    """v (M, T, c, h, w) -> x (M, T C, H, W).

    Parameters
    ----------
    autoencoder : Any
    model : StationaryTrajectories, optional
        Whose standardised variable v is; the latent itself when not given.
    length : int
        T.
    chunk : int
        Latents that are decoded together, those of all members counted.
    """

    autoencoder: Any
    model: Any
    length: int
    chunk: int = 64

    def __call__(self, v: Tensor) -> Tensor:
        """The states of all times."""
        return self._states(torch.cat([self._decode(part) for part in v.flatten(0, 1).split(self.chunk)]))

    def encode(self, x: Tensor) -> Tensor:
        """The variable (M, T, c, h, w) of states (M, T C, H, W)."""
        states = x.unflatten(1, (self.length, -1)).flatten(0, 1)
        z = torch.cat([self.autoencoder.encode(part) for part in states.split(self.chunk)])
        return (z if self.model is None else self.model.standardize(z)).unflatten(0, (-1, self.length))

    def derivative(self, v: Tensor) -> Derivative:
        """Value and products."""
        points = v.flatten(0, 1).split(self.chunk)
        if len(points) == 1:
            return Derivative.of(self.__call__, v)

        def jvp(u: Tensor) -> Tensor:
            parts = zip(points, u.flatten(0, 1).split(self.chunk))
            return self._states(torch.cat([torch.func.jvp(self._decode, (z,), (d,))[1] for z, d in parts]))

        def vjp(r: Tensor) -> Tensor:
            parts = zip(points, r.unflatten(1, (self.length, -1)).flatten(0, 1).split(self.chunk))
            pulls: list[Any] = [torch.func.vjp(self._decode, z)[1](d)[0] for z, d in parts]
            return torch.cat(pulls).reshape(v.shape)

        return Derivative(self(v), jvp, vjp)

    def observe(self, operator: Callable[[Tensor], Tensor]) -> Differentiable:
        """v -> H(D(v)), (M, P)."""

        def derivative(v: Tensor) -> Derivative:
            states = self.derivative(v)
            y = Derivative.of(operator, states.value)
            return Derivative(y.value, lambda u: y.jvp(states.jvp(u)), lambda r: states.vjp(y.vjp(r)))

        return Differentiable(lambda v: operator(self(v)), derivative)

    def _decode(self, v: Tensor) -> Tensor:
        return self.autoencoder.decode(v if self.model is None else self.model.restore(v))

    def _states(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, self.length)).flatten(1, 2)

"""The decoder of a trajectory: T latents to T states, whose channels stand one time behind the other.

Channel t C + c of the (T C, H, W) numbers is channel c at time t: a stencil operator of that shape observes a window,
in space and in time. Times that it does not touch are not decoded. Latents are decoded some at a time, and what
``derivative`` gives decodes them anew in the same parts, so that memory does not grow with members and times.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.models.observed_trajectory import HeadedTrajectory
from lsda_fast.observations.affine import SparseAffine
from lsda_fast.prior import Derivative, Differentiable

__all__ = ["TrajectoryDecoder"]


@dataclass(frozen=True, eq=False)
class TrajectoryDecoder:
    """v (M, T, c, h, w) -> x (M, T C, H, W), for any T.

    Parameters
    ----------
    autoencoder : Any
    model : StationaryTrajectories, optional
        Whose standardised variable v is; the latent itself when not given.
    shape : (C, H, W)
        Of one state.
    length : int
        T of the states that are encoded, and of the trajectories that stencils observe.
    chunk : int
        Latents that are decoded together, those of all members counted.
    headed : bool
        Whether stencils observe through the decoder's heads (``models.observed_trajectory``).
    network : Any, optional
        What makes the features of the heads, the autoencoder itself when not given: it in a lower precision.
    """

    autoencoder: Any
    model: Any
    shape: tuple[int, int, int]
    length: int
    chunk: int = 64
    headed: bool = False
    network: Any = None
    _made: WeakKeyDictionary[SparseAffine, Any] = field(default_factory=WeakKeyDictionary, init=False, repr=False)

    def __call__(self, v: Tensor) -> Tensor:
        """The states of all times."""
        return _states(torch.cat([self._decode(part) for part in v.flatten(0, 1).split(self.chunk)]), v.shape[1])

    def encode(self, x: Tensor) -> Tensor:
        """The variable (M, T, c, h, w) of states (M, T C, H, W)."""
        states = x.unflatten(1, (self.length, -1)).flatten(0, 1)
        z = torch.cat([self.autoencoder.encode(part) for part in states.split(self.chunk)])
        return (z if self.model is None else self.model.standardize(z)).unflatten(0, (-1, self.length))

    def derivative(self, v: Tensor) -> Derivative:
        """Value and products."""
        points, T = v.flatten(0, 1).split(self.chunk), v.shape[1]
        if len(points) == 1:
            return Derivative.of(self.__call__, v)

        def jvp(u: Tensor) -> Tensor:
            parts = zip(points, u.flatten(0, 1).split(self.chunk))
            return _states(torch.cat([torch.func.jvp(self._decode, (z,), (d,))[1] for z, d in parts]), T)

        def vjp(r: Tensor) -> Tensor:
            parts = zip(points, r.unflatten(1, (T, -1)).flatten(0, 1).split(self.chunk))
            pulls: list[Any] = [torch.func.vjp(self._decode, z)[1](d)[0] for z, d in parts]
            return torch.cat(pulls).reshape(v.shape)

        return Derivative(self(v), jvp, vjp)

    def observe(self, operator: Callable[[Tensor], Tensor]) -> Any:
        """v -> H(D(v)), (M, P). What is prepared for a stencil is kept as long as the stencil.

        Raises
        ------
        InputError
            A stencil on states of another shape than the trajectory's, (T C, H, W).
        """
        if not isinstance(operator, SparseAffine):
            return self._observed(operator)
        wanted = (self.length * self.shape[0], *self.shape[1:])
        if tuple(operator.shape) != wanted:
            raise InputError(
                f"an operator on {tuple(operator.shape)} came; accepted is one on the trajectory, {wanted}"
            )
        if operator not in self._made:
            self._made[operator] = self._of_stencil(operator)
        return self._made[operator]

    def _of_stencil(self, operator: SparseAffine) -> Any:
        C, H, W = self.shape
        size, index = C * H * W, operator.touched
        times, at = (index // size).unique(return_inverse=True)
        if not len(times):
            times = index.new_zeros(1)
        compact = copy(operator)
        compact.index, compact.shape = at * size + index % size, (len(times) * C, H, W)
        if self.headed:
            network, heads = self.network or self.autoencoder, self.autoencoder.heads()
            return HeadedTrajectory.of(network, heads, self.model, times, compact, size, self.chunk)
        return self._observed(compact, times)

    def _observed(self, operator: Callable[[Tensor], Tensor], times: Tensor | None = None) -> Differentiable:
        pick = lambda v: v if times is None else v[:, times]  # noqa: E731

        def derivative(v: Tensor) -> Derivative:
            states = self.derivative(pick(v))
            y = Derivative.of(operator, states.value)

            def vjp(r: Tensor) -> Tensor:
                u = states.vjp(y.vjp(r))
                return u if times is None else u.new_zeros(v.shape).index_copy(1, times, u)

            return Derivative(y.value, lambda u: y.jvp(states.jvp(pick(u))), vjp)

        return Differentiable(lambda v: operator(self(pick(v))), derivative)

    def _decode(self, v: Tensor) -> Tensor:
        return self.autoencoder.decode(v if self.model is None else self.model.restore(v))


def _states(x: Tensor, T: int) -> Tensor:
    return x.unflatten(0, (-1, T)).flatten(1, 2)

"""Trajectories from short windows: what is estimated for each of T states, from windows of 2 k + 1 consecutive ones.

In a Markov chain of order k a state's score depends, as the noise goes to zero, on the k states before and after it
alone. With noise that is an approximation which improves with k (Rozet & Louppe 2023, arXiv:2306.10574, algorithm 2):

    s_i(z_1 .. z_T) = s_i(z_i-k .. z_i+k),  the first k states from the first window, the last k from the last.

A clean estimate is affine in the score, state by state, and is composed in the same way.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.prior import Derivative

__all__ = ["Composed", "Window"]


@dataclass(frozen=True)
class Window:
    """A window of consecutive states.

    Parameters
    ----------
    size : int
        States in it, 2 k + 1.
    hours : float
        Between one state and the next.

    Raises
    ------
    InputError
        A size that is even or below 1, or hours that are not positive.
    """

    size: int
    hours: float

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % 2 == 0 or not self.hours > 0:
            raise InputError(f"{self}: accepted are an odd size of at least 1 and hours above 0")

    @property
    def order(self) -> int:
        """States on either side of the centre, k."""
        return self.size // 2

    def check(self, length: int) -> None:
        """InputError where a trajectory of ``length`` states has no whole window."""
        if length < self.size:
            raise InputError(f"a trajectory of {length} states; accepted are at least the window's {self.size}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self)


class _Part(NamedTuple):
    """Windows ``first`` to ``stop``, and the states ``low`` to ``high`` that are taken from them."""

    first: int
    stop: int
    low: int
    high: int


@dataclass(frozen=True, eq=False)
class Composed:
    """z (M, T, ...) -> the composed estimate (M, T, ...), some windows at a time.

    Parameters
    ----------
    estimate : callable (windows (M, n, size, ...), first: int) -> (M, n, size, ...)
        The estimates in n windows, ``first`` the number of the first of them.
    size : int
        States of a window, at most T.
    chunk : int
        Windows that are estimated together, those of all members counted. The products of ``derivative`` go through
        them in the same parts, and evaluate each part anew: no more than one part is ever held.
    """

    estimate: Callable[[Tensor, int], Tensor]
    size: int
    chunk: int = 64

    def __call__(self, z: Tensor) -> Tensor:
        """The composed estimate."""
        return torch.cat([self._of(part, z.shape[1], self._seen(z, part)) for part in self._parts(z)], dim=1)

    def derivative(self, z: Tensor) -> Derivative:
        """Value and products."""
        parts = [(part, partial(self._of, part, z.shape[1]), self._seen(z, part)) for part in self._parts(z)]
        if len(parts) == 1:
            return Derivative.of(parts[0][1], z)

        def jvp(v: Tensor) -> Tensor:
            products = [torch.func.jvp(f, (seen,), (self._seen(v, part),))[1] for part, f, seen in parts]
            return torch.cat(products, dim=1)

        def vjp(u: Tensor) -> Tensor:
            total = torch.zeros_like(u)
            for part, f, seen in parts:
                pull: Any = torch.func.vjp(f, seen)[1]
                self._seen(total, part).add_(pull(u[:, part.low : part.high])[0])
            return total

        return Derivative(torch.cat([f(seen) for _, f, seen in parts], dim=1), jvp, vjp)

    def _parts(self, z: Tensor) -> Iterator[_Part]:
        T, k = z.shape[1], self.size // 2
        windows = T - 2 * k
        count = max(1, self.chunk // max(1, len(z)))
        for first in range(0, windows, count):
            stop = min(first + count, windows)
            yield _Part(first, stop, 0 if first == 0 else first + k, T if stop == windows else stop + k)

    def _seen(self, z: Tensor, part: _Part) -> Tensor:
        """The states that the part's windows see."""
        return z[:, part.first : part.stop + self.size - 1]

    def _of(self, part: _Part, T: int, seen: Tensor) -> Tensor:
        """The states that are taken from the part's windows."""
        k = self.size // 2
        estimate = self.estimate(seen.unfold(1, self.size, 1).movedim(-1, 2), part.first)
        kept = [estimate[:, :, k]]
        if part.low == 0:
            kept.insert(0, estimate[:, 0, :k])
        if part.high == T:
            kept.append(estimate[:, -1, k + 1 :])
        return torch.cat(kept, dim=1)

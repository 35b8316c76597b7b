"""What a sampler sees of a model: the prior of one analysis, p(z | z_b), and how a latent becomes a state.

``z`` here is the sampler's variable. For a whitened package it is the control variable u = S^-1/2 (z - z_b), for a
plain one the standardised latent itself; the closures hide which. Everything downstream works on tensors
(M, *latent_shape).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lsda_fast.diffusion.schedule import Level, Schedule

__all__ = [
    "Covariance",
    "Derivative",
    "Differentiable",
    "EigenCovariance",
    "Gram",
    "Linearization",
    "OfTimes",
    "Prior",
    "Scaling",
    "ToTimes",
    "observe",
    "sloped",
]


Product = Callable[[Tensor], Tensor]


class Covariance(Protocol):
    """A symmetric positive covariance S of latents, known by its eigenvalues s."""

    def apply(self, v: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """f(S) v for v (M, *latent), ``function`` of tensors of eigenvalues, element by element.

        One that has a method ``of``, ``function`` -> f(S), is asked for products so.
        """


@dataclass(frozen=True)
class EigenCovariance:
    """A symmetric positive covariance S = V diag(variance) V' of flattened latents.

    Parameters
    ----------
    vectors : Tensor, shape (k, k)
        Orthonormal columns.
    variance : Tensor, shape (k,)
    """

    vectors: Tensor
    variance: Tensor

    def apply(self, v: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """V f(variance) V' v for v (M, *latent)."""
        flat = v.flatten(1) @ self.vectors
        return ((flat * function(self.variance)) @ self.vectors.T).reshape(v.shape)


@dataclass(frozen=True)
class Prior:
    """The prior of one analysis, as callables on tensors.

    Parameters
    ----------
    schedule : Schedule
    latent_shape : tuple of int
    denoise : callable (z_t (M, *latent), Level) -> z0 (M, *latent)
        The clean estimate E[z | z_t, z_b]. One with a method ``derivative`` of the same arguments is differentiated so.
    decode : callable z (M, *latent) -> x (M, C, H, W)
        The normalised state. One that can ``observe`` (``models.head``) is observed without forming it.
    encode : callable x (M, C, H, W) -> z (M, *latent), optional
        Needed by Repaint alone.
    tangent : callable Counter -> (callable z (M, *latent) -> x (M, C, H, W)), optional
        Makes, once, a cheap linear map close to the decoder's derivative, for preconditioning; what that evaluates is
        added to the counter.
    tangent_dtype : torch.dtype, optional
        Of the variable that the tangent takes, and of its products; ``dtype`` when not given.
    variance : Tensor, shape latent_shape, optional
        Variance of the clean latent given the background, for ``prior_covariance="diagonal"``, refused without it.
    covariance : Covariance, optional
        The same with correlations, for ``prior_covariance="stationary"``, which is refused without it.
    origin : Tensor, shape latent_shape, optional
        The background in the sampler's variable, where a warm start begins; 0 when not given.
    inputs : tuple of Tensor
        The tensors of this analysis that the callables read, in a fixed order; all else that they read are weights.
        What ``observe`` and ``tangent`` prepare is not among them.
    evaluations : Counter
        Counts of network evaluations and derivatives, in members.
    """

    schedule: Schedule
    latent_shape: tuple[int, ...]
    denoise: Callable[[Tensor, Level], Tensor]
    decode: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor] | None = None
    tangent: Callable[[Counter[str]], Callable[[Tensor], Tensor]] | None = None
    tangent_dtype: torch.dtype | None = None
    variance: Tensor | None = None
    covariance: Covariance | None = None
    origin: Tensor | None = None
    inputs: tuple[Tensor, ...] = ()
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    evaluations: Counter[str] = field(default_factory=Counter)

    def clean(self, level: Level) -> "Differentiable":
        """z_t -> E[z | z_t, z_b] at one noise level."""
        own: Any = getattr(self.denoise, "derivative", None)
        denoise = lambda z_t: self.denoise(z_t, level)  # noqa: E731
        return Differentiable(denoise, lambda z_t: own(z_t, level) if own else Derivative.of(denoise, z_t))

    def observe(self, operator: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """z -> H(D(z)), (M, P), for an operator x -> H(x)."""
        return observe(self.decode, operator)


def observe(decode: Callable[[Tensor], Tensor], operator: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """z -> H(D(z)): in the decoder's own way where it has one (``models.head``), else decode, then observe."""
    own = getattr(decode, "observe", None)
    return own(operator) if own is not None else lambda z: operator(decode(z))


class Derivative(NamedTuple):
    """A function at a point (M, ...): its value, v -> J v, u -> J' u, and u -> J J' u where that is cheaper at once.

    The members never mix. A point of one member takes directions v of any number, where the derivative is torch.func's
    or written out layer by layer (``models.derivatives``), and there u of any number too.
    """

    value: Tensor
    jvp: Callable[[Tensor], Tensor]
    vjp: Callable[[Tensor], Tensor]
    gram: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def of(cls, function: Callable[[Tensor], Tensor], point: Tensor) -> "Derivative":
        """In the function's own way, ``function.derivative(point)``, where it has one, else by torch.func."""
        own = getattr(function, "derivative", None)
        if own is not None:
            return own(point)
        point = point.contiguous()  # forward mode writes beside it, and refuses what is expanded
        pair: Any = torch.func.vjp(function, point)

        def jvp(v: Tensor) -> Tensor:
            at = point if len(point) == len(v) else point.expand_as(v).contiguous()
            return torch.func.jvp(function, (at,), (v.contiguous(),))[1]

        return cls(pair[0], jvp, lambda u: pair[1](u)[0])


@dataclass(frozen=True, eq=False)
class OfTimes:
    """v (M, T, ...) -> inner(v[:, times]), linear."""

    times: Tensor
    inner: Callable[[Tensor], Tensor]

    def __call__(self, v: Tensor) -> Tensor:
        """The product."""
        return self.inner(v[:, self.times])


@dataclass(frozen=True, eq=False)
class ToTimes:
    """u -> (M, T, ...), inner(u) at the times and 0 at others, linear."""

    times: Tensor
    length: int
    inner: Callable[[Tensor], Tensor]

    def __call__(self, u: Tensor) -> Tensor:
        """The product."""
        v = self.inner(u)
        return v.new_zeros(len(v), self.length, *v.shape[2:]).index_copy(1, self.times, v)


def sloped(jvp: Product, vjp: Product, slope: Tensor | float) -> tuple[Product, Product]:
    """v -> slope J v and u -> J'(slope u), of some times where J is."""
    of, to = (f.inner if isinstance(f, OfTimes | ToTimes) else f for f in (jvp, vjp))
    left, right = lambda v: slope * of(v), lambda u: to(slope * u)
    return (
        replace(jvp, inner=left) if isinstance(jvp, OfTimes) else left,
        replace(vjp, inner=right) if isinstance(vjp, ToTimes) else right,
    )


@dataclass(frozen=True, eq=False)
class Gram:
    """u -> slope factor K slope u.

    Parameters
    ----------
    product : callable u (M, P) -> (M, P)
        K = J J'.
    solve : callable, optional
        All of ``guidance.krylov.restricted_cg`` among the P at once, as ``ObservedCovariance.solve``.
    slope : Tensor, shape (M or 1, P), or float
    factor : float
    """

    product: Callable[[Tensor], Tensor]
    solve: Callable[..., Tensor | None] | None = None
    slope: Tensor | float = 1.0
    factor: float = 1.0

    def __call__(self, u: Tensor) -> Tensor:
        """The product."""
        return self.slope * (self.factor * self.product(self.slope * u))


@dataclass(frozen=True)
class Scaling:
    """v -> factor v, which changes places with every linear map."""

    factor: float

    def __call__(self, v: Tensor) -> Tensor:
        """Factor times v."""
        return self.factor * v


@dataclass(frozen=True, eq=False)
class Differentiable:
    """A function that knows its own derivative, and the prepared ``tensors`` that it reads."""

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Derivative]
    tensors: tuple[Tensor, ...] = ()

    def __call__(self, point: Tensor) -> Tensor:
        """The value alone."""
        return self.function(point)


class Linearization:
    """A derivative whose products are counted.

    Parameters
    ----------
    derivative : Derivative
    evaluations : Counter
        Gains ``name_vjp``, ``name_jvp`` and ``name_gram``, by members.
    name : str
    slope : Tensor, optional
        What J has as its last factor, of a weighted residual.
    cost : Tensor, shape (M,), optional
        What the value costs; half its square when not given.
    """

    def __init__(
        self,
        derivative: Derivative,
        evaluations: Counter[str],
        name: str,
        *,
        slope: Tensor | float = 1.0,
        cost: Tensor | None = None,
    ) -> None:
        self._derivative, self._evaluations, self._name, self._cost = derivative, evaluations, name, cost
        self.value, self.slope = derivative.value, slope

    @classmethod
    def of(
        cls, function: Callable[[Tensor], Tensor], point: Tensor, evaluations: Counter[str], name: str
    ) -> "Linearization":
        """Evaluate and differentiate ``function`` at ``point`` (M, ...); counted as ``name``."""
        evaluations[name] += len(point)
        return cls(Derivative.of(function, point), evaluations, name)

    def jvp(self, v: Tensor) -> Tensor:
        """J v."""
        self._evaluations[f"{self._name}_jvp"] += len(v)
        return self._derivative.jvp(v)

    def vjp(self, u: Tensor) -> Tensor:
        """J' u."""
        self._evaluations[f"{self._name}_vjp"] += len(u)
        return self._derivative.vjp(u)

    def gram(self, u: Tensor) -> Tensor:
        """J J' u."""
        own = self._derivative.gram
        if own is None:
            return self.jvp(self.vjp(u))
        self._evaluations[f"{self._name}_gram"] += len(u)
        return own(u)

    def solve(self, f: Tensor, rr: Tensor, limit: Tensor, iterations: int) -> Tensor | None:
        """``restricted_cg`` with J J' in one operation, see ``Gram``; None where there is none for these."""
        own = self._derivative.gram
        if not isinstance(own, Gram) or own.solve is None:
            return None
        x = own.solve(f, rr, limit, slope=own.slope, factor=own.factor, iterations=iterations)
        if x is not None:
            self._evaluations[f"{self._name}_gram"] += len(f) * max(iterations - 1, 0)
        return x

    @property
    def cost(self) -> Tensor:
        """By member, (M,)."""
        if self._cost is None:
            flat = self.value.flatten(1)
            self._cost = 0.5 * torch.linalg.vecdot(flat, flat)
        return self._cost

    def after(
        self, half: Callable[[Tensor], Tensor], square: Callable[[Tensor], Tensor] | None = None
    ) -> "Linearization":
        """The same as a function of v, z = m + B v, with B symmetric (``half``); ``square`` is B B where cheaper."""
        value, jvp, vjp, gram = self._derivative
        between: Any = getattr(half, "between", None)
        both: Product | None = None if square is None else lambda u: jvp(square(vjp(u)))
        if isinstance(half, Scaling):  # of the values, which are fewer as a rule
            to, back = (lambda v: half(jvp(v))), (lambda u: vjp(half(u)))
            if gram is not None:
                own = _as_gram(gram)
                both = replace(own, factor=own.factor * half.factor**2)
        elif between and isinstance(jvp, OfTimes) and isinstance(vjp, ToTimes):
            of, to_times, times = jvp.inner, vjp.inner, jvp.times
            whole: Any = square
            to, back = (lambda v: of(between(v, None, times))), (lambda u: between(to_times(u), times, None))
            if hasattr(whole, "between"):
                both = lambda u: of(whole.between(to_times(u), times, times))  # noqa: E731
        else:
            to, back = (lambda v: jvp(half(v))), (lambda u: half(vjp(u)))
        derivative = Derivative(value, to, back, both)
        return Linearization(derivative, self._evaluations, self._name, slope=self.slope, cost=self._cost)

    def scaled(self, slope: Tensor | float) -> "Linearization":
        """``slope`` times the function."""
        value, jvp, vjp, gram = self._derivative
        both = None
        if gram is not None:
            own = _as_gram(gram)
            both = replace(own, slope=slope * own.slope)
        derivative = Derivative(slope * value, *sloped(jvp, vjp, slope), both)
        return Linearization(derivative, self._evaluations, self._name, slope=slope * self.slope)

    def jacobian(self) -> Tensor:
        """J of every member, (M, n', n) of the flattened value and point."""
        n = self.value[0].numel()
        rows = torch.eye(n, dtype=self.value.dtype, device=self.value.device).reshape(n, 1, *self.value.shape[1:])
        self._evaluations[f"{self._name}_vjp"] += n * len(self.value)
        J = torch.func.vmap(lambda u: self._derivative.vjp(u.expand_as(self.value)))(rows)
        return J.flatten(2).transpose(0, 1)


def _as_gram(product: Callable[[Tensor], Tensor]) -> Gram:
    return product if isinstance(product, Gram) else Gram(product)

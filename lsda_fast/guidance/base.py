"""The parts that every guidance shares: the likelihood, the context of a noise level, the result of guiding.

A guidance corrects the prior's clean estimate with the observations, y = H(D(z)) + N(0, R), at one noise level. It is a
frozen dataclass that holds its numbers and nothing else.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from lsda_fast.diffusion.noise import Key
from lsda_fast.diffusion.schedule import Level
from lsda_fast.errors import InputError
from lsda_fast.kernels.obs_residual import Departures, departures
from lsda_fast.kernels.robust import Robust, arguments, check, stages, weigh
from lsda_fast.prior import Derivative, Linearization, Prior, observe, sloped

__all__ = ["Context", "Estimate", "Guidance", "Likelihood", "per_member"]

Observed = Callable[[Tensor], Tensor]
Pair = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def per_member(values: Tensor, like: Tensor) -> Tensor:
    """One number per member (M,), shaped to multiply ``like`` (M, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Likelihood:
    """Likelihood of the observations given a latent, of departures d = R^-1/2 (H(D(z)) - y).

    Parameters
    ----------
    operator : callable x (M, C, H, W) -> (M, P)
        Observation operator on the normalised state, in the observations' units.
    y : Tensor, shape (P,)
        Observed values.
    variance : Tensor, shape (P,)
        Diagonal of R, the representativeness of the autoencoder included.
    scale : Tensor, shape (P,)
        Climatological standard deviation of what is observed; the unit of SDA's ``gamma``.
    robust : Huber or VariationalQC, optional
        What a departure costs (``kernels.robust``); Gaussian, 1/2 d^2, when not given.
    """

    operator: Callable[[Tensor], Tensor]
    y: Tensor
    variance: Tensor
    scale: Tensor
    robust: Robust | None = None

    def padded(self, round_up: Callable[[int], int]) -> "Likelihood":
        """With inert observations behind the others, ``round_up(P)`` in all: of no weight and no departure."""
        more = round_up(len(self.y)) - len(self.y)
        fill = lambda t, value: torch.cat([t, t.new_full((more,), value)])  # noqa: E731
        return replace(
            self,
            operator=self.operator.padded(round_up),  # type: ignore[attr-defined]
            y=fill(self.y, 0.0),
            variance=fill(self.variance, torch.inf),
            scale=fill(self.scale, 1.0),
        )

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Its tensors and the operator's, in a fixed order."""
        return (self.y, self.variance, self.scale, *getattr(self.operator, "tensors", ()))

    def __post_init__(self) -> None:
        check(self.robust)
        parts = {"y": self.y, "variance": self.variance, "scale": self.scale}
        for name, part in parts.items():
            if not isinstance(part, Tensor) or part.ndim != 1 or part.shape != self.y.shape:
                came = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
                raise InputError(f"{name} came as {came}; accepted: tensors (P,), y, variance and scale alike")
            if part.dtype != self.y.dtype or not part.is_floating_point():
                raise InputError(f"{name} is {part.dtype} beside y in {self.y.dtype}; accepted: real, all alike")

    def check_values(self) -> None:
        """InputError for what a minimisation could only stand still on; asks the host."""
        bad = {
            "y": (~self.y.isfinite(), "finite values"),
            "variance": (~(self.variance > 0), "values above 0, infinite where an observation has no weight"),
            "scale": (~(self.scale > 0) | ~self.scale.isfinite(), "finite values above 0"),
        }
        # One question for all.
        counts = torch.stack([found.sum() for found, _ in bad.values()]).tolist()
        for (name, (_, accepted)), count in zip(bad.items(), counts):
            if count:
                raise InputError(f"{name} of {len(self.y)} observations: {count} cannot be; accepted: {accepted}")

    def residual(self, prior: Prior) -> Observed:
        """z -> d, shape (M, P), before any weight."""
        observed, precision = prior.observe(self.operator), self.variance.rsqrt()
        return lambda z: (observed(z) - self.y) * precision

    def linearize(self, observed: Observed, z: Tensor, noise: Tensor | None = None) -> tuple[Departures, Pair]:
        """The weighted departures of z -> H(D(z)), perturbed by ``noise`` (M, P); v -> J v and u -> J' u of H(D(z))."""
        data: Any = {"precision": self.variance.rsqrt(), "noise": noise, "robust": self.robust}
        own = getattr(observed, "departures", None)
        if own is not None:
            return own(z, self.y, **data)
        y, jvp, vjp, _ = Derivative.of(observed, z)
        return departures(y, self.y, **data), (jvp, vjp)

    def weight(self, y: Tensor) -> Tensor:
        """rho'(d) / d of H(x) = y, (M, P)."""
        return weigh((y - self.y) * self.variance.rsqrt(), *arguments(self.robust))[0]


@dataclass(frozen=True)
class Context:
    """What a guidance is given at one noise level.

    ``round`` is 0 in the level's own call, and counts from 1 in those of a corrector.
    """

    prior: Prior
    likelihood: Likelihood
    level: Level
    last: bool
    key: Key
    round: int = 0

    def noise(self, shape: tuple[int, ...], stream: int) -> Tensor:
        """Standard normals (M, *shape), keyed by seed, member, level, round and stream."""
        stream += STREAMS.count * self.round
        return self.key.normal(shape, step=self.level.index, stream=stream, dtype=self.prior.dtype)

    def combine(self, terms: Sequence[Tensor], coefficients: Sequence[float], noise: float = 0.0) -> Tensor:
        """sum_j coefficient_j term_j + noise eps, with the noise of the transition from this level."""
        return self.key.step(terms, coefficients, noise, step=self.level.index, stream=STREAMS.transition)

    def denoise(self, z_t: Tensor) -> Tensor:
        """The prior's clean estimate of z_t at this level."""
        self.prior.evaluations["denoiser"] += len(z_t)
        return self.prior.denoise(z_t, self.level)

    def linearize_denoiser(self, z_t: Tensor) -> Linearization:
        """The clean estimate with its derivatives."""
        return Linearization.of(self.prior.clean(self.level), z_t, self.prior.evaluations, "denoiser")

    def linearize_residual(self, z: Tensor, noise: Tensor | None = None) -> Linearization:
        """The weighted departures at z with their derivatives, the weight held, and their cost."""
        self.prior.evaluations["decoder"] += len(z)
        (r, slope, cost), (jvp, vjp) = self.likelihood.linearize(self.prior.observe(self.likelihood.operator), z, noise)
        return Linearization(
            Derivative(r, *sloped(jvp, vjp, slope)), self.prior.evaluations, "decoder", slope=slope, cost=cost
        )

    def linearize_surrogate(self, v: Tensor, at: Tensor) -> Linearization | None:
        """H' T v, T the prior's cheap tangent of the decoder, with its derivatives in its own precision; or None.

        H' is the operator's linear part; of one that is not affine, its derivative at the decoded ``at``.
        """
        prior, operator = self.prior, self.likelihood.operator
        if prior.tangent is None:
            return None
        tangent, point = prior.tangent(prior.evaluations), v.to(prior.tangent_dtype or v.dtype)
        if hasattr(operator, "tangent"):
            return Linearization.of(observe(tangent, operator), point, prior.evaluations, "surrogate")
        prior.evaluations["decoder"] += len(at)
        H, T = Derivative.of(operator, prior.decode(at)), Derivative.of(tangent, point)
        # In the precision that the operator is of.
        jvp, vjp = ((lambda x, product=product: product(x.to(at)).to(x)) for product in (H.jvp, H.vjp))
        derivative = Derivative(jvp(T.value), lambda u: jvp(T.jvp(u)), lambda r: T.vjp(vjp(r)))
        return Linearization(derivative, prior.evaluations, "surrogate")

    def stages(self) -> list["Context"]:
        """The same for every cost that a minimisation goes through."""
        return [
            replace(self, likelihood=replace(self.likelihood, robust=robust))
            for robust in stages(self.likelihood.robust)
        ]


class Estimate(NamedTuple):
    """A guided clean estimate.

    ``mean`` is the conditional mean E[z | z_t, y] where ``z0`` is a draw;
    ``shift`` is added to z_s after the transition.
    """

    z0: Tensor
    mean: Tensor | None = None
    shift: Tensor | None = None


@dataclass(frozen=True)
class Guidance(ABC):
    """One way of correcting the clean estimate.

    ``solver``, ``spacing`` and ``steps`` are what the method is run with when the caller does not say.

    Parameters
    ----------
    antithetic : bool
        Members 2 i and 2 i + 1 draw opposite noise: each is a sample as before, and the mean of a pair carries no
        sampling noise where the problem is Gaussian.
    """

    solver: ClassVar[str] = "ancestral"
    spacing: ClassVar[str] = "time"
    steps: ClassVar[int] = 64
    stop_rho: ClassVar[float] = 0.0

    antithetic: bool = field(default=False, kw_only=True)

    def prepare(self, prior: Prior, likelihood: Likelihood) -> tuple[Tensor, ...]:
        """Make, once an analysis, what every block reads; the tensors of it."""
        return prepared(prior.observe(likelihood.operator))

    @property
    def shifts(self) -> bool:
        """Whether it moves z_s after the transition (``Estimate.shift``) instead of the clean estimate."""
        return False

    @property
    def obstacle(self) -> str:
        """Why a block of it cannot be captured as a CUDA graph; "" where it can."""
        return ""

    @property
    def exact(self) -> bool:
        """Whether the number of its evaluations follows from its settings alone."""
        return True

    @abstractmethod
    def guide(self, z_t: Tensor, context: Context) -> Estimate:
        """The guided clean estimate of z_t (M, *latent)."""

    def to_dict(self) -> dict[str, Any]:
        """Name and numbers, for provenance."""
        return {"guidance": type(self).__name__, "settings": repr(self)}


def prepared(observed: Observed) -> tuple[Tensor, ...]:
    """The tensors that an observed decoder was laid out with."""
    return getattr(observed, "tensors", ())


@dataclass(frozen=True)
class Streams:
    """Which use of noise in a round of a level draws from which of ``count`` streams."""

    transition: int = 0
    observations: int = 1
    latent: int = 2
    start: int = 3
    corrector: int = 4
    count: int = 16


STREAMS = Streams()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per member, (M,)."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))


def squared_norm(v: Tensor) -> Tensor:
    """Sum of squares per member, (M,)."""
    return dot(v, v)

"""A problem whose posterior is known: Gaussian prior, exact denoiser, linear decoder, linear observations.

    z ~ N(0, S),  x = D z,  y = x[observed] + N(0, R)
    z | y ~ N(mu, P),  P = (S^-1 + G'R^-1 G)^-1,  mu = P G'R^-1 y

``moments`` follows a run without sampling noise: where guidance and transition are affine in latent and
draws, mean and covariance of the samples are known once the zero draw and the unit draws are through.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lsda_fast.diffusion import DDIM, DPMpp2M, Heun, Level, Schedule, Solver
from lsda_fast.diffusion.noise import Key
from lsda_fast.guidance import Context, Guidance, Likelihood
from lsda_fast.guidance.base import STREAMS
from lsda_fast.prior import EigenCovariance, Prior
from lsda_fast.sampler import CLEAN, Sampler

__all__ = ["LinearGaussian", "Mask", "build", "moments"]


@dataclass(frozen=True)
class Mask:
    """The state itself at some of its places, x (M, N) -> (M, P)."""

    observed: Tensor
    size: int

    def __call__(self, x: Tensor) -> Tensor:
        return x[:, self.observed]

    def spread(self, residual: Tensor, used: Tensor) -> Tensor:
        """The residual (M, P) at the observed places, 0 elsewhere (M, N)."""
        return residual.new_zeros(len(residual), self.size).index_copy(1, self.observed, residual * used)


@dataclass(frozen=True)
class LinearGaussian:
    """The problem with its answer.

    Parameters
    ----------
    prior : Prior
    likelihood : Likelihood
    S : Tensor, shape (n, n)
        Covariance of the prior.
    D : Tensor, shape (n, n)
        Decoder.
    G : Tensor, shape (P, n)
        Observation operator after decoder.
    mean, covariance : Tensor, shape (n,) and (n, n)
        Of the posterior.
    """

    prior: Prior
    likelihood: Likelihood
    S: Tensor
    D: Tensor
    G: Tensor
    mean: Tensor
    covariance: Tensor

    def whiten(self, v: Tensor) -> Tensor:
        """Rows of v (M, n) in units of the posterior's spread."""
        return torch.linalg.solve_triangular(torch.linalg.cholesky(self.covariance), v.T, upper=False).T

    def error(self, mean: Tensor) -> float:
        """Root mean square error of a mean (n,), in units of the posterior's spread."""
        return float(self.whiten((mean - self.mean)[None]).square().mean().sqrt())

    def ratio(self, covariance: Tensor) -> float:
        """Total variance of a covariance (n, n) over the posterior's."""
        return float(covariance.trace() / self.covariance.trace())

    def conditional(self, z_t: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Mean (M, n) and covariance (n, n) of p(z | z_t, y)."""
        precision = torch.linalg.inv(self.covariance) + torch.eye(len(self.mean), dtype=z_t.dtype) / level.rho**2
        C = torch.linalg.inv(precision)
        information = torch.linalg.solve(self.covariance, self.mean) + z_t * (level.alpha / level.sigma**2)
        return information @ C, C

    def noisy(self, t: float) -> Tensor:
        """Three latents (3, n) at time t, noised from the posterior's mean."""
        level = self.prior.schedule.level(t)
        eps = torch.randn(3, len(self.mean), dtype=self.mean.dtype, generator=torch.Generator().manual_seed(0))
        return level.alpha * self.mean + level.sigma * eps

    def context(self, t: float) -> Context:
        """What a guidance is told at time t of a run of three members."""
        return Context(self.prior, self.likelihood, self.prior.schedule.level(t), False, Key.of(7, range(3)))


def build(
    kind: str = "correlated",
    *,
    n: int = 50,
    P: int = 20,
    decoder: str = "linear",
    schedule: Schedule | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> LinearGaussian:
    """A problem of n latents and P observations with R = 0.01 I.

    ``kind`` is ``"isotropic"`` (S = I) or ``"correlated"`` (eigenvalues 1 to 0.01, eigenvectors at random);
    ``decoder`` is ``"linear"`` (singular values 0.5 to 2) or ``"identity"``.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    V, U, W = (torch.linalg.qr(draw(n, n))[0] for _ in range(3))
    variance = torch.logspace(0, -2, n, dtype=torch.float64) if kind == "correlated" else torch.ones(n).double()
    D = torch.eye(n).double() if decoder == "identity" else U * torch.logspace(-0.3, 0.3, n).double() @ W.T
    observed = torch.randperm(n, generator=generator)[:P].sort().values
    S, G, R = V * variance @ V.T, D[observed], torch.full((P,), 0.01).double()
    y = G @ V @ (variance.sqrt() * draw(n)) + R.sqrt() * draw(P)
    covariance = torch.linalg.inv(torch.linalg.inv(S) + G.T / R @ G)
    mean = covariance @ (G.T / R @ y)
    inverse = torch.linalg.inv(D)
    S, D, G, mean, covariance, y, R, inverse, V, variance = (
        v.to(dtype) for v in (S, D, G, mean, covariance, y, R, inverse, V, variance)
    )
    E = EigenCovariance(V, variance)
    prior = Prior(
        schedule or Schedule.vp_cosine(),
        (n,),
        lambda z_t, t: E.apply(z_t, lambda s: t.alpha * s / (t.alpha**2 * s + t.sigma**2)),
        lambda z: z @ D.T,
        encode=lambda x: x @ inverse.T,
        variance=S.diagonal(),
        covariance=E,
        dtype=dtype,
    )
    likelihood = Likelihood(Mask(observed, n), y, R, (G @ S @ G.T).diagonal().sqrt())
    return LinearGaussian(prior, likelihood, S, D, G, mean, covariance)


@dataclass(frozen=True)
class _UnitDraws(Context):
    """A context in which rows of the batch carry the unit draws of one stream, and 0 of every other."""

    first: tuple[tuple[int, int], ...] = ()
    rows: int = 0

    def noise(self, shape: tuple[int, ...], stream: int) -> Tensor:
        """Zeros (rows, *shape), with the identity from the stream's first row on."""
        draws = torch.zeros(self.rows, *shape, dtype=self.prior.dtype)
        start = dict(self.first).get(stream)
        if start is not None:
            draws[start : start + shape[0]] = torch.eye(shape[0], dtype=self.prior.dtype)
        return draws

    def combine(self, terms: Sequence[Tensor], coefficients: Sequence[float], noise: float = 0.0) -> Tensor:
        """The transition, with these draws."""
        z_s = sum(c * term for c, term in zip(coefficients, terms))
        return z_s + noise * self.noise(self.prior.latent_shape, STREAMS.transition)


def _step(guidance: Guidance, solver: Solver, z_t: Tensor, context: Context, target: Level, memory: dict) -> Tensor:
    return solver.step(
        guidance.guide(z_t, context).z0,
        z_t,
        context.level,
        target,
        guided=lambda v, s: guidance.guide(v, replace(context, level=s, last=False)).z0,
        combine=context.combine,
        memory=memory,
    )


def moments(guidance: Guidance, problem: LinearGaussian, **settings: object) -> tuple[Tensor, Tensor]:
    """Mean (n,) and covariance (n, n) of the samples of ``Sampler(guidance, **settings)``.

    Row 0 of the batch is the run with every draw 0; each other adds a column of a root of the covariance.
    """
    prior, likelihood = problem.prior, problem.likelihood
    sampler = Sampler(guidance, **settings)  # type: ignore[arg-type]
    solver, levels = sampler.solver, sampler.levels(prior)
    deterministic = isinstance(solver, (DPMpp2M, Heun)) or (isinstance(solver, DDIM) and solver.eta == 0)
    n, P = prior.latent_shape[0], len(likelihood.y)
    streams = () if deterministic else ((STREAMS.observations, P), (STREAMS.latent, n), (STREAMS.transition, n))
    spread = math.hypot(levels[0].alpha, levels[0].sigma)
    z = torch.cat([torch.zeros(1, n), spread * torch.eye(n)]).to(prior.dtype)
    memory: dict = {}
    for i, level in enumerate(levels):
        first, rows = [], n + 1
        for stream, size in streams:
            first.append((stream, rows))
            rows += size
        z_t = torch.cat([z, z[:1].expand(rows - len(z), n)])
        last = i + 1 == len(levels)
        context = _UnitDraws(prior, likelihood, level, last, Key.of(0, range(rows)), first=tuple(first), rows=rows)
        z = _step(guidance, solver, z_t, context, CLEAN if last else levels[i + 1], memory)
        mean, columns = z[0], z[1:] - z[0]
        if not deterministic:
            values, vectors = torch.linalg.eigh(columns.T @ columns)
            columns = (vectors * values.clamp_min(0).sqrt()).T
            z = torch.cat([mean[None], mean + columns])
    return mean, columns.T @ columns

"""The sampler: one loop for every guidance, on tensors.

For each noise level from high to low: the guided clean estimate z0', then the transition to the next level. Members
are computed in blocks, parted evenly where ``block`` does not fix their size; of a fixed size a member's numbers do not
depend on which others were asked for, bit for bit (``recenter=False``; with it all are shifted together). Blocks of
another size give the same members up to the rounding of the networks.

A block (``Sampler.block_of``) is one function of tensors with static shapes (``Sampler.inputs``, and the key of its
noise): it asks nothing of the host, so that it can be planned without values and captured as a CUDA graph (``engine``).
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from numbers import Integral

import torch
from torch import Tensor

from lsda_fast.diffusion.noise import Key
from lsda_fast.diffusion.schedule import Level
from lsda_fast.diffusion.solvers import Langevin, Solver, get_solver
from lsda_fast.errors import InputError, NonFiniteError
from lsda_fast.guidance.base import STREAMS, Context, Estimate, Guidance, Likelihood
from lsda_fast.members import even_chunk, member_numbers, recentred, without_opposite
from lsda_fast.prior import Prior

__all__ = ["Sampler", "Samples", "Step"]

CLEAN = Level(-1, 0.0, 1.0, 0.0)

Run = Callable[[Prior, Likelihood, Key], Estimate]


@dataclass(frozen=True)
class Step:
    """What ``on_step`` is told: the level, its number of levels, the block's members, and the tensors of the step."""

    level: Level
    levels: int
    members: tuple[int, ...]
    z_t: Tensor
    z0: Tensor


_LEAST = 1e-3  # the last noise-to-signal ratio, where levels are even in its logarithm and it falls to 0


@dataclass(frozen=True)
class Samples:
    """Posterior samples.

    Parameters
    ----------
    z : Tensor, shape (M, *latent)
    members : tuple of int
    evaluations : Counter
        Network evaluations and derivatives, by members.
    ensemble : str
        What the members are, one of ``scores.ENSEMBLES``: in opposite pairs are those whose opposite is among them.
    """

    z: Tensor
    members: tuple[int, ...]
    evaluations: Counter[str]
    ensemble: str = "independent"


class Sampler:
    """Draw latents from p(z | y, z_b).

    Parameters
    ----------
    guidance : Guidance
    solver : str or Solver
        Transition between levels; ``"auto"`` is the guidance's own.
    steps : int, optional
        Noise levels; the guidance's own when not given.
    start : float
        Time of the first level; below 1 starts from the background at that level.
    stop : float, optional
        Time of the end, see ``Schedule.levels``.
    spacing : {"auto", "time", "log_rho"}
    corrector : Langevin, optional
    block : int, optional
        Members that go through the networks together, in places of their own: part of what fixes a member's bits. When
        not given, those asked for are parted evenly, at most 16 together, fewer of large latents, and agree up to
        rounding with any others.
    """

    def __init__(
        self,
        guidance: Guidance,
        *,
        solver: str | Solver = "auto",
        steps: int | None = None,
        start: float = 1.0,
        stop: float | None = None,
        spacing: str = "auto",
        corrector: Langevin | None = None,
        block: int | None = None,
    ) -> None:
        if block is not None and block < 1:
            raise InputError(f"block = {block}; accepted is a whole number of at least 1")
        self.guidance = guidance
        if getattr(guidance, "randomize", False) and get_solver(solver if solver != "auto" else guidance.solver).smooth:
            raise InputError(
                f"solver {solver!r} came with randomised members, which are no smooth function of the noise level; "
                "accepted: renoise, ancestral, ddim, or randomize=False"
            )
        self.solver = get_solver(guidance.solver if solver == "auto" else solver)
        if guidance.shifts and (corrector or self.solver.smooth):
            raise InputError(
                f"{guidance} moves samples after the transition, which a corrector and solvers of second order would "
                "undo; accepted: ancestral or ddim, without a corrector, or norm=False"
            )
        self.steps = guidance.steps if steps is None else steps
        self.spacing = guidance.spacing if spacing == "auto" else spacing
        self.start, self.stop, self.corrector, self.block = start, stop, corrector, block

    def levels(self, prior: Prior) -> list[Level]:
        """The noise levels of a run with this prior."""
        stop = self.stop
        if stop is None:
            stop = prior.schedule.time(self.guidance.stop_rho) if self.guidance.stop_rho > 0 else 0.0
            if stop >= self.start:
                stop = prior.schedule.time(0.5 * prior.schedule.rho(self.start))
            if self.spacing == "log_rho" and prior.schedule.rho(stop) == 0:
                stop = prior.schedule.time(_LEAST)
        return prior.schedule.levels(self.steps, start=self.start, stop=stop, spacing=self.spacing)

    @torch.no_grad()
    def __call__(
        self,
        prior: Prior,
        likelihood: Likelihood,
        *,
        members: int | Sequence[int] = 1,
        seed: int = 0,
        recenter: bool = True,
        on_step: Callable[[Step], None] | None = None,
        run: Run | None = None,
    ) -> Samples:
        """Sample.

        Parameters
        ----------
        prior : Prior
        likelihood : Likelihood
        members : int or sequence of int
            How many, or which: ``members=[3, 17]`` computes these alone.
        seed : int
        recenter : bool
            Where the guidance knows the conditional means, shift all members so that their mean is the average of
            those: the mean then carries little sampling noise. Opposite pairs are drawn together a little as well, so
            that their variance with M - 1 below it is the posterior's. Both depend on which members were asked for.
        on_step : callable, optional
        run : callable (Prior, Likelihood, Key) -> Estimate, optional
            Another way of running ``block_of``, such as ``engine.graphs.Graphs``; ``on_step`` is not called then.

        Returns
        -------
        Samples

        Raises
        ------
        InputError
            No members, or numbers out of range; observations or variances that are none.
        NonFiniteError
            Members with non-finite values, by number.
        """
        ids = tuple(member_numbers(members))
        if not isinstance(seed, Integral) or not 0 <= seed < 2**64:
            raise InputError(f"seed = {seed}; accepted is a whole number, 0 <= seed < 2**64")
        likelihood.check_values()
        if (likelihood.y.dtype, likelihood.y.device.type) != (prior.dtype, prior.device.type):
            came, has = likelihood.y, prior
            raise InputError(
                f"observations in {came.dtype} on {came.device.type} came with a prior in {has.dtype} on "
                f"{has.device.type}; accepted: both alike"
            )
        prior.evaluations.clear()
        self.guidance.prepare(prior, likelihood)
        results: dict[int, tuple[Tensor, Tensor | None]] = {}
        size = self.chunk(prior, len(ids))
        for block in sorted({member // size for member in ids}):
            numbers = tuple(range(block * size, (block + 1) * size))
            key = Key.of(seed, numbers, antithetic=self.guidance.antithetic, device=prior.device)
            if run is None:
                told = on_step and partial(_tell, on_step, numbers)
                estimate = self.block_of(prior, likelihood, key, on_level=told)
            else:
                estimate = run(prior, likelihood, key)
            means = [None] * size if estimate.mean is None else list(estimate.mean)
            results.update(zip(numbers, zip(estimate.z0, means)))
        z = torch.stack([results[member][0] for member in ids])
        bad = [member for member, value in zip(ids, z) if not torch.isfinite(value).all()]
        if bad:
            raise NonFiniteError(
                f"members {bad} of seed {seed} are not finite with {self.guidance} in {self.steps} steps"
            )
        means = [results[member][1] for member in ids]
        alone = without_opposite(ids) if self.guidance.antithetic else len(ids)
        if recenter and len(ids) > 1 and all(mean is not None for mean in means):
            z = recentred(z, means, ids, antithetic=self.guidance.antithetic)
            kind = "recentred" if alone else "recentred opposite pairs"
        else:
            kind = "opposite pairs" if alone < len(ids) else "independent"
        return Samples(z, ids, Counter(prior.evaluations), kind)

    def chunk(self, prior: Prior, members: int) -> int:
        """How many of so many members go through the networks together."""
        return self.block or even_chunk(members, math.prod(prior.latent_shape))

    def inputs(self, prior: Prior, likelihood: Likelihood) -> list[Tensor]:
        """The tensors of one analysis that a block reads, once it is prepared, in an order of their own.

        What else it reads are weights of the networks. An analysis of the same settings, with tensors of the same
        shapes here, runs the same operations.
        """
        tensors = (*prior.inputs, *likelihood.inputs, *self.guidance.prepare(prior, likelihood))
        return list({id(t): t for t in tensors}.values())

    def block_of(
        self,
        prior: Prior,
        likelihood: Likelihood,
        key: Key,
        *,
        levels: Sequence[Level] | None = None,
        on_level: Callable[[Level, int, Tensor, Tensor], None] | None = None,
    ) -> Estimate:
        """One block of members through the noise levels, those of a run when not given: z0 and its conditional mean."""
        levels = self.levels(prior) if levels is None else levels
        base = Context(prior, likelihood, levels[0], False, key)
        z_t = self._begin(prior, levels[0], key)
        memory: dict = {}
        for i, level in enumerate(levels):
            last = i + 1 == len(levels)
            context = replace(base, level=level, last=last)
            target = CLEAN if last else levels[i + 1]
            estimate = self.guidance.guide(z_t, context)
            if on_level:
                on_level(level, len(levels), z_t, estimate.z0)
            z_t = self.solver.step(
                estimate.z0,
                z_t,
                level,
                target,
                guided=lambda z, s: self.guidance.guide(z, replace(base, level=s, last=False)).z0,
                combine=context.combine,
                memory=memory,
            )
            if estimate.shift is not None:
                z_t = z_t + estimate.shift
            if self.corrector and not last:
                z_t = self._correct(z_t, replace(base, level=target))
        return Estimate(z_t, mean=estimate.mean)

    def _begin(self, prior: Prior, level: Level, key: Key) -> Tensor:
        """Noise of the level's marginal, around the background on a warm start."""
        noise = key.normal(prior.latent_shape, stream=STREAMS.start, dtype=prior.dtype)
        if self.start < 1.0:
            origin = 0.0 if prior.origin is None else prior.origin
            return level.alpha * origin + level.sigma * noise
        return (level.alpha**2 + level.sigma**2) ** 0.5 * noise

    def _correct(self, z_t: Tensor, context: Context) -> Tensor:
        assert self.corrector is not None
        rounds = count(1)
        return self.corrector.correct(
            z_t,
            context.level,
            guided=lambda z, _: self.guidance.guide(z, replace(context, round=next(rounds))).z0,
            noise=lambda i: replace(context, round=i + 1).noise(context.prior.latent_shape, STREAMS.corrector),
        )


def _tell(
    on_step: Callable[[Step], None], members: tuple[int, ...], level: Level, levels: int, z_t: Tensor, z0: Tensor
) -> None:
    on_step(Step(level, levels, members, z_t, z0))

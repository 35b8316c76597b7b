"""What analyses of one state and of a window share: settings, the likelihood, sampling, decoding.

The observation operator is built from the table, R is each observation's error variance plus the autoencoder's
representativeness. Nothing disappears: every observation is used, or listed with the reason why not.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

import lsda_fast
from lsda_fast.analysis import equivalent
from lsda_fast.diffusion.solvers import Langevin, Solver
from lsda_fast.engine.backend import choose_backend, choose_precision
from lsda_fast.engine.engine import Engine
from lsda_fast.errors import InputError, NonFiniteError
from lsda_fast.guidance import Guidance, LatentOptimization, Likelihood
from lsda_fast.kernels.robust import Robust, check
from lsda_fast.likelihood import likelihood_of
from lsda_fast.observations import ObservationOperator, Observations, StencilOperator
from lsda_fast.observations.averages import without
from lsda_fast.observations.columns import default_std
from lsda_fast.observations.units import Conversion, to_si
from lsda_fast.package import Package
from lsda_fast.prior import Prior
from lsda_fast.sampler import Sampler, Step

__all__ = ["Assimilation", "Case", "NoObservationsError", "apart"]


Function = TypeVar("Function", bound=Callable[..., Any])


def apart(function: Function) -> Function:
    """Without torch's gradients, and out of its inference mode, whichever the caller is in.

    Of what is made in that mode torch does not count the changes, so that nothing could be kept for later analyses.
    """
    return torch.inference_mode(False)(torch.no_grad()(function))


def _kind(value: Any) -> str:
    return f"{value!r}" if isinstance(value, str | type | None) else f"a {type(value).__name__}"


class NoObservationsError(InputError):
    """Not one observation can be used. Exit code 3."""


class Case(NamedTuple):
    """One analysis as tensors; ``observed`` is the likelihood without what fills up a bucket."""

    prior: Prior
    likelihood: Likelihood
    observed: Likelihood
    reasons: np.ndarray


class Checked(NamedTuple):
    """What the background's check leaves: table, operator with values, case; O-B of the rows that it took away."""

    observations: Observations
    operator: StencilOperator | None
    case: Case
    refused: Mapping[int, float] = MappingProxyType({})


class Sampled(NamedTuple):
    """An ensemble: normalised (M, T*C, H, W), physical (M, T, C, H, W), its members, provenance, counts."""

    x: Tensor
    states: np.ndarray
    members: tuple[int, ...]
    attrs: dict[str, Any]
    evaluations: Counter[str]


class Assimilation:
    """A package and how it is run.

    Parameters
    ----------
    package : Package
    guidance : Guidance, optional
        ``LatentOptimization`` with the C_t of ``prior_covariance`` when not given.
    solver, steps, start, stop, spacing, corrector
        As for ``Sampler``.
    block : int, optional
        Members that go through the networks together, see ``Sampler``; on a GPU, when not given, from members and free
        memory (``plan``).
    correction : bool
        The learned denoiser, or (False, whitened packages) the linear-Gaussian prior alone: 3D-Var in the latent.
    representativeness : bool
        Whether R includes the autoencoder's reconstruction error.
    background_check : float, optional
        Observations whose O-B is larger than so many climatological standard deviations are rejected, with the reason;
        of a window without a background, those as far from the prior's mean, where it has one. A background that lies
        as far from the climate on average of a channel is refused: wrong units, as a rule.
        None takes everything.
    robust : Huber or VariationalQC, optional
        What a departure costs, so that gross errors lose weight; Gaussian when not given. ``departures`` has the
        weights.
    backend : {"auto", "reference", "fused"}
        See ``engine.backend``; ``assimilator.backend`` says which was taken, and why; ``engine.execution``, whether
        blocks are recorded (``engine.graphs``).
    precision : {"float32", "bfloat16"}
        Of the matrix products of denoiser and observed decoder (``models.precision``), and beside it that of the
        decoder's stand-in (float32 with ``bfloat16``, else float64); ``bfloat16`` with the fused backend
        alone. States are decoded in the package's own precision.
    """

    def __init__(
        self,
        package: Package,
        guidance: Guidance | None = None,
        *,
        solver: str | Solver = "auto",
        steps: int | None = None,
        start: float = 1.0,
        stop: float | None = None,
        spacing: str = "auto",
        corrector: Langevin | None = None,
        block: int | None = None,
        correction: bool = True,
        representativeness: bool = True,
        background_check: float | None = 20.0,
        robust: Robust | None = None,
        backend: str = "auto",
        precision: str = "float32",
    ) -> None:
        if not isinstance(package, Package) or not isinstance(guidance, Guidance | None):
            came = f"{_kind(package)} and guidance {_kind(guidance)}"
            raise InputError(f"{came} came; accepted: a Package and a Guidance, such as lsda.DPS()")
        if background_check is not None and not background_check > 0:
            raise InputError(f"background_check={background_check}; accepted: a number above 0, or None")
        self.background_check = background_check
        self.package, self.correction, self.representativeness = package, correction, representativeness
        self.robust = check(robust)
        self.backend = choose_backend(backend, package)
        self.precision = choose_precision(precision, package, self.backend)
        self.sampler = Sampler(
            LatentOptimization(prior_covariance=self.prior_covariance(package)) if guidance is None else guidance,
            solver=solver,
            steps=steps,
            start=start,
            stop=stop,
            spacing=spacing,
            corrector=corrector,
            block=block,
        )
        self.engine = Engine(package, self.sampler, self.backend, by_memory=block is None)

    @staticmethod
    def prior_covariance(package: Package) -> str:
        """C_t by name, for ``LatentOptimization`` when none is asked for."""
        return "isotropic"

    def _padded(self, observed: Likelihood) -> Likelihood:
        """Filled up where blocks are captured as graphs."""
        return observed if self.engine.graphs is None else self.engine.graphs.padded(observed)

    def _sampled(
        self,
        case: Case,
        members: int | Sequence[int],
        seed: int,
        recenter: bool,
        on_step: Callable[[Step], None] | None,
    ) -> "Sampled":
        """The ensemble, decoded; NonFiniteError names members that are not finite."""
        with self.engine.alone():
            samples, block = self.engine.run(
                case.prior, case.likelihood, members=members, seed=seed, recenter=recenter, on_step=on_step
            )
            x_a = torch.cat([case.prior.decode(z[None]) for z in samples.z])
        with np.errstate(over="ignore", invalid="ignore"):
            states = self.package.denormalize(x_a.unflatten(1, (-1, self.package.layout.shape[0])))
        bad = [member for member, state in zip(samples.members, states) if not np.isfinite(state).all()]
        if bad:
            raise NonFiniteError(f"members {bad} of seed {seed} are not finite once decoded")
        attrs = {
            "source": f"lsda_fast {lsda_fast.__version__} analysis",
            "seed": seed,
            "ensemble": samples.ensemble,
            "ensemble_size": len(samples.members),
            "settings": repr(self.sampler.guidance),
            "correction": str(self.correction),
            "representativeness": str(self.representativeness),
            "background_check": "none" if self.background_check is None else self.background_check,
            "observation_cost": "Gaussian" if self.robust is None else repr(self.robust),
            "backend": self.backend.name,
            "precision": str(self.precision).removeprefix("torch."),
            "solver": type(self.sampler.solver).__name__,
            "start": self.sampler.start,
            "noise_levels": self.sampler.steps,
            "members_in_a_block": block,
        }
        return Sampled(x_a, states, samples.members, attrs, samples.evaluations)

    def _checked(
        self,
        observations: Observations,
        x_b: Tensor | None,
        case_of: Callable[[Observations, StencilOperator | None], Case],
        more: StencilOperator | None = None,
    ) -> Checked:
        """Without observations that are too far from the background (T*C, H, W): the others, and the case of them.

        Where there is no background, from the prior's mean, if it has one.

        Raises
        ------
        InputError
            A background that itself is no state of this climate.
        """
        case, limit = case_of(observations, more), self.background_check
        if limit is None:
            return Checked(observations, more, case)
        center, reason = x_b, f"O-B is over {limit:g} climatological standard deviations"
        if x_b is None:
            center = self._climate(case.prior)
            reason = f"it lies over {limit:g} climatological standard deviations from the climate"
        else:
            self._check_background(x_b, limit)
        if center is None:
            return Checked(observations, more, case)
        operator: Any = case.observed.operator
        departure = operator.values - equivalent(operator, center[None])[0].double().cpu().numpy()
        gross = np.abs(departure) > limit * case.observed.scale.double().cpu().numpy()
        if not gross.any():
            return Checked(observations, more, case)
        rows = np.flatnonzero(case.reasons == "")[gross]
        of_table = rows < len(observations)
        keep = np.ones(len(observations), bool)
        keep[rows[of_table]] = False
        numbers = observations.frame["observation"].to_numpy()[rows[of_table]]
        refused = {} if x_b is None else dict(zip(numbers.tolist(), departure[gross][of_table].tolist()))
        # Behind the table's rows are those of an operator with its own values.
        if more is not None:
            more = without(more, np.flatnonzero(gross[len(gross) - more.size :]), reason)
        observations = observations.select(keep, reason)
        return Checked(observations, more, case_of(observations, more), refused)

    def _check_background(self, x_b: Tensor, limit: float) -> None:
        """InputError for one that, on average of a channel, is no state of this climate."""
        names = self.package.layout.names
        far = x_b.unflatten(0, (-1, len(names))).abs().nanmean((0, 2, 3)).tolist()
        wrong = [f"{name} {value:.0f}" for name, value in zip(names, far) if value > limit]
        if wrong:
            raise InputError(
                f"the background lies, on average, {', '.join(wrong)} climatological standard deviations from the "
                f"package's climate; accepted: up to {limit:g} (background_check), in the units of its attributes"
            )

    def _climate(self, prior: Prior) -> Tensor | None:
        """The mean of a prior without a background, a state in the form of one; None where it is not known."""
        return None

    def _likelihood(
        self,
        observations: Observations,
        operator_of: Callable[[Observations], StencilOperator],
        more: StencilOperator | None = None,
    ) -> tuple[StencilOperator, Likelihood, np.ndarray]:
        """The operator of the usable observations, the likelihood, and per row of the table the reason, "" if used.

        ``more`` has its own values and stands behind those of the table.
        """
        package, observations = self.package, self._with_std(observations)
        operator = operator_of(observations)
        reasons = operator.reasons.copy()
        unknown = ~np.isfinite(observations.frame["std"].to_numpy(float)) & (reasons == "")
        if unknown.any():
            reasons[unknown] = "no std, and the package has no default for it"
            operator = operator_of(observations.select(reasons == ""))
        if more is not None:
            together: Any = ObservationOperator.stack(operator, more)
            operator, reasons = together, np.concatenate([reasons, more.reasons])
        if operator.size == 0:
            why = Counter([*reasons, *observations.rejected.get("reason", ())]).most_common(1)
            detail = f"; most often because: {why[0][0]}" if why else ""
            raise NoObservationsError(
                f"none of {len(reasons) + len(observations.rejected)} observations can be used{detail}"
            )
        error = np.tile(package.errors, operator.shape[0] // package.layout.shape[0])
        likelihood = likelihood_of(
            operator,
            error=error if self.representativeness else None,
            robust=self.robust,
            device=package.device,
            dtype=package.dtype,
        )
        moved: Any = likelihood.operator
        return moved, likelihood, reasons

    def _with_std(self, observations: Observations) -> Observations:
        """The package's default errors, which are in the channels' units, where the table has none."""
        channels = {
            channel.name: to_si(channel.units) or Conversion(1.0, 0.0, "") for channel in self.package.layout.channels
        }
        std = {
            name: channels[name].scale * value
            for name, value in self.package.observation_std.items()
            if name in channels
        }
        frame = observations.frame
        return Observations(frame.assign(std=default_std(frame, std)), observations.rejected)

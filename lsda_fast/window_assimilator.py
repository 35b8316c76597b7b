"""The assimilator of windows: observations of some days in, an ensemble of trajectories and the departures out.

The prior is that of trajectories (``Package.trajectory``), without a background. A model run over the window, to be
calibrated, may be what sampling starts from (``start`` below 1) and what O-B is taken from. Gridded fields of a
modality are observations too (``observations.fields.field_observations``), NaN where there are none.
"""

import time as clock
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from lsda_fast.analysis import Analysis, departure_table
from lsda_fast.assimilation import Assimilation, Case, apart
from lsda_fast.calendar import calendar
from lsda_fast.datasets import canonical
from lsda_fast.engine.plan import Plan
from lsda_fast.errors import InputError
from lsda_fast.forecast import one_member
from lsda_fast.guidance import Likelihood
from lsda_fast.layout import StateLayout
from lsda_fast.models import StationaryTrajectories
from lsda_fast.observations import Observations, StencilOperator
from lsda_fast.observations.trajectory import in_si, operator_rows, trajectory_stations
from lsda_fast.package import Package
from lsda_fast.prior import Prior
from lsda_fast.sampler import Step

__all__ = ["WindowAssimilator", "window_times"]

Period = tuple[str, str]


class WindowAssimilator(Assimilation):
    """Assimilate observations of a window with a package that has a prior of trajectories.

    Settings as for ``Assimilation``.
    """

    @apart
    def __call__(
        self,
        observations: Observations | None = None,
        *,
        operator: StencilOperator | None = None,
        window: Period | None = None,
        background: xr.Dataset | None = None,
        members: int | Sequence[int] = 1,
        seed: int = 0,
        recenter: bool = True,
        on_step: Callable[[Step], None] | None = None,
    ) -> Analysis:
        """Analyse.

        Parameters
        ----------
        observations : Observations, optional
            Those outside the window are rejected; rows without std have the package's default.
        operator : StencilOperator, optional
            On the trajectory (T*C, H, W), with values and std: averages over blocks and layers, degraded fields.
        window : (first, last), optional
            Times of the first and the last state; those of the background when not given.
        background : xr.Dataset, optional
            A model run with a state at each time; channels that it has not are missing (NaN) to the encoder.
        members, seed, recenter, on_step
            As for ``Sampler``.

        Returns
        -------
        Analysis
            ``analysis`` (time, member, ...); ``background`` (time, ...) or None.

        Raises
        ------
        InputError
            No prior of trajectories; a window that is not whole steps, or a background that does not cover it; a warm
            start without a background.
        NoObservationsError
            Nothing to assimilate.
        NonFiniteError
            Members that came out non-finite.
        """
        begin = clock.perf_counter()
        _check_types(observations, operator, background)
        layout, (times, x_b) = self.package.layout, self._period(window, background)
        table = self._with_std(_none() if observations is None else observations)
        operator = operator and in_si(operator, layout)
        with self.backend.kernels():
            flat_b = None if x_b is None else x_b.flatten(0, 1)
            case_of = lambda part, more: self._case(times, x_b, part, more)  # noqa: E731
            table, operator, case, refused = self._checked(table, flat_b, case_of, operator)
            found = self._sampled(case, members, seed, recenter, on_step)
        if operator is not None:
            table = Observations.joined(table, operator_rows(operator, layout, times))
        departures = departure_table(table, case.reasons, case.observed, flat_b, found.x, refused)
        coords = {"time": times.to_numpy(), "member": np.array(found.members)}
        style = "flat" if background is None else layout.style_of(background)
        analysis = layout.to_dataset(
            found.states.swapaxes(0, 1), dims=("time", "member"), coords=coords, style=style, attrs=found.attrs
        )
        state_b = None
        if x_b is not None:
            states, coords = self.package.denormalize(x_b), {"time": times.to_numpy()}
            state_b = layout.to_dataset(states, dims=("time",), coords=coords, style=style)
        seconds = clock.perf_counter() - begin
        cost = {"robust": self.robust, "representativeness": self.representativeness}
        return Analysis(analysis, state_b, departures, found.evaluations, seconds, **cost)

    @apart
    def plan(
        self,
        *,
        observations: Observations | None = None,
        operator: StencilOperator | None = None,
        window: Period | None = None,
        background: xr.Dataset | None = None,
        members: int | Sequence[int] = 1,
    ) -> Plan:
        """What an analysis will take; see ``engine.plan`` and, for the arguments, an analysis."""
        _check_types(observations, operator, background)
        times, x_b = self._period(window, background)

        def prepare() -> tuple[Prior, Likelihood, int]:
            case = self._case(times, x_b, _none() if observations is None else observations, operator)
            return case.prior, case.likelihood, len(case.observed.y)

        return self.engine.plan(prepare, members, self.precision)

    def likelihood(
        self, observations: Observations, times: pd.DatetimeIndex, operator: StencilOperator | None = None
    ) -> tuple[StencilOperator, Likelihood, np.ndarray]:
        """The operator of the usable observations, the likelihood, and per row of the table the reason, "" if used."""
        layout, normalization = self.package.layout, self.package.normalization
        shape = (len(times) * layout.shape[0], *layout.grid.shape)
        if operator is not None and operator.shape != shape:
            raise InputError(f"an operator on {operator.shape} came; accepted is one on the trajectory, {shape}")
        return self._likelihood(observations, lambda o: trajectory_stations(o, layout, normalization, times), operator)

    def _climate(self, prior: Prior) -> Tensor | None:
        """The decoded mean of the latents, at every time, where the package has it."""
        model = self.package.modules.get("trajectory")
        if not isinstance(model, StationaryTrajectories):
            return None
        return self.package.autoencoder.decode(model.mean[None])[0].repeat(prior.latent_shape[0], 1, 1)

    @staticmethod
    def prior_covariance(package: Package) -> str:
        """The covariance in space and time, where the package has it: it carries what is observed to other times."""
        return "stationary" if "trajectory" in package.modules else "isotropic"

    def _case(
        self,
        times: pd.DatetimeIndex,
        x_b: Tensor | None,
        observations: Observations,
        operator: StencilOperator | None = None,
    ) -> Case:
        """The tensors of one analysis."""
        _, observed, reasons = self.likelihood(observations, times, operator)
        prior = self.package.trajectory(
            len(times),
            origin=None if x_b is None else self._origin(x_b),
            season=torch.from_numpy(calendar(times)),
            correction=self.correction,
            fused=self.backend.name == "fused",
            precision=self.precision,
        )
        return Case(prior, self._padded(observed), observed, reasons)

    def _period(self, window: Period | None, background: xr.Dataset | None) -> tuple[pd.DatetimeIndex, Tensor | None]:
        """The states' times, and the background there, normalised (T, C, H, W), NaN where it has none."""
        if self.package.window is None:
            raise InputError("the package has no prior of trajectories; accepted is one that was trained with a window")
        if background is None:
            if self.sampler.start < 1.0:
                raise InputError(f"start = {self.sampler.start:g} came without a background to start from")
            if window is None:
                raise InputError("neither a window nor a background came; accepted is one of them, or both")
            return window_times(window, self.package.window.hours), None
        background = one_member(canonical(background))
        if "time" not in background.dims or "member" in background.dims:
            raise InputError(f"a background with {tuple(background.dims)} came; accepted is one run, with times")
        known = pd.DatetimeIndex(background["time"].values)
        if known.has_duplicates:
            raise InputError(f"the background has {known[known.duplicated()][0]} twice; accepted is one state a time")
        ends = (str(known.min()), str(known.max())) if window is None else window
        times = window_times(ends, self.package.window.hours)
        place = known.get_indexer(times)
        if (place < 0).any():
            raise InputError(f"the background has no state at {times[place < 0][0]}; accepted is one every step")
        return times, self._states(background.isel(time=place))

    def _states(self, background: xr.Dataset) -> Tensor:
        layout = self.package.layout
        where = [i for i, field in enumerate(layout.find(background)) if field is not None]
        if not where:
            raise InputError(f"the background has none of the package's channels {', '.join(layout.names)}")
        part = StateLayout(layout.grid, tuple(layout.channels[i] for i in where))
        states = np.full((background.sizes["time"], *layout.shape), np.nan, np.float32)
        states[:, where] = part.to_array(background, missing="mask")
        return self.package.normalize(states)

    def _origin(self, x_b: Tensor) -> Tensor:
        origin = torch.cat([self.package.autoencoder.encode(x[None]) for x in x_b])
        if not torch.isfinite(origin).all():
            raise InputError("the background has missing values, which the package's encoder does not take")
        return origin


def window_times(window: Period, hours: float) -> pd.DatetimeIndex:
    """The times of the states from the first to the last, every ``hours``; InputError where that does not fit."""
    try:
        first, last = (pd.Timestamp(end) for end in window)
    except (ValueError, TypeError) as error:
        raise InputError(f"window {window} came; accepted are two dates such as 2008-12-07T12") from error
    first, last = (t if t.tzinfo is None else t.tz_convert("UTC").tz_localize(None) for t in (first, last))
    step = pd.Timedelta(hours=hours)
    if last < first or (last - first) % step != pd.Timedelta(0):
        raise InputError(f"window {first} .. {last} came; accepted are whole steps of {hours:g} h from first to last")
    return pd.date_range(first, last, freq=step)


def _check_types(observations: object, operator: object, background: object) -> None:
    accepted = (observations, Observations), (operator, StencilOperator), (background, xr.Dataset)
    for value, kind in accepted:
        if value is not None and not isinstance(value, kind):
            raise InputError(
                f"{type(value).__name__} came; accepted: Observations, as operator a StencilOperator on the "
                "trajectory, and a background as xarray.Dataset (open_states)"
            )


def _none() -> Observations:
    return Observations.from_frame(pd.DataFrame())

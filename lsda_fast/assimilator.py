"""The assimilator: background and observations in, analysis ensemble and departures out, on xarray.

It wraps the tensor-level sampler; what it shares with windows is in ``assimilation``.
"""

import time as clock
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from lsda_fast.analysis import Analysis, departure_table
from lsda_fast.assimilation import Assimilation, Case, NoObservationsError, apart
from lsda_fast.calendar import calendar
from lsda_fast.cf import cf_time
from lsda_fast.engine.plan import Plan
from lsda_fast.errors import InputError
from lsda_fast.forecast import one_state
from lsda_fast.guidance import Likelihood
from lsda_fast.observations import ObservationOperator, Observations, StencilOperator
from lsda_fast.prior import Prior
from lsda_fast.sampler import Step

__all__ = ["Assimilator", "NoObservationsError"]


class Assimilator(Assimilation):
    """Assimilate observations into backgrounds with a package; settings as for ``Assimilation``."""

    @apart
    def __call__(
        self,
        background: xr.Dataset,
        observations: Observations,
        *,
        members: int | Sequence[int] = 1,
        seed: int = 0,
        time: str | None = None,
        recenter: bool = True,
        on_step: Callable[[Step], None] | None = None,
    ) -> Analysis:
        """Analyse.

        Parameters
        ----------
        background : xr.Dataset
            One state; several times need ``time``.
        observations : Observations
            Already limited to the window (``observations.window``); rows without std have the package's default.
        members : int or sequence of int
        seed : int
        time : str, optional
        recenter : bool
            See ``Sampler``.
        on_step : callable, optional
            Looks into every level: blocks are then run without a graph.

        Raises
        ------
        InputError
            A background that does not fit the package, or lies far from its climate.
        NoObservationsError
            Nothing to assimilate.
        NonFiniteError
            Members that came out non-finite.
        """
        begin = clock.perf_counter()
        package = self.package
        if not isinstance(background, xr.Dataset) or not isinstance(observations, Observations):
            came = f"{type(background).__name__} and {type(observations).__name__}"
            raise InputError(f"{came} came; accepted: a background as xarray.Dataset (open_states) and Observations")
        background = one_state(background, time)
        x_b = package.normalize(package.layout.to_array(background))
        observations = self._with_std(observations)
        with self.backend.kernels():
            observations, _, case, refused = self._checked(
                observations, x_b, lambda table, _: self._case(x_b, _season(background), table)
            )
            found = self._sampled(case, members, seed, recenter, on_step)
        departures = departure_table(observations, case.reasons, case.observed, x_b, found.x, refused)
        coords = {"member": np.array(found.members)}
        states = found.states[:, 0]
        analysis = self._dataset(states, background, dims=("member",), coords=coords, attrs=found.attrs)
        state_b = self._dataset(package.denormalize(x_b), background)
        seconds = clock.perf_counter() - begin
        cost = {"robust": self.robust, "representativeness": self.representativeness}
        return Analysis(analysis, state_b, departures, found.evaluations, seconds, **cost)

    @apart
    def plan(
        self,
        *,
        observations: Observations,
        members: int | Sequence[int] = 1,
        background: xr.Dataset | None = None,
        time: str | None = None,
    ) -> Plan:
        """What an analysis will take; see ``engine.plan``.

        Parameters
        ----------
        observations : Observations
        members : int or sequence of int
        background : xr.Dataset, optional
            As for an analysis; its values change nothing.
        time : str, optional
        """
        package = self.package
        x_b, season = torch.zeros(package.layout.shape, dtype=package.dtype, device=package.device), None
        if background is not None:
            background = one_state(background, time)
            x_b, season = package.normalize(package.layout.to_array(background)), _season(background)

        def prepare() -> tuple[Prior, Likelihood, int]:
            case = self._case(x_b, season, observations)
            return case.prior, case.likelihood, len(case.observed.y)

        return self.engine.plan(prepare, members, self.precision)

    def _case(self, x_b: torch.Tensor, season: torch.Tensor | None, observations: Observations) -> Case:
        """The tensors of one analysis."""
        _, observed, reasons = self.likelihood(observations)
        prior = self.package.prior(
            x_b,
            calendar=season,
            correction=self.correction,
            fused=self.backend.name == "fused",
            precision=self.precision,
        )
        return Case(prior, self._padded(observed), observed, reasons)

    def _dataset(self, states: np.ndarray, background: xr.Dataset, **options: Any) -> xr.Dataset:
        """States in the channels' units as a data set, in the style and at the time of the background."""
        layout = self.package.layout
        dataset = layout.to_dataset(states, style=layout.style_of(background), **options)
        # The time alone: what else a forecast says of its time is not the analysis'.
        return dataset if "time" not in background.coords else dataset.assign_coords(time=cf_time(background["time"]))

    def likelihood(self, observations: Observations) -> tuple[StencilOperator, Likelihood, np.ndarray]:
        """The operator of the usable observations, the likelihood, and per row of the table the reason, "" if used."""
        layout, normalization = self.package.layout, self.package.normalization
        return self._likelihood(observations, lambda table: ObservationOperator.stations(table, layout, normalization))


def _season(background: xr.Dataset) -> torch.Tensor | None:
    if "time" not in background.coords:
        return None
    return torch.from_numpy(calendar(np.array([background["time"].values])))

"""What a forecast model is, and a user's function in physical units as one.

A model is anything that can be called with normalised states, their time and a number of hours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.package import Package

__all__ = ["CallableForecast", "ForecastModel", "after", "forecast_of", "whole_steps"]


class ForecastModel(Protocol):
    """States to states some hours later."""

    def __call__(self, x: Tensor, time: np.datetime64, hours: float) -> Tensor:
        """Forecast.

        Parameters
        ----------
        x : Tensor, shape (N, C, H, W)
            States at ``time``, normalised by the package, on its grid.
        time : np.datetime64
        hours : float

        Returns
        -------
        Tensor, shape (N, C, H, W)
            Normalised states at ``time`` + ``hours``.
        """
        ...


@dataclass(frozen=True)
class CallableForecast:
    """A function in physical units, called as often as its step goes into the lead.

    Parameters
    ----------
    function : callable
        (states (N, C, H, W) as a float32 array in the package's units, time) to the states one step later.
    package : Package
    step_hours : float
    """

    function: Callable[[np.ndarray, np.datetime64], np.ndarray]
    package: Package
    step_hours: float

    def __call__(self, x: Tensor, time: np.datetime64, hours: float) -> Tensor:
        """See `ForecastModel`; InputError for a lead that is not whole steps, or states of another shape."""
        states = self.package.denormalize(x)
        for step in range(whole_steps(hours, self.step_hours, "the function")):
            states = np.asarray(self.function(states, after(time, step * self.step_hours)), np.float32)
            if states.shape != tuple(x.shape):
                raise InputError(f"the forecast function gave {states.shape}; accepted is {tuple(x.shape)}")
        return self.package.normalize(states).to(x)


def forecast_of(model: ForecastModel, x: Tensor, time: np.datetime64, hours: float) -> Tensor:
    """What a model makes of states; InputError where that is no states of their shape."""
    found = model(x, time, hours)
    if not isinstance(found, Tensor) or found.shape != x.shape:
        came = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise InputError(f"the forecast model gave {came}; accepted is a tensor of what it was given, {tuple(x.shape)}")
    return found


def whole_steps(hours: float, step_hours: float, owner: str) -> int:
    """How many steps of the model ``owner`` a lead is; InputError where it is not a whole number, at least one."""
    steps = round(hours / step_hours)
    if steps < 1 or abs(steps * step_hours - hours) > 1e-6:
        raise InputError(f"lead {hours:g} h; accepted are multiples of {owner}'s {step_hours:g} h")
    return steps


def after(time: np.datetime64, hours: float) -> np.datetime64:
    """``time`` + ``hours``, to the second."""
    return time.astype("datetime64[ns]") + np.timedelta64(round(3600 * hours), "s")

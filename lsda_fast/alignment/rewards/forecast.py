"""The reward of forecast skill: how often the forecast from a candidate is closer to what came than another's.

    e_nc = sqrt < (M(x_n)_c - x*_c(t + lead))^2 >

with the forecast model M, compared as in `base`. Align-DA (arXiv:2505.22008), section 2: 48 hours, by FengWu.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lsda_fast.alignment.case import Case
from lsda_fast.alignment.rewards.accuracy import check_unit, compare
from lsda_fast.errors import InputError
from lsda_fast.forecast_models import ForecastModel, forecast_of

__all__ = ["ForecastSkill"]


@dataclass(frozen=True)
class ForecastSkill:
    """Closeness of the forecast to the later reference, among the candidates.

    Parameters
    ----------
    model : ForecastModel
    lead : float
        Hours; the case must hold the reference of that time.
    unit : {"spread", "normalised", "native"}
        As for `Accuracy`.
    """

    model: ForecastModel
    lead: float = 48.0
    unit: str = "spread"
    name: str = "forecast"

    def __post_init__(self) -> None:
        check_unit(self.unit)

    def __call__(self, candidates: Tensor, case: Case) -> Tensor:
        """See `Reward`; InputError without a later state, without a time, or for fewer than two candidates."""
        later = case.later.get(self.lead)
        if later is None:
            known = ", ".join(f"{hours:g} h" for hours in sorted(case.later)) or "none"
            raise InputError(f"the forecast reward needs the reference {self.lead:g} h later; the case has {known}")
        if np.isnat(case.time):
            raise InputError("the forecast reward needs the time of the candidates; the case has none")
        return compare(forecast_of(self.model, candidates, case.time, self.lead), later, case, self.unit)

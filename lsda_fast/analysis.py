"""What an analysis gives back: the ensemble, the background on the same grid, and the departures of what came.

A departure is y - H(x), observed minus equivalent: O-B of the background, O-A of the analysis' mean. The weight is what
a robust cost leaves an observation at that O-A, 1 where the cost is Gaussian.
"""

import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from lsda_fast.datasets import table_beside, write_dataset
from lsda_fast.errors import InputError
from lsda_fast.guidance import Likelihood
from lsda_fast.kernels.robust import Robust
from lsda_fast.observations import Observations

if TYPE_CHECKING:
    from lsda_fast.package import Package

__all__ = ["Analysis", "departure_table", "equivalent"]

COLUMNS = [
    "observation", "time", "latitude", "longitude", "variable", "level", "value", "std", "O-B", "O-A", "weight", "used",
    "reason",
]  # fmt: skip


@dataclass(frozen=True)
class Analysis:
    """The result of one analysis.

    Parameters
    ----------
    analysis : xr.Dataset
        ([time,] member, [level,] latitude, longitude), CF attributes.
    background : xr.Dataset or None
        The background on the package's grid, where there was one.
    departures : pd.DataFrame
        One row per observation that came, with columns observation, time, latitude, longitude, variable, level,
        value, std, O-B, O-A, weight, used, reason.
    evaluations : Counter
        Network evaluations and derivatives.
    seconds : float
    candidates : pd.DataFrame, optional
        Of an analysis that was chosen by rewards: one row per candidate, with columns member, the rewards, rank, kept.
    robust : Huber or VariationalQC, optional
        What a departure cost.
    representativeness : bool
        Whether R had the autoencoder's reconstruction error.
    """

    analysis: xr.Dataset
    background: xr.Dataset | None
    departures: pd.DataFrame
    evaluations: Counter[str]
    seconds: float
    candidates: pd.DataFrame | None = None
    robust: Robust | None = None
    representativeness: bool = True

    @property
    def downweighted(self) -> int:
        """Observations that were used with less than half their weight."""
        return int((self.departures["weight"] < 0.5).sum())

    @property
    def mean(self) -> xr.Dataset:
        """Ensemble mean."""
        return self.analysis.mean("member", keep_attrs=True)

    @property
    def before(self) -> xr.Dataset:
        """The background of an analysis of one state; InputError for a window, or without a background."""
        if self.background is None or "time" in self.background.dims:
            raise InputError("an analysis of a window, or without a background, came; accepted is one of a background")
        return self.background

    def rewards(self, package: "Package", rewards: Any = "physics", **options: Any) -> pd.DataFrame:
        """Rewards of every member: see `lsda_fast.alignment.best_of.reward_table`."""
        from lsda_fast.alignment.best_of import reward_table

        return reward_table(self, package, rewards, **options)

    def save(self, path: str | Path) -> tuple[Path, ...]:
        """Write the analysis (netCDF or Zarr) and its tables, each whole or not at all; returns the paths.

        Beside ``A.nc`` lies ``A.departures.csv``, and of an analysis chosen by rewards ``A.rewards.csv``; that of an
        earlier analysis under this name goes with it.

        Raises
        ------
        InputError
            Where one of these cannot be written; nothing is, then.
        """
        path = Path(path)
        tables = {"departures": self.departures}
        tables |= {} if self.candidates is None else {"rewards": self.candidates}
        mark = uuid.uuid4().hex[:8]
        partial = {path.with_name(f".{path.stem}-{mark}.{kind}.csv"): kind for kind in tables}
        final = [table_beside(path, kind) for kind in tables]
        for place in final:
            if place.is_dir():
                raise InputError(f"{place} is a folder; accepted is a name for the table of the analysis beside it")
        try:
            # The small files first: when one cannot be written, the analysis does not stand alone.
            if path.parent.is_dir():
                for file, kind in partial.items():
                    tables[kind].to_csv(file, index=False)
            write_dataset(self.analysis, path)
            for file, place in zip(partial, final):
                file.replace(place)
            if self.candidates is None:
                table_beside(path, "rewards").unlink(missing_ok=True)
        finally:
            for file in partial:
                file.unlink(missing_ok=True)
        return path, *final

    def report(self, folder: str | Path) -> Path:
        """Maps, departures and statistics as one HTML page; returns its path. Needs matplotlib."""
        from lsda_fast.analysis_report import write_analysis_report

        return write_analysis_report(self, Path(folder))


def departure_table(
    observations: Observations,
    reasons: np.ndarray,
    likelihood: Likelihood,
    x_b: torch.Tensor | None,
    x_a: torch.Tensor,
    refused: Mapping[int, float] = MappingProxyType({}),
) -> pd.DataFrame:
    """O-B, O-A and weight (of the ensemble mean) of everything that came, in the order in which it came.

    Without a background O-B is NaN. What was not used has none of the three, but for O-B of ``refused``, by the number
    of the observation: that of what was refused for it.
    """
    table = observations.frame.assign(used=reasons == "", reason=reasons)
    operator: Any = likelihood.operator
    after = operator(x_a.mean(0, keepdim=True))
    before = torch.full_like(after, torch.nan) if x_b is None else equivalent(operator, x_b[None])
    columns = {
        "O-B": operator.values - before[0].double().cpu().numpy(),
        "O-A": operator.values - after[0].double().cpu().numpy(),
        "weight": likelihood.weight(after)[0].double().cpu().numpy(),
    }
    for name, values in columns.items():
        column = np.full(len(table), np.nan)
        column[reasons == ""] = values
        table[name] = column
    # A table of departures that comes as observations brings columns of these names.
    rejected = observations.rejected.assign(used=False, **dict.fromkeys(columns, np.nan))
    rejected["O-B"] = rejected["observation"].map(refused).astype(float)
    table = pd.concat([table, rejected], ignore_index=True) if len(rejected) else table
    rest = [column for column in table.columns if column not in COLUMNS]
    return table[COLUMNS + rest].sort_values("observation", ignore_index=True)


def equivalent(operator: Any, x: torch.Tensor) -> torch.Tensor:
    """H(x), NaN where a point that counts is missing; one without weight does not."""
    known = ~x.isnan()
    touched = (~known).flatten(1)[:, operator.index] & (operator.weight != 0)
    return operator(torch.where(known, x, 0)).masked_fill(touched.any(-1), torch.nan)

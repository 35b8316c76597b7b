"""The best of N without training: members of an analysis judged by rewards, and the best of them kept.

Rewards are averaged over what stands in for the reference, candidates ranked by each (1 is the best, ties share their
ranks), and the ranks averaged over the rewards, so that no reward's scale decides. What stands in, as the truth is not
known when an analysis is made:

- for the balance (``physics``, ``hydrostatic``): reference states of other times, whose imbalance hardly changes from
  one to the next; without them the background, though a learned forecast is further from balance than an analysis is;
- for the accuracy: observations that were held out (``observations``).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from lsda_fast.alignment.case import Case
from lsda_fast.alignment.rewards import Reward, rewards_of
from lsda_fast.analysis import Analysis
from lsda_fast.datasets import canonical
from lsda_fast.errors import InputError
from lsda_fast.forecast import one_member
from lsda_fast.likelihood import likelihood_of
from lsda_fast.observations import ObservationOperator, Observations
from lsda_fast.package import Package

__all__ = ["best_of", "check_rewards", "reward_table"]

Rewards = str | Sequence[str | Reward]


def best_of(
    analysis: Analysis,
    package: Package,
    rewards: Rewards = "physics",
    *,
    members: int = 1,
    reference: xr.Dataset | None = None,
    lead: float = 48.0,
) -> Analysis:
    """The best members of an analysis.

    Parameters
    ----------
    analysis : Analysis
        Its members are the candidates.
    package : Package
    rewards : str or sequence of str or Reward
        Names, or rewards of `rewards_of`.
    members : int
        How many are kept.
    reference, lead
        As for `reward_table`.

    Returns
    -------
    Analysis
        The kept members under their own numbers, O-A and weights of their mean, and in ``candidates`` the table of all.

    Raises
    ------
    InputError
        More members than there are, or what `reward_table` refuses.
    """
    numbers = analysis.analysis["member"].values
    if not 1 <= members <= len(numbers):
        raise InputError(f"{members} members to keep; accepted are 1 to {len(numbers)}, the candidates")
    table = reward_table(analysis, package, rewards, reference=reference, lead=lead)
    best = table["rank"].to_numpy().argsort(kind="stable")[:members]
    table["kept"] = np.isin(np.arange(len(table)), best)
    columns = [c for c in table.columns if c not in ("member", "rank", "kept")]
    attrs = {"chosen_from": len(numbers), "chosen_by": ", ".join(columns)}
    kept = analysis.analysis.isel(member=np.sort(best)).assign_attrs(attrs)
    return replace(analysis, analysis=kept, departures=_departures(analysis, package, kept), candidates=table)


def reward_table(
    analysis: Analysis,
    package: Package,
    rewards: Rewards = "physics",
    *,
    reference: xr.Dataset | None = None,
    lead: float = 48.0,
) -> pd.DataFrame:
    """Rewards of every member.

    Parameters
    ----------
    analysis : Analysis
    package : Package
    rewards : str or sequence of str or Reward
        Names, or rewards of `rewards_of`.
    reference : xr.Dataset, optional
        States. Where the analysis' own time is among them, that one is the reference (a report after the fact), and the
        one ``lead`` later verifies forecasts. Where it is not, all stand in for the balance that is aimed at: a dozen
        analyses of the season are enough. Not given, the background stands in.
    lead : float
        Hours of the forecasts.

    Returns
    -------
    pd.DataFrame
        One row per member: member, the rewards under their names, and rank, the mean of its ranks.

    Raises
    ------
    InputError
        A reward that cannot judge, such as accuracy without the reference analysis.
    """
    x = package.normalize(package.layout.to_array(analysis.analysis))
    chosen = _rewards(rewards, package, lead)
    scores = _scores(x, chosen, _cases(package, analysis.before, reference, lead))
    table = pd.DataFrame({"member": analysis.analysis["member"].values, **scores})
    table["rank"] = table[list(scores)].rank(ascending=False).mean(axis=1)
    return table


def check_rewards(
    package: Package,
    background: xr.Dataset,
    rewards: Rewards,
    *,
    reference: xr.Dataset | None = None,
    lead: float = 48.0,
) -> None:
    """Refuse before the work what could not be judged after it: the rewards of the background, twice."""
    background = one_member(background)
    x = package.normalize(package.layout.to_array(background))[None].repeat(2, 1, 1, 1)
    _scores(x, _rewards(rewards, package, lead), _cases(package, background, reference, lead))


def _rewards(rewards: Rewards, package: Package, lead: float) -> Sequence[Reward]:
    asked = [rewards] if isinstance(rewards, str) else rewards
    names = [reward for reward in asked if isinstance(reward, str)]
    named = rewards_of(",".join(names), package, lead=lead) if names else []
    return [*named, *(reward for reward in asked if not isinstance(reward, str))]


def _scores(x: Tensor, rewards: Sequence[Reward], cases: Sequence[Case]) -> dict[str, np.ndarray]:
    """Rewards (N,) by name, averaged over the cases."""
    with torch.no_grad():
        means = {r.name: torch.stack([r(x, case).double() for case in cases]).mean(0) for r in rewards}
    return {name: mean.cpu().numpy() for name, mean in means.items()}


def _cases(package: Package, background: xr.Dataset, reference: xr.Dataset | None, lead: float) -> list[Case]:
    """One case for the reference analysis, or one for every state that stands in."""
    read = lambda states: package.normalize(package.layout.to_array(states))  # noqa: E731
    background = canonical(background)
    x_b = read(background)
    time: Any = background["time"].values[()] if "time" in background.coords else np.datetime64("NaT")
    if reference is None:
        return [Case(package, time, x_b, x_b, stand_in=True)]
    reference = canonical(reference)
    if "time" not in reference.dims:
        reference = reference.expand_dims("time")
    times = pd.DatetimeIndex(reference["time"].values) if "time" in reference.coords else pd.DatetimeIndex([])
    if time in times:
        later = pd.Timestamp(time) + pd.Timedelta(hours=lead)
        states = {lead: read(reference.isel(time=times.get_loc(later)))} if later in times else {}
        return [Case(package, time, x_b, read(reference.isel(time=times.get_loc(time))), states)]
    return [
        Case(package, time, x_b, read(reference.isel(time=i)), stand_in=True) for i in range(reference.sizes["time"])
    ]


def _departures(analysis: Analysis, package: Package, kept: xr.Dataset) -> pd.DataFrame:
    """The table of departures with O-A of the kept members' mean, and the weights there."""
    table = analysis.departures.copy()
    used = table["used"].to_numpy(dtype=bool)
    observations = Observations(table[used].reset_index(drop=True), table[:0])
    operator = ObservationOperator.stations(observations, package.layout, package.normalization)
    likelihood = likelihood_of(
        operator,
        error=package.errors if analysis.representativeness else None,
        robust=analysis.robust,
        device=package.device,
        dtype=package.dtype,
    )
    after = likelihood.operator(package.normalize(package.layout.to_array(kept)).mean(0, keepdim=True))
    table.loc[used, "O-A"] = operator.values - after[0].double().cpu().numpy()
    table.loc[used, "weight"] = likelihood.weight(after)[0].double().cpu().numpy()
    return table

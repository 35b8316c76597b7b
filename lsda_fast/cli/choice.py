"""The best of N on the command line: what ``--best-of``, ``--rewards``, ``--reference`` and ``--held-out`` say."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lsda_fast.cli.terminal import warn
from lsda_fast.errors import InputError

if TYPE_CHECKING:
    import xarray as xr
    from pandas import Timestamp

    from lsda_fast.analysis import Analysis
    from lsda_fast.observations import Observations
    from lsda_fast.package import Package

__all__ = ["choice_of", "period_about", "within"]


def within(table: "Observations", state: "xr.Dataset", window: str) -> "Observations":
    """Observations of the state's time; all, and a warning, where it has none or they have none."""
    if not table.frame["time"].notna().any():
        if len(table):
            warn("no observation has a time: all are used")
        return table
    if "time" not in state.coords:
        warn("the background has no time: observations of any time are used")
        return table
    return table.window(state["time"].values, window, window)


def period_about(state: "xr.Dataset", window: str) -> "tuple[Timestamp, Timestamp] | None":
    """From window hours before the state's time to as many after it; None of one without a time, or beyond all time."""
    from pandas import Timedelta, Timestamp

    from lsda_fast.calendar import hours

    span = hours(window, "window", zero=True)
    if "time" not in state.coords:
        return None
    time = Timestamp(str(state["time"].values))
    try:
        return time - Timedelta(hours=span), time + Timedelta(hours=span)
    except (OverflowError, ValueError):  # which the table's own window says
        return None


def choice_of(
    package: "Package",
    background: "xr.Dataset",
    members: int,
    best_of: int | None,
    rewards: str | None,
    reference: str | None,
    held_out: Path | None,
    window: str,
) -> "tuple[int, Callable[[Analysis], Analysis]]":
    """How many candidates to draw, and what makes the analysis of them; InputError before the work where it cannot."""
    if best_of is None and rewards is None:
        if reference is not None or held_out is not None:
            raise InputError("--reference and --held-out are for --rewards; it did not come")
        return members, lambda result: result
    from lsda_fast.alignment.best_of import best_of as choose
    from lsda_fast.alignment.best_of import check_rewards
    from lsda_fast.alignment.rewards import rewards_of
    from lsda_fast.datasets import open_states
    from lsda_fast.observations import Observations

    candidates = members if best_of is None else best_of
    if candidates < max(2, members):
        raise InputError(f"{candidates} candidates for {members} members came; accepted are two at least, and as many")
    named = "physics" if rewards is None else rewards
    if held_out is not None and "observations" not in [name.strip() for name in named.split(",")]:
        raise InputError(f"--held-out is for --rewards observations; --rewards {named} has no use for it")
    table = None
    if held_out is not None:
        came = Observations.read(held_out)
        table = within(came, background, window)
        if len(came) and not len(table):
            raise InputError(f"none of {len(came)} observations held out is within {window} h of the background's time")
    judges = rewards_of(named, package, held_out=table)
    states = None if reference is None else open_states(reference)
    check_rewards(package, background, judges, reference=states)
    return candidates, partial(choose, package=package, rewards=judges, members=members, reference=states)

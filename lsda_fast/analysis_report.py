"""The report of an analysis: maps of background, increment and spread, and the departures.

Of a window there are maps of its first, middle and last state, and the departures in the course of time.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from lsda_fast.departure_plots import departure_series_plot, departures_plot
from lsda_fast.layout import StateLayout
from lsda_fast.maps import map_panel
from lsda_fast.report import write_report

if TYPE_CHECKING:
    from lsda_fast.analysis import Analysis

__all__ = ["by_reason", "write_analysis_report"]


def write_analysis_report(result: "Analysis", folder: Path, *, most: int = 6) -> Path:
    """Write maps of the ``most`` channels with the most observations, O-B and O-A, and one HTML page."""
    layout = StateLayout.infer(result.analysis)
    folder.mkdir(parents=True, exist_ok=True)
    used = result.departures[result.departures["used"]]
    names = _channels(used, layout)
    of_window = "time" in result.analysis.dims
    times = _first_middle_last(result.analysis) if of_window else [None]
    shown = [_values(result, layout, time) for time in times]
    counts = names.value_counts()
    drawn = [name for name in layout.names if np.isfinite(shown[0][0][:, layout.index(name)]).all()]
    nearest = pd.Series(pd.NaT, used.index)  # the state of a window that an observation is nearest to
    if of_window:
        states = pd.DatetimeIndex(result.analysis["time"].values)
        place = states.get_indexer(pd.DatetimeIndex(used["time"]), method="nearest")
        nearest = pd.Series(states[place], used.index)
    figures = {}
    for name in sorted(drawn, key=lambda name: -int(counts.get(name, 0)))[:most]:
        i = layout.index(name)
        here = used[names == name]
        fields: dict[str, np.ndarray] = {}
        dots: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for time, (members, x_b) in zip(times, shown):
            panels = _fields(members[:, i], None if x_b is None else x_b[i], time)
            there = here if time is None else here[nearest[here.index] == time]
            there = there.drop_duplicates(["latitude", "longitude"])
            dots |= dict.fromkeys(panels, (there["latitude"].to_numpy(), there["longitude"].to_numpy()))
            fields |= panels
        figures[name] = map_panel(
            fields,
            layout.grid,
            title=name,
            units=layout.channels[i].units,
            observations=dots,
            path=folder / f"{name}.png",
        )
    figures["departures"] = departures_plot(result.departures, folder / "departures.png")
    if of_window:
        series = used.assign(variable=names, time=nearest)
        figures["departures in time"] = departure_series_plot(series, folder / "departures_in_time.png", most=most)
    return write_report(
        folder,
        title="Analysis of a window" if of_window else "Analysis",
        tables=_tables(result, used, names),
        figures=figures,
        text=[_summary(result, len(used))],
    )


def _channels(used: pd.DataFrame, layout: StateLayout) -> pd.Series:
    """The channel of each observation: of those of its variable the one at the nearest level, in log pressure."""
    names = used["variable"].astype(object).copy()
    for variable, rows in used.groupby("variable"):
        mine = [c for c in layout.channels if c.variable == variable and c.level is not None]
        levels, there = np.array([c.level for c in mine], float), rows["level"].notna()
        if len(mine) and there.any():
            away = np.abs(np.log(rows["level"][there].to_numpy()[:, None] / levels))
            names[rows.index[there]] = np.array([c.name for c in mine], object)[away.argmin(1)]
    return names


def _first_middle_last(analysis: xr.Dataset) -> list[pd.Timestamp | None]:
    known = pd.DatetimeIndex(analysis["time"].values)
    return list(dict.fromkeys(known[i] for i in (0, len(known) // 2, len(known) - 1)))


def _values(result: "Analysis", layout: StateLayout, time: pd.Timestamp | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Members (M, C, H, W) and the background (C, H, W), where there is one, at a time of a window."""
    pick = lambda data: data if time is None else data.sel(time=time)  # noqa: E731
    # On levels a variable may be missing where others are not.
    members = layout.to_array(pick(result.analysis), missing="mask")
    return members, None if result.background is None else layout.to_array(pick(result.background), missing="mask")


def _fields(members: np.ndarray, x_b: np.ndarray | None, time: pd.Timestamp | None) -> dict[str, np.ndarray]:
    """What is drawn of one channel, by title."""
    mean = members.mean(0)
    fields = {"analysis": mean}
    if x_b is not None and np.isfinite(x_b).all():
        fields = {"background": x_b, **fields, "increment": mean - x_b}
    if len(members) > 1:
        fields["spread"] = members.std(0, ddof=1)
    return fields if time is None else {f"{name}, {time:%d %b %H}": field for name, field in fields.items()}


def _tables(result: "Analysis", used: pd.DataFrame, names: pd.Series) -> dict[str, pd.DataFrame]:
    rms = lambda v: float(np.sqrt(np.mean(np.square(v))))  # noqa: E731
    groups = used.assign(channel=names).groupby("channel", sort=False)
    summary = pd.DataFrame(
        {name: {"used": len(g), "O-B rms": rms(g["O-B"]), "O-A rms": rms(g["O-A"])} for name, g in groups}
    ).T
    tables = {"Departures": summary}
    if result.candidates is not None:
        tables["Rewards of the candidates"] = result.candidates.set_index("member")
    unused = result.departures[~result.departures["used"]]
    if len(unused):
        tables["Not used"] = by_reason(unused["reason"])
    return tables


def by_reason(reasons: pd.Series, most: int = 20) -> pd.DataFrame:
    """Counts of the reasons, those alike that differ in numbers alone; of many the commonest and the rest."""
    alike = reasons.str.replace(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", regex=True)
    first = reasons.groupby(alike).first().where(reasons.groupby(alike).nunique() == 1)
    counts = alike.value_counts()
    counts.index = [first[name] if isinstance(first[name], str) else name for name in counts.index]
    if len(counts) > most:
        counts = pd.concat([counts[:most], pd.Series({"others": int(counts[most:].sum())})])
    return counts.rename_axis("reason").to_frame("observations")


def _summary(result: "Analysis", used: int) -> str:
    return (
        f"{result.analysis.sizes['member']} members, {used} of {len(result.departures)} observations used, "
        f"{result.downweighted} of them with less than half their weight, {result.seconds:.1f} s."
    )

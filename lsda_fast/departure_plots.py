"""Departures as pictures: histograms of O-B and O-A, and their root mean squares in the course of a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lsda_fast.errors import InputError
from lsda_fast.plotting import GREY, INK, STYLE, save_figure, short_number

__all__ = ["departure_series_plot", "departures_plot"]

# Of a histogram; a line takes the colour.
LOOKS: dict[str, dict[str, Any]] = {
    "O-B": {"color": "#8a94a3", "histtype": "stepfilled", "alpha": 0.45, "linewidth": 0},
    "O-A": {"color": "#1f5fa8", "histtype": "step", "linewidth": 1.6},
}


def departures_plot(frame: pd.DataFrame, path: str | Path, *, units: Mapping[str, str] | None = None) -> Path:
    """Histograms of O-B and O-A of the used observations, one panel per variable, a PNG.

    Parameters
    ----------
    frame : columns variable, O-B, O-A (same units per variable) and used (bool).
    path : where the PNG goes; its folder is made.
    units : variable to units, for the axis.

    Raises
    ------
    InputError
        A column is missing, or no used observation has a finite O-A. Without O-B there is none in the figure.
    """
    import matplotlib

    used = _used(frame)
    names = list(dict.fromkeys(used["variable"]))
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(names, "observations")
        for name, axes in zip(names, panels):
            part = used[used["variable"] == name]
            columns = {label: part[label].dropna().to_numpy(dtype=float) for label in LOOKS}
            reach = float(np.quantile(np.abs(np.concatenate([*columns.values()])), 0.995)) * 1.1 or 1.0
            bins = np.linspace(-reach, reach, int(np.clip(2 * len(part) ** (1 / 2), 12, 60)) // 2 * 2 + 2)
            for label, values in columns.items():
                if not values.size:
                    continue
                text = f"{label}   mean {short_number(values.mean(), 3)}   std {short_number(values.std(), 3)}"
                axes.hist(np.clip(values, -reach, reach), bins=bins.tolist(), label=text, **LOOKS[label])
            axes.axvline(0, ymax=0.8, color=INK, linewidth=0.6)
            axes.set_xlim(-reach, reach)
            axes.set_ylim(top=axes.get_ylim()[1] * 1.28)
            total = int((frame["variable"] == name).sum())
            axes.set_title(f"{len(part):,} of {total:,} used", fontsize=7.5, color=GREY, loc="right")
            unit = (units or {}).get(str(name))
            axes.set_xlabel(f"departure ({unit})" if unit else "departure")
            _legend(axes)
        return save_figure(figure, path)


def departure_series_plot(frame: pd.DataFrame, path: str | Path, *, most: int = 6) -> Path:
    """Root mean squares of O-B and O-A of the used observations by time, one panel per variable, a PNG.

    Parameters
    ----------
    frame : columns variable, time, O-B, O-A (same units per variable) and used (bool).
    path : where the PNG goes; its folder is made.
    most : variables that are drawn, those with the most observations.

    Raises
    ------
    InputError
        A column is missing, or no used observation has a finite O-A and a time.
    """
    import matplotlib
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    used = _used(frame, "time")
    names = list(used["variable"].value_counts().index[:most])
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(names, "rms departure")
        for name, axes in zip(names, panels):
            part = used[used["variable"] == name]
            squares = part[list(LOOKS)].astype(float).pow(2)
            series = squares.groupby(pd.DatetimeIndex(part["time"])).mean().pow(0.5)
            for label, look in LOOKS.items():
                known = series[label].dropna()
                if len(known):
                    axes.plot(
                        known.index, known, color=look["color"], label=label, linewidth=1.6, marker="o", markersize=2.5
                    )
            axes.set_ylim(0, axes.get_ylim()[1] * 1.2)
            axes.set_title(f"{len(part):,} used", fontsize=7.5, color=GREY, loc="right")
            locator = AutoDateLocator(minticks=2, maxticks=7)
            axes.xaxis.set_major_locator(locator)
            axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
            _legend(axes)
        return save_figure(figure, path)


def _used(frame: pd.DataFrame, *more: str) -> pd.DataFrame:
    wanted = ("variable", *more, "O-B", "O-A", "used")
    lost = [name for name in wanted if name not in frame.columns]
    if lost:
        raise InputError(
            f"the departures lack {', '.join(lost)}; columns {', '.join(wanted[:-1])} and {wanted[-1]} are needed"
        )
    used = frame[frame["used"].to_numpy(dtype=bool) & np.isfinite(frame["O-A"].to_numpy(dtype=float))]
    used = used.dropna(subset=list(more))
    if not len(used):
        raise InputError("no used observation has a finite departure, there is nothing to draw")
    return used


def _panels(names: Sequence[str], label: str) -> tuple[Any, list[Any]]:
    """A figure with one panel a name, and what is drawn upward."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = {1: 1, 2: 2, 4: 2}.get(len(names), 3)
    rows = -(-len(names) // columns)
    engine = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(0.4 + 3.3 * columns, 0.3 + 2.7 * rows), facecolor="white", layout=engine)
    panels = [figure.add_subplot(rows, columns, k + 1) for k in range(len(names))]
    for k, (name, axes) in enumerate(zip(names, panels)):
        axes.set_ylabel(label if k % columns == 0 else "")
        axes.set_title(str(name), fontsize=10, fontweight="bold", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _legend(axes: Any) -> None:
    axes.legend(loc="upper left", frameon=False, fontsize=7, handlelength=1.4, borderaxespad=0.2, labelspacing=0.3)

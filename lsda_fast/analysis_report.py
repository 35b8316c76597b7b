"""The report of one analysis: maps of background, increment and spread, and the departures."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lsda_fast.layout import StateLayout
from lsda_fast.report import departures_plot, map_panel, write_report

if TYPE_CHECKING:
    from lsda_fast.analysis import Analysis

__all__ = ["write_analysis_report"]


def write_analysis_report(result: "Analysis", folder: Path, *, most: int = 6) -> Path:
    """Write maps of the ``most`` channels with the most observations, O-B and O-A, and one HTML page."""
    layout = StateLayout.infer(result.before)
    folder.mkdir(parents=True, exist_ok=True)
    # On levels a variable may be missing where others are not.
    members = layout.to_array(result.analysis, missing="mask")
    x_b = layout.to_array(result.before, missing="mask")
    used = result.departures[result.departures["used"]]
    names = used["variable"] + used["level"].map(lambda level: "" if pd.isna(level) else f"{level:g}")
    counts = names.value_counts()
    drawn = [name for name in layout.names if np.isfinite(x_b[layout.index(name)]).all()]
    order = sorted(drawn, key=lambda name: -int(counts.get(name, 0)))[:most]
    figures = {}
    for name in order:
        i = layout.index(name)
        here = used[names == name].drop_duplicates(["latitude", "longitude"])
        mean = members[:, i].mean(0)
        fields = {"background": x_b[i], "analysis": mean, "increment": mean - x_b[i]}
        if len(members) > 1:
            fields["spread"] = members[:, i].std(0, ddof=1)
        figures[name] = map_panel(
            fields,
            layout.grid,
            title=name,
            units=layout.channels[i].units,
            observations=(here["latitude"].to_numpy(), here["longitude"].to_numpy()),
            path=folder / f"{name}.png",
        )
    figures["departures"] = departures_plot(result.departures, folder / "departures.png")
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
        tables["Not used"] = unused["reason"].value_counts().to_frame("observations")
    return write_report(
        folder,
        title="Analysis",
        tables=tables,
        figures=figures,
        text=[
            f"{len(members)} members, {len(used)} of {len(result.departures)} observations used, "
            f"{result.downweighted} of them with less than half their weight, {result.seconds:.1f} s."
        ],
    )

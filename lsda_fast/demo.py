"""``lsda demo``: the whole story on the built-in model, with no data and no training.

A truth from the test period of the nature run; a background, the package's own forecast from a perturbed state; 1 %
and 5 % of the columns observed with error; analyses by several guidances; scores against the truth; maps and one HTML
page.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from lsda_fast.analysis import Analysis
from lsda_fast.assimilator import Assimilator
from lsda_fast.datasets import open_states
from lsda_fast.forecast import forecast
from lsda_fast.guidance import DPS, Guidance, ObsFree, Repaint
from lsda_fast.package import Package
from lsda_fast.presets import sampler_preset
from lsda_fast.twin import column_observations
from lsda_fast.verification import Scores, kind_of

__all__ = ["DemoResult", "built_in_package", "built_in_states", "demo_case", "run"]

FRACTIONS = (0.01, 0.05)
METHODS: Mapping[str, tuple[Guidance, int]] = {
    "ObsFree": (ObsFree(), 8),
    "Repaint": (Repaint(), 16),
    "DPS": (DPS(), 12),
    "LO-SDA": (sampler_preset("lo_sda")["guidance"], sampler_preset("lo_sda")["steps"]),
}
SHOWN = ("z500", "t850", "u300", "q850", "sp")
Progress = Callable[[str, int, int, dict[str, Any]], None]


@dataclass(frozen=True)
class DemoResult:
    """Tables by title, and the page."""

    tables: dict[str, pd.DataFrame]
    page: Path


def built_in_package() -> Package:
    """The package that ships with the project."""
    return Package.load(Path(str(resources.files("lsda_fast") / "data" / "demo" / "package")))


def built_in_states() -> xr.Dataset:
    """The states that ship with the project: per case the truth, and the perturbed analysis one lead earlier."""
    return open_states(Path(str(resources.files("lsda_fast") / "data" / "demo" / "states.nc"))).load()


def run(
    output: str | Path,
    *,
    members: int = 8,
    seed: int = 0,
    package: Package | None = None,
    progress: Progress | None = None,
) -> DemoResult:
    """Run the demo.

    Parameters
    ----------
    output : path
        Folder for the maps and ``index.html``.
    members : int
    seed : int
        Chooses the case, the observed columns, their errors and the members.
    package : Package, optional
        Another package on the same layout.
    progress : callable, optional
    """
    from lsda_fast.maps import map_panel
    from lsda_fast.report import write_report

    output = Path(output)
    package = package or built_in_package()
    truth, background = demo_case(package, seed)
    output.mkdir(parents=True, exist_ok=True)
    layout = package.layout
    x = layout.to_array(truth)
    x_b = layout.to_array(background)
    scores = {"background": _scores(package, x_b[None], x)}
    tables: dict[str, pd.DataFrame] = {}
    figures: dict[str, Path] = {}
    done, total = 0, len(FRACTIONS) * len(METHODS)
    for fraction in FRACTIONS:
        observations = column_observations(
            x, layout, fraction=fraction, std=package.observation_std, seed=seed, time=truth["time"].values
        )
        rows, seconds = dict(scores), {"background": 0.0}
        for name, (guidance, steps) in METHODS.items():
            result = Assimilator(package, guidance, steps=steps)(background, observations, members=members, seed=seed)
            x_a, seconds[name] = layout.to_array(result.analysis), result.seconds
            rows[name] = _scores(package, x_a, x, **kind_of(result.analysis))
            done += 1
            if progress:
                progress("demo", done, total, {"observed": f"{fraction:.0%}", "method": name})
        tables[f"{fraction:.0%} of the columns observed, {members} members"] = _table(rows, seconds)
        figures |= _maps(output, result, truth, layout, fraction, map_panel)
    page = write_report(
        output,
        title="Latent score-based data assimilation: the built-in demonstration",
        tables={
            **tables,
            "WRMSE of LO-SDA's mean by channel (last density)": rows["LO-SDA"][
                ["rmse", "crps", "spread", "spread_skill"]
            ],
        },
        figures=figures,
        text=[
            f"Truth: {str(truth['time'].values)[:16]} of the nature run's test period. Background: the package's "
            f"{package.lead_hours:g}-hour forecast from a perturbed state. Observations: every channel at "
            "random columns, with error. Normalised RMSE weighs every channel by its climatological variability.",
        ],
    )
    return DemoResult(tables, page)


def demo_case(package: Package, seed: int) -> tuple[xr.Dataset, xr.Dataset]:
    """Truth and background of the case that the seed chooses."""
    states = built_in_states()
    cases = states.sizes["time"] // 2
    truth, initial = (states.isel(time=2 * (seed % cases) + i) for i in range(2))
    return truth, forecast(package, initial)


def _scores(package: Package, ensemble: np.ndarray, truth: np.ndarray, **kind: Any) -> pd.DataFrame:
    layout = package.layout
    scores = Scores(layout.names, layout.grid.area_weights, np.asarray(package.normalization.std), **kind)
    return scores.add(ensemble, truth).table()


def _table(rows: dict[str, pd.DataFrame], seconds: dict[str, float]) -> pd.DataFrame:
    """One line per method: WRMSE of the shown channels, then the scores over all channels."""
    lines = {}
    for name, table in rows.items():
        everything = table.loc["normalized"]
        lines[name] = {
            **{f"{channel} WRMSE": table.loc[channel, "rmse"] for channel in SHOWN if channel in table.index},
            "normalised RMSE": everything["rmse"],
            "CRPS": everything["crps"],
            "spread/skill": everything["spread_skill"],
            "seconds": seconds[name],
        }
    return pd.DataFrame(lines).T


def _maps(
    output: Path, result: Analysis, truth: xr.Dataset, layout: Any, fraction: float, map_panel: Callable[..., Path]
) -> dict[str, Path]:
    used = result.departures[result.departures["used"]].drop_duplicates(["latitude", "longitude"])
    figures = {}
    # Rows in the layout's order, whichever way a data set has its latitudes.
    fields = [layout.to_array(states) for states in (truth, result.before, result.analysis)]
    for name in ("z500", "t850"):
        x, x_b, members = (field[..., layout.index(name), :, :] for field in fields)
        channel = layout.channels[layout.index(name)]
        path = map_panel(
            {
                "truth": x,
                "background error": x_b - x,
                "analysis error": members.mean(0) - x,
                "increment": members.mean(0) - x_b,
                "spread": members.std(0, ddof=1),
            },
            layout.grid,
            title=f"{name}: LO-SDA with {fraction:.0%} of the columns observed",
            units=channel.units,
            observations=(used["latitude"].to_numpy(), used["longitude"].to_numpy()),
            path=output / f"{name}_{round(100 * fraction)}.png",
        )
        figures[f"{name}, {fraction:.0%} of the columns observed"] = path
    return figures

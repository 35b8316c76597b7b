"""Maps of states, errors and spread on their grid.

Colour follows meaning. A field is, by the words of its name or by `kinds`, a *state*, a *spread* (sequential, from
zero) or a *difference* (diverging, symmetric about zero); fields of one kind share their limits and a colour bar, so
that panels can be compared.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from lsda_fast.errors import InputError
from lsda_fast.plotting import BLANK, GREY, INK, STYLE, colormap, round_ticks, save_figure

if TYPE_CHECKING:
    from lsda_fast.grid import Grid

__all__ = ["map_panel"]

KINDS = ("state", "difference", "spread")
DIFFERENCE_WORDS = r"error|increment|difference|bias|departure|innovation|anomaly|minus"
SPREAD_WORDS = r"spread|std|stdev|standard deviation|uncertainty|rmse"


def map_panel(
    fields: Mapping[str, np.ndarray],
    grid: Grid,
    *,
    title: str,
    units: str,
    path: str | Path,
    observations: tuple[ArrayLike, ArrayLike] | Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> Path:
    """Maps of several fields of one variable as a PNG, those of one kind side by side over one colour bar.

    Parameters
    ----------
    fields : name to (H, W) array; NaN is left grey.
    grid : the fields' grid, regional or global (a global one is drawn from 180 W to 180 E).
    title, units : heading of the figure, and units of all fields.
    path : where the PNG goes; its folder is made.
    observations : (latitude, longitude) in degrees, drawn as dots; or those of each field, by its name.
    kinds : name to "state", "difference" or "spread", where the name's own words do not say it.

    Raises
    ------
    InputError
        No field, a field that does not have the grid's shape or has no finite value, an unknown kind.
    """
    import matplotlib
    from matplotlib.figure import Figure

    groups = _groups(fields, grid, kinds or {})
    latitude, longitude, order = _view(grid)
    width, height, lines = _layout(latitude, longitude, groups)
    columns = max(sum(len(names) for _, names in line) for line in lines)
    left, right, top, foot, gap = 0.55, 0.5, 0.72, 0.92, 0.2  # inches
    size = (left + columns * (width + gap) + right, top + len(lines) * (height + foot) - 0.12)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, facecolor="white")
        figure.text(left / size[0], 1 - 0.16 / size[1], title, fontsize=12, fontweight="bold", va="top")

        def place(x: float, y: float, w: float, h: float) -> Any:
            return figure.add_axes((x / size[0], y / size[1], w / size[0], h / size[1]))

        for i, line in enumerate(lines):
            y = size[1] - top - height - i * (height + foot)
            x = left
            for kind, names in line:
                shown = next(everything for k, everything in groups if k == kind)
                low, high, extend = _limits(kind, np.concatenate([np.ravel(fields[name]) for name in shown]))
                for name in names:
                    axes = place(x + names.index(name) * (width + gap), y, width, height)
                    field = np.ma.masked_invalid(np.asarray(fields[name], dtype=np.float64)[:, order])
                    mesh = _map(axes, latitude, longitude, field, kind, (low, high))
                    here = observations.get(name) if isinstance(observations, Mapping) else observations
                    if here is not None:
                        _dots(axes, here)
                    axes.set_title(name, fontsize=9, loc="left", pad=4)
                    _degrees(axes, latitude, longitude, label_latitude=name == names[0] and x == left)
                span = len(names) * (width + gap) - gap
                length = min(span - 1.0, 4.5)
                bar = place(x + (span - length) / 2, y - 0.42, length, 0.09)
                scale = figure.colorbar(mesh, cax=bar, orientation="horizontal", extend=extend, extendfrac=0.1 / length)
                _label(scale, low, high, units, length)
                x += span + gap
        return save_figure(figure, path)


def _groups(fields: Mapping[str, np.ndarray], grid: Grid, kinds: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Names of the fields by kind, in the order of `KINDS`; checks the fields."""
    if not fields:
        raise InputError("no field came, at least one is needed for a map")
    groups: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name, field in fields.items():
        if np.shape(field) != grid.shape or not np.isfinite(field).any():
            raise InputError(f"field {name!r} has shape {np.shape(field)}; accepted are finite values, {grid.shape}")
        kind = kinds.get(name) or _kind(name)
        if kind not in groups:
            raise InputError(f"field {name!r} is of kind {kind!r}, accepted are {', '.join(KINDS)}")
        groups[kind].append(name)
    return [(kind, names) for kind, names in groups.items() if names]


def _kind(name: str) -> str:
    if re.search(rf"\b({SPREAD_WORDS})\b", name, re.IGNORECASE):
        return "spread"
    differs = re.search(rf"\b({DIFFERENCE_WORDS})s?\b|\s[-\u2212]\s|^O-[AB]$", name, re.IGNORECASE)
    return "difference" if differs else "state"


def _view(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latitudes, longitudes in drawing order and that order: a global grid is turned to begin at 180 W."""
    longitude = np.asarray(grid.longitude, dtype=np.float64)
    if grid.periodic:
        longitude = (longitude + 180) % 360 - 180
    order = np.argsort(longitude)
    return np.asarray(grid.latitude, dtype=np.float64), longitude[order], order


Lines = list[list[tuple[str, list[str]]]]


def _layout(
    latitude: np.ndarray, longitude: np.ndarray, groups: list[tuple[str, list[str]]]
) -> tuple[float, float, Lines]:
    """Width and height of one map in inches, true to scale at its middle, and the groups on each line."""
    stretch = max(math.cos(math.radians(float(latitude.mean()))), 0.25)
    ratio = float(np.clip(np.ptp(latitude) / max(np.ptp(longitude) * stretch, 1e-6), 0.3, 1.6))
    choices = [_pack(groups, columns) for columns in ((2,) if ratio < 0.6 else (3, 4))]
    lines = min(choices, key=len)
    columns = max(sum(len(names) for _, names in line) for line in lines)
    width = {1: 5.6, 2: 4.6, 3: 3.1, 4: 2.8}[columns] * min(1.0, 1.1 / ratio)
    return width, width * ratio, lines


def _pack(groups: list[tuple[str, list[str]]], columns: int) -> Lines:
    """Each group on the first line with room for all of it; groups wider than a line are broken, and stay in order."""
    lines: Lines = []
    for kind, names in groups:
        last = 0
        for part in (names[i : i + columns] for i in range(0, len(names), columns)):
            room = (line for line in lines[last:] if sum(len(n) for _, n in line) + len(part) <= columns)
            line = next(room, None)
            if line is None:
                lines.append(line := [])
            line.append((kind, part))
            last = next(i for i, other in enumerate(lines) if other is line)
    return lines


def _limits(kind: str, values: np.ndarray) -> tuple[float, float, str]:
    """Colour limits of a kind, without the outermost 0.1 % at either end, and the open ends of the bar."""
    values = values[np.isfinite(values)]
    low, high = (
        float(np.quantile(values, 0.001, method="lower")),
        float(np.quantile(values, 0.999, method="higher")),
    )
    if kind == "difference":
        high = max(abs(low), abs(high))
        low = -high
    elif kind == "spread":
        low = 0.0
    if high <= low:
        low, high = (low - 0.5, low + 0.5) if kind == "state" else (-1.0 if kind == "difference" else 0.0, 1.0)
    below, above = bool(values.min() < low), bool(values.max() > high)
    return low, high, {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]


def _map(
    axes: Any,
    latitude: np.ndarray,
    longitude: np.ndarray,
    field: np.ma.MaskedArray,
    kind: str,
    limits: tuple[float, float],
) -> Any:
    """One field as coloured cells, a state with isolines; gives what the colour bar needs."""
    low, high = limits
    axes.set_facecolor(BLANK)  # no colour of a map's
    mesh = axes.pcolormesh(longitude, latitude, field, cmap=colormap(kind), vmin=low, vmax=high)
    lines = round_ticks(low, high, 10)
    lines = lines[(lines > field.min()) & (lines < field.max())]
    if kind == "state" and min(field.shape) > 2 and lines.size:
        look = {"colors": "white", "linewidths": 0.5, "linestyles": "solid", "alpha": 0.7}
        axes.contour(longitude, latitude, field, lines, **look)
    return mesh


def _label(scale: Any, low: float, high: float, units: str, length: float) -> None:
    """Ticks and units of a colour bar of this length in inches; powers of a thousand go to the units."""
    ticks = round_ticks(low, high, max(4, int(length * 2.8)))
    power = 3 * math.floor(math.log10(max(abs(low), abs(high))) / 3)
    power = power if (power < 0 and max(abs(low), abs(high)) < 0.05) or power > 5 else 0
    shown = ticks / 10.0**power
    digits = max(0, -math.floor(math.log10(float(np.diff(shown).min())) + 1e-9)) if shown.size > 1 else 2
    scale.set_ticks(ticks.tolist(), labels=[f"{value:.{digits}f}".replace("-", "\u2212") for value in shown])
    scale.outline.set_visible(False)
    scale.ax.tick_params(length=0, pad=3)
    superscript = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    words = f"10{superscript} {units}" if power else units
    scale.ax.text(1 + 0.18 / length, 0.5, words, transform=scale.ax.transAxes, va="center", color=GREY, fontsize=7.5)


def _dots(axes: Any, observations: tuple[ArrayLike, ArrayLike]) -> None:
    latitude, longitude = (np.asarray(values, dtype=np.float64).ravel() for values in observations)
    if latitude.shape != longitude.shape:
        raise InputError(f"{latitude.size} latitudes and {longitude.size} longitudes came, observations need pairs")
    limits = {"xlim": axes.get_xlim(), "ylim": axes.get_ylim()}
    west = limits["xlim"][0]
    size = float(np.clip(1800 / max(latitude.size, 1), 1, 9))
    shift = west + (longitude - west) % 360
    axes.scatter(
        shift,
        latitude,
        s=size,
        color=INK,
        edgecolors="white",
        linewidths=0.12 * size**0.5 * (size > 2),
        zorder=3,
    )
    axes.set(**limits)


def _degrees(axes: Any, latitude: np.ndarray, longitude: np.ndarray, *, label_latitude: bool) -> None:
    x, y = _degree_ticks(longitude, 5), _degree_ticks(latitude, 5)
    axes.set_xticks(x, [_degree(((v + 180) % 360) - 180 or 0.0, "EW") for v in x])
    axes.set_yticks(y, [_degree(v, "NS") for v in y] if label_latitude else [""] * len(y))
    axes.grid(color="white", linewidth=0.3, alpha=0.35)


def _degree_ticks(values: np.ndarray, most: int) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 90)
    step = next((s for s in steps if (high - low) / s <= most + 1), 90)
    return np.arange(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1) * step


def _degree(value: float, sides: str) -> str:
    side = sides[0] if value > 0 else sides[1]
    if value == 0 or (sides == "EW" and abs(value) == 180):
        side = ""
    return f"{abs(value):g}°{side}"

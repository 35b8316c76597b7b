"""How figures look and are written: colours, type, ticks, numbers, and a file whole or not at all.

The colour maps for differences (diverging) and spread (sequential) are drawn in OKLab (Ottosson 2020) with lightness
linear in the value, hence perceptually uniform, as viridis is for states.
"""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

__all__ = ["BLANK", "GREY", "INK", "STYLE", "colormap", "round_ticks", "save_figure", "short_number", "write_file"]

INK, GREY, LINE, BLANK = "#1f2a37", "#5b6675", "#c9d0d9", "#d0d4d9"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "text.color": INK,
    "axes.labelcolor": GREY,
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.unicode_minus": True,
}


def colormap(kind: str) -> Colormap:
    """The colours of a "state", a "difference" or a "spread"."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    if kind == "state":
        return colormaps["viridis"]
    s = np.linspace(-1, 1, 255) if kind == "difference" else np.linspace(0, 1, 256)
    hue = np.deg2rad(np.where(s < 0, 255.0, 30.0) if kind == "difference" else 330.0)
    # Lightness falls linearly from near white; chroma rises and then yields to the gamut of dark colours.
    lightness, chroma = 0.98 - 0.62 * np.abs(s), 0.30 * np.abs(s) * (1 - 0.55 * np.abs(s))
    return ListedColormap(_oklab_to_rgb(lightness, chroma * np.cos(hue), chroma * np.sin(hue)), name=f"lsda_{kind}")


def _oklab_to_rgb(L: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """OKLab to sRGB in [0, 1], (n,) each to (n, 3); the matrices are those of Ottosson (2020)."""
    lms = (
        np.stack(
            [
                L + 0.3963377774 * a + 0.2158037573 * b,
                L - 0.1055613458 * a - 0.0638541728 * b,
                L - 0.0894841775 * a - 1.2914855480 * b,
            ]
        )
        ** 3
    )
    matrix = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(matrix @ lms, 0, 1).T
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def round_ticks(low: float, high: float, most: int) -> np.ndarray:
    """Round numbers between low and high, not many more than ``most``."""
    from matplotlib.ticker import MaxNLocator

    ticks = np.asarray(MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(low, high))
    return ticks[(ticks >= low) & (ticks <= high)]


def short_number(value: float, digits: int = 4) -> str:
    """A few significant digits, without an exponent wherever a person would write none."""
    if not np.isfinite(value):
        return "–"
    if value != 0 and not 1e-4 <= abs(value) < 1e9:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def save_figure(figure: Figure, path: str | Path) -> Path:
    """The figure as a PNG at this path."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return write_file(Path(path), buffer.getvalue())


def write_file(path: Path, content: bytes) -> Path:
    """Written beside its final name and then renamed: a reader never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path

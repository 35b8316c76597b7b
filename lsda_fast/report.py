"""Departures as histograms, and one self-contained page of figures and tables."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd

from lsda_fast.errors import InputError
from lsda_fast.maps import map_panel
from lsda_fast.plotting import GREY, INK, STYLE, save_figure, short_number, write_file

__all__ = ["departures_plot", "map_panel", "write_report"]


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
        A column is missing, or no used observation has finite departures.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lost = [name for name in ("variable", "O-B", "O-A", "used") if name not in frame.columns]
    if lost:
        raise InputError(f"the departures lack {', '.join(lost)}; columns variable, O-B, O-A and used are needed")
    used = frame[frame["used"].to_numpy(dtype=bool) & np.isfinite(frame[["O-B", "O-A"]].to_numpy(dtype=float)).all(1)]
    names = list(dict.fromkeys(used["variable"]))
    if not names:
        raise InputError("no used observation has finite departures, there is nothing to draw")
    columns = {1: 1, 2: 2, 4: 2}.get(len(names), 3)
    rows = -(-len(names) // columns)
    engine = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.4 + 3.3 * columns, 0.3 + 2.7 * rows), facecolor="white", layout=engine)
        for k, name in enumerate(names):
            axes = figure.add_subplot(rows, columns, k + 1)
            part = used[used["variable"] == name]
            before, after = (part[column].to_numpy(dtype=float) for column in ("O-B", "O-A"))
            reach = float(np.quantile(np.abs(np.concatenate([before, after])), 0.995)) * 1.1 or 1.0
            bins = np.linspace(-reach, reach, int(np.clip(2 * len(part) ** (1 / 2), 12, 60)) // 2 * 2 + 2)
            looks: tuple[dict[str, Any], ...] = (
                {"histtype": "stepfilled", "color": "#8a94a3", "alpha": 0.45, "linewidth": 0},
                {"histtype": "step", "color": "#1f5fa8", "linewidth": 1.6},
            )
            for values, label, look in zip((before, after), ("O-B", "O-A"), looks):
                text = f"{label}   mean {short_number(values.mean(), 3)}   std {short_number(values.std(), 3)}"
                axes.hist(np.clip(values, -reach, reach), bins=bins.tolist(), label=text, **look)
            axes.axvline(0, ymax=0.8, color=INK, linewidth=0.6)
            axes.set_xlim(-reach, reach)
            axes.set_ylim(top=axes.get_ylim()[1] * 1.28)
            axes.spines[["top", "right"]].set_visible(False)
            total = int((frame["variable"] == name).sum())
            axes.set_title(str(name), fontsize=10, fontweight="bold", loc="left")
            axes.set_title(f"{len(part):,} of {total:,} used", fontsize=7.5, color=GREY, loc="right")
            unit = (units or {}).get(str(name))
            axes.set_xlabel(f"departure ({unit})" if unit else "departure")
            axes.set_ylabel("observations" if k % columns == 0 else "")
            axes.legend(
                loc="upper left",
                frameon=False,
                fontsize=7,
                handlelength=1.4,
                borderaxespad=0.2,
                labelspacing=0.3,
            )
        return save_figure(figure, path)


def write_report(
    folder: str | Path,
    *,
    title: str,
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, str | Path],
    text: Sequence[str],
) -> Path:
    """One HTML page, `folder/index.html`, with everything inside it: no link leads out, all text is escaped.

    Parameters
    ----------
    folder : made where it is missing; the page replaces an older one in one step.
    tables : heading to DataFrame.
    figures : caption to image file (.png, .jpg, .svg).
    text : paragraphs below the title.

    Raises
    ------
    InputError
        A figure that does not exist or is of another type.
    """
    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in text]
    for caption, file in figures.items():
        words, image = html.escape(caption), _embedded(Path(file))
        parts.append(f'<figure><img alt="{words}" src="{image}"><figcaption>{words}</figcaption></figure>')
    for heading, table in tables.items():
        body = table.to_html(border=0, float_format=short_number, na_rep="–", escape=True, justify="right")
        parts.append(f'<section><h2>{html.escape(heading)}</h2><div class="wide">{body}</div></section>')
    page = Template(PAGE).substitute(title=html.escape(title), body="\n".join(parts))
    return write_file(Path(folder) / "index.html", page.encode())


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2a37; background: #f4f6f8; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .8rem 0; }
h2 { font-size: 1.1rem; margin: 0 0 .6rem; }
p { max-width: 44rem; overflow-wrap: anywhere; }
figure, section { background: #fff; border: 1px solid #dde2e8; border-radius: 8px; }
figure, section { margin: 1rem 0; padding: 1rem; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { color: #5b6675; font-size: .9rem; margin-top: .6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; white-space: nowrap; }
thead th { color: #5b6675; font-weight: 600; border-bottom: 1px solid #c9d0d9; }
tbody th { text-align: left; font-weight: 600; }
tbody tr + tr > * { border-top: 1px solid #eef1f4; }
</style>
</head>
<body>
$body
</body>
</html>
"""


def _embedded(file: Path) -> str:
    kinds = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".svg": "svg+xml"}
    if file.suffix.lower() not in kinds or not file.is_file():
        raise InputError(f"figure {file} came, an existing .png, .jpg or .svg file is accepted")
    return f"data:image/{kinds[file.suffix.lower()]};base64,{base64.b64encode(file.read_bytes()).decode()}"

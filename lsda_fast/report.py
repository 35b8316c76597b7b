"""One self-contained page of figures and tables."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

import pandas as pd

from lsda_fast.errors import InputError
from lsda_fast.plotting import short_number, write_file

__all__ = ["check_page", "write_report"]


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
        A figure that does not exist or is of another type; another page in its place (``check_page``).
    """
    check_page(Path(folder))
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


def check_page(folder: Path) -> None:
    """InputError where the folder has a page that is no report of ours: it would be replaced."""
    page = folder / "index.html"
    if page.exists() and b'content="lsda_fast"' not in page.read_bytes()[:1000]:
        raise InputError(f"{page} is no report of lsda_fast; accepted is a folder without such a page")


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="lsda_fast">
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
